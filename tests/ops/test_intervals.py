"""Rates with intervals: Wilson against scipy, and the bootstrap's coverage of rows that share photographs."""

import math

import numpy as np
import pytest
import scipy.stats

from fpatch.evaluation.evaluation import Evaluation
from fpatch.evaluation.means import scalars, standard_errors
from fpatch.evaluation.rates import success
from fpatch.metrics import Rate, bootstrap_mean, wilson
from fpatch.ops.intervals import resample


@pytest.mark.parametrize(
    ("successes", "count"), [(0, 114), (114, 114), (1, 5), (37, 80), (500, 1000), (2, 7)]
)
def test_wilson_equals_scipy(successes, count):
    rate = wilson(np.arange(count) < successes, np.arange(count))
    expected = scipy.stats.binomtest(successes, count).proportion_ci(0.95, method="wilson")
    assert rate.value == successes / count
    assert (rate.low, rate.high) == pytest.approx((expected.low, expected.high), abs=1e-6)
    assert (rate.count, rate.photographs) == (count, count)


def test_wilson_has_no_interval_under_five_photographs():
    rate = wilson(np.array([True, False, True] * 3), np.repeat([1, 2, 3, 4], [3, 2, 2, 2]))
    assert (rate.value, rate.count, rate.photographs) == (6 / 9, 9, 4)
    assert np.isnan([rate.low, rate.high]).all()


def test_wilson_counts_photographs():
    hits, image_id = np.array([True, False, True, True] * 10), np.repeat(np.arange(10), 4)
    rate, few = wilson(hits, image_id), wilson(np.arange(10) < 7.5, np.arange(10))
    assert (rate.value, rate.count, rate.photographs) == (0.75, 40, 10)
    assert rate.high - rate.low == pytest.approx(few.high - few.low, rel=0.1)
    alone = wilson(hits, np.arange(40))
    assert rate.high - rate.low > 1.8 * (alone.high - alone.low)


def test_wilson_covers_where_photographs_have_unequal_rows_that_share_their_fate():
    rng, covered = np.random.default_rng(0), 0
    for _ in range(400):
        image_id = np.repeat(np.arange(50), rng.geometric(1 / 7, 50))  # as many as COCO's have objects
        rate = wilson((rng.uniform(size=50) < 0.5)[image_id], image_id)
        covered += rate.low <= 0.5 <= rate.high
    assert 0.93 <= covered / 400 <= 0.98


def test_a_rate_of_zero_is_not_certain():
    rate = wilson(np.zeros(114, bool), np.arange(114))
    assert rate.low == pytest.approx(0.0, abs=1e-12)
    assert rate.high == pytest.approx(0.0326, abs=1e-4)


def test_nothing_counted():
    for rate in wilson(np.zeros(0, bool), np.zeros(0, int)), bootstrap_mean(np.zeros(0), np.zeros(0, int)):
        assert math.isnan(rate.value)
        assert (rate.count, rate.photographs) == (0, 0)
        assert str(rate) == "none counted"


def simulate(seed: int, num_photographs: int = 40, num_rows: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """Differences whose larger part belongs to the photograph; their mean is 0.2."""
    generator = np.random.default_rng(seed)
    shared = generator.normal(size=num_photographs)
    values = 0.2 + 0.8 * np.repeat(shared, num_rows) + 0.4 * generator.normal(size=num_photographs * num_rows)
    return values, np.repeat(np.arange(num_photographs), num_rows)


def coverage(cluster: bool, num_simulations: int = 300) -> float:
    covered = 0
    for seed in range(num_simulations):
        values, image_id = simulate(seed)
        rate = bootstrap_mean(values, image_id if cluster else np.arange(len(values)), 400)
        covered += rate.low <= 0.2 <= rate.high
    return covered / num_simulations


def test_the_bootstrap_covers_when_photographs_are_resampled_and_not_rows():
    assert 0.90 <= coverage(cluster=True) <= 0.98
    assert coverage(cluster=False, num_simulations=60) < 0.70


def test_the_bootstrap_agrees_with_the_normal_interval():
    values, image_id = simulate(1, num_photographs=400, num_rows=1)
    rate = bootstrap_mean(values, image_id, 4000)
    half = 1.96 * values.std(ddof=1) / math.sqrt(400)
    assert rate.value == pytest.approx(values.mean())
    assert (rate.low, rate.high) == pytest.approx(
        (values.mean() - half, values.mean() + half), abs=0.1 * half
    )


def test_photographs_of_unequal_size_keep_the_mean_of_rows():
    image_id = np.repeat(np.arange(8), [1, 9, 2, 2, 2, 2, 2, 20])
    values = np.where(image_id == 7, 1.0, 0.0)
    rate = bootstrap_mean(values, image_id)
    assert rate.value == 0.5
    assert rate.low == 0.0
    assert rate.high > 0.8


def test_photographs_are_drawn_once_for_all_rates_of_a_table():
    rng = np.random.default_rng(0)
    table = {"image_id": np.arange(30), **{f"found/{c}": rng.random(30) < 0.5 for c in ("patch", "noise")}}
    table |= {f"best_score/{c}": rng.random(30) for c in ("patch", "noise", "none")}
    resample.cache_clear()
    success(table | {"found/none": np.ones(30, bool)})
    assert (resample.cache_info().misses, resample.cache_info().hits) == (1, 2)


def test_the_order_and_the_names_of_photographs_do_not_matter():
    values, image_id = simulate(2)
    order = np.random.default_rng(0).permutation(len(values))
    assert bootstrap_mean(values[order], image_id[order]) == pytest.approx(bootstrap_mean(values, image_id))
    assert bootstrap_mean(values, 1000 + 3 * image_id) == bootstrap_mean(values, image_id)


def test_no_interval_from_fewer_than_five_photographs():
    values, image_id = simulate(3, num_photographs=4)
    rate = bootstrap_mean(values, image_id)
    assert rate.value == pytest.approx(values.mean())
    assert math.isnan(rate.low)
    assert math.isnan(rate.high)
    assert (rate.count, rate.photographs) == (24, 4)
    assert "no interval of 24 rows, 4 images" in str(rate)
    assert not math.isnan(bootstrap_mean(*simulate(3, num_photographs=5)).low)


def test_a_rate_prints_with_its_denominator():
    assert str(Rate(0.755, 0.7, 0.8, 120, 60)) == "75.5 % [70.0, 80.0] of 120 rows, 60 images"


def test_equal_values_have_no_bootstrap_interval():
    for kind in (np.float32, bool):
        rate = bootstrap_mean(np.zeros(60, kind), np.repeat(np.arange(20), 3))
        assert rate.value == 0.0
        assert math.isnan(rate.low)
        assert math.isnan(rate.high)


def test_equal_values_have_no_standard_error():
    """A search that is told 0 takes the trial for certain."""
    table = {"image_id": np.arange(20), "found/none": np.ones(20, bool), "found/patch": np.zeros(20, bool)}
    result = Evaluation(table | {"found/delta": np.full(20, -0.1, np.float32)}, {}, {})
    assert np.isnan([standard_errors(result)[n] for n in ("found/patch", "found/delta")]).all()
    assert scalars(result)["found/delta"] == pytest.approx(-0.1)


def test_certain_rates_end_at_the_end_of_the_scale():
    image_id = np.arange(30)
    assert wilson(np.ones(30, bool), image_id).high == 1.0
    assert wilson(np.zeros(30, bool), image_id).low == 0.0


def test_standard_errors_are_the_spread_over_repeated_experiments():
    """Photographs drawn anew many times: how far the estimates scatter, and what each says of itself."""
    rng = np.random.default_rng(0)
    found, said = [], []
    for _ in range(200):
        count = 40
        image_id = np.repeat(np.arange(count), rng.integers(1, 4, count))
        skill = rng.uniform(0.1, 0.7, count)[image_id]
        seen = rng.uniform(size=len(image_id)) < 0.9
        hidden = rng.uniform(size=len(image_id)) < skill
        table = {
            "image_id": image_id,
            "found/patch": seen & ~hidden,
            "found/none": seen,
            "best_score/patch": 0.5 - 0.3 * hidden + 0.1 * rng.normal(size=len(image_id)),
            "best_score/none": 0.5 + 0.1 * rng.normal(size=len(image_id)),
        }
        table["found/delta"] = table["found/patch"].astype(np.float32) - table["found/none"]
        result = Evaluation(table, {}, {})
        found.append(scalars(result))
        said.append(standard_errors(result))
    assert set(said[0]) == set(found[0])
    ratio = {n: np.mean([s[n] for s in said]) / np.std([f[n] for f in found]) for n in said[0]}
    for name in ("success/drop/patch", "best_score/patch", "found/delta"):
        assert ratio[name] == pytest.approx(1, rel=0.2), name
    for name in ("success/patch", "success/missed/patch"):  # Wilson counts photographs, not rows
        assert 1 < ratio[name] < 1.4, name
    few = Evaluation({n: c[:4] for n, c in table.items()}, {}, {})
    assert np.isnan(list(standard_errors(few).values())).all()
