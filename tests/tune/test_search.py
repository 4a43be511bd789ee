"""What is tried next, and what is not worth more steps, against references and known functions."""

import warnings

import numpy as np
import pytest
from sklearn.gaussian_process import GaussianProcessRegressor

from fpatch import random
from fpatch.tune import Halving, Population, parse_space
from fpatch.tune.search.generations import explore, propose_child
from fpatch.tune.search.halving import should_stop
from fpatch.tune.search.noisy_gp import fit_kernel, noisy_expected_improvement, propose_noisy_gp
from fpatch.tune.search.proposers import NUM_RANDOM, Observation, propose_grid, propose_optuna, propose_random

SQUARE = parse_space({"x": (0.0, 1.0), "y": (0.001, 1.0, "log")})


def hill(settings) -> float:
    """Greatest, 1, at x = 0.3 and y = 0.1."""
    return 1.0 - 4 * (settings["x"] - 0.3) ** 2 - (np.log10(settings["y"]) + 1) ** 2


def run(propose, space, objective, count, error=0.0, seed=0):
    """Trials one after another, each value off by a normal number of that standard error."""
    rng, key, seen = np.random.default_rng(seed), random.key(seed), []
    for _ in range(count):
        settings = propose(space, seen, key)
        seen.append(Observation(settings, objective(settings) + error * rng.normal(), error))
    return seen


def test_random_trials_do_not_depend_on_what_was_tried():
    seen = run(propose_random, SQUARE, hill, 5)
    assert [t.settings for t in seen] == [t.settings for t in run(propose_random, SQUARE, lambda s: 0.0, 5)]
    assert len({t.settings["x"] for t in seen}) == 5
    assert run(propose_random, SQUARE, hill, 1, seed=1)[0].settings != seen[0].settings


def test_a_grid_is_walked_through():
    found = [t.settings for t in run(propose_grid(3), SQUARE, hill, 9)]
    assert found == list(SQUARE.grid(3))


@pytest.mark.parametrize(
    ("propose", "share"),
    [(propose_optuna("tpe"), 0.5), (propose_optuna("gp"), 0.02), (propose_noisy_gp, 0.02)],
    ids=["tpe", "gp", "noisy_gp"],
)
def test_a_model_finds_the_top_of_a_hill(propose, share):
    """Nearer than as many trials at random, with three different seeds together."""
    asked, drawn = ([run(p, SQUARE, hill, 13, seed=s) for s in range(3)] for p in (propose, propose_random))

    def below_the_top(runs):
        return np.mean([1 - max(t.value for t in seen) for seen in runs])

    assert below_the_top(asked) < share * below_the_top(drawn)
    *seen, last = asked[0]
    assert propose(SQUARE, seen, random.key(0)) == last.settings


@pytest.mark.parametrize(
    "propose",
    [propose_optuna("tpe"), propose_optuna("gp"), propose_noisy_gp],
    ids=["tpe", "gp", "noisy_gp"],
)
def test_models_take_choices_conditions_failures_and_what_runs(propose):
    space = parse_space(
        {
            "name": ["a", "b"],
            "n": (1, 4, "int"),
            "x": {"low": 0, "high": 1, "when": {"name": "b"}},
            "pair": [[1, 2], [3, 4]],
        }
    )
    seen: list[Observation] = []
    for i in range(NUM_RANDOM + 6):
        settings = propose(space, seen, random.key(0))
        assert space.foreign_setting(settings) is None
        value = {2: float("nan"), 5: None}.get(i, float(settings["name"] == "b") + settings.get("x", 0.0))
        seen.append(Observation(settings, value, 0.01))
    assert [t.settings["name"] for t in seen[-4:]].count("b") >= 3


# The Gaussian process that knows its noise


def test_noise_is_the_square_of_the_standard_error():
    """The posterior of the fitted kernel is that of sklearn's regressor with alpha = error**2."""
    rng = np.random.default_rng(0)
    x, error = rng.uniform(size=(12, 2)), np.tile([0.03, 0.6], 6)
    y = np.sin(4 * x[:, 0]) + error * rng.normal(size=12)
    at = np.array([[0.4, 0.1], [0.4, 0.9], [0.3, 0.5], [0.45, 1.0], [0.5, 0.0]])
    scaled = (y - y.mean()) / y.std()
    kernel = fit_kernel(x, scaled, error / y.std())
    process = GaussianProcessRegressor(kernel, alpha=(error / y.std()) ** 2 + 1e-6, optimizer=None).fit(
        x, scaled
    )
    mean, covariance = process.predict(np.concatenate([x, at]), return_cov=True)
    # expected improvement by brute force: values at all points together, many times
    draws = rng.multivariate_normal(mean, covariance, 40_000, method="eigh")
    brute = np.maximum(draws[:, 12:] - draws[:, :12].max(axis=1, keepdims=True), 0).mean(axis=0)
    found = noisy_expected_improvement(x, y, error, np.zeros((0, 2)), at, rng.normal(size=(12, 4000)))
    assert brute.max() > 0.02
    assert found == pytest.approx(brute, rel=0.1, abs=2e-3)


def test_what_runs_counts_as_a_point_of_unknown_value():
    """By brute force, as above: a point that is pending is among those to beat."""
    rng = np.random.default_rng(1)
    x, pending, at = rng.uniform(size=(8, 1)), np.array([[0.9]]), np.array([[0.88], [0.5]])
    error = np.full(8, 0.1)
    y = x[:, 0] + 0.1 * rng.normal(size=8)
    scaled = (y - y.mean()) / y.std()
    kernel = fit_kernel(x, scaled, error / y.std())
    process = GaussianProcessRegressor(kernel, alpha=(error / y.std()) ** 2 + 1e-6, optimizer=None).fit(
        x, scaled
    )
    mean, covariance = process.predict(np.concatenate([x, pending, at]), return_cov=True)
    draws = rng.multivariate_normal(mean, covariance, 40_000, method="eigh")
    brute = np.maximum(draws[:, 9:] - draws[:, :9].max(axis=1, keepdims=True), 0).mean(axis=0)
    normal = rng.normal(size=(9, 4000))
    found = noisy_expected_improvement(x, y, error, pending, at, normal)
    assert found == pytest.approx(brute, rel=0.1, abs=2e-3)
    alone = noisy_expected_improvement(x, y, error, np.zeros((0, 1)), at, normal[:8])
    assert found[0] < 0.5 * alone[0]


def test_a_lucky_value_of_large_error_does_not_draw_the_search_to_it():
    space = parse_space({"x": (0.0, 1.0)})
    seen = [Observation({"x": x}, 1 - 4 * (x - 0.7) ** 2, 0.02) for x in np.linspace(0, 1, 9)]
    lucky = Observation({"x": 0.1}, 1.3, 1.0)
    trusted = propose_noisy_gp(space, [*seen, lucky._replace(error=0.02)], random.key(0))
    doubted = propose_noisy_gp(space, [*seen, lucky], random.key(0))
    assert abs(trusted["x"] - 0.1) < 0.1
    assert abs(doubted["x"] - 0.7) < 0.2


@pytest.mark.slow
def test_with_a_noisy_objective_it_finds_the_top_for_knowing_its_errors():
    """Every other trial is measured far worse: how high the last trials are, in truth, over three seeds."""

    def height(told: float) -> float:
        found = []
        for seed in range(3):
            rng, seen = np.random.default_rng(seed), []
            for i in range(28):
                own = 0.6 if i % 2 else 0.03
                settings = propose_noisy_gp(SQUARE, seen, random.key(seed))
                seen.append(Observation(settings, hill(settings) + own * rng.normal(), told * own))
            found += [hill(t.settings) for t in seen[-8:]]
        return float(np.mean(found))

    assert height(1.0) > 0.7
    assert height(0.0) < 0.5


def test_errors_that_are_not_known_are_those_of_the_others():
    seen = run(propose_random, SQUARE, hill, 10, error=0.1)
    unknown = [seen[0]._replace(error=float("nan")), *seen[1:]]
    assert propose_noisy_gp(SQUARE, unknown, random.key(0)) == propose_noisy_gp(SQUARE, seen, random.key(0))
    nothing = [t._replace(error=float("nan"), value=1.0) for t in seen]
    assert SQUARE.foreign_setting(propose_noisy_gp(SQUARE, nothing, random.key(0))) is None


# Stopping early


def test_halving_decides_as_asha_does():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from ray.tune.schedulers.async_hyperband import _Bracket

    class Named:
        def __init__(self, name):
            self.trial_id = name

    rng = np.random.default_rng(0)
    stops = 0
    for rule in (Halving(2, 3.0), Halving(1, 2.0), Halving(5, 4.0)):
        for _ in range(12):
            num_steps = 30
            bracket = _Bracket(rule.first, num_steps - 1, rule.factor, 0)
            points: dict[str, list[tuple[int, float]]] = {f"t{i}": [] for i in range(9)}
            alive = list(points)
            while alive:
                name = alive[rng.integers(len(alive))]
                value = float(rng.normal())
                points[name].append((len(points[name]) + 1, value))
                others = {n: p for n, p in points.items() if n != name}
                stop = should_stop(rule, num_steps, points[name], others)
                assert stop == (bracket.on_result(Named(name), len(points[name]), value) == "STOP")
                stops += stop
                if stop or len(points[name]) == num_steps - 1:
                    alive.remove(name)
    assert stops > 50


def test_halving_by_hand():
    rule = Halving(10, 2.0)
    others = {"a": [(10, 1.0), (20, 3.0)], "b": [(10, 2.0)], "c": [(5, 9.0)], "d": [(10, float("nan"))]}
    assert should_stop(rule, 40, [(10, 1.4)], others)
    assert not should_stop(rule, 40, [(10, 1.5)], others)  # as good as the median stays
    assert not should_stop(rule, 40, [(9, 0.0)], others)
    assert not should_stop(rule, 40, [(10, 5.0), (15, 0.0)], others)  # between two comparisons
    assert should_stop(rule, 40, [(10, 5.0), (20, 2.9)], others)
    assert should_stop(rule, 40, [(10, float("nan"))], others)
    assert not should_stop(rule, 40, [(10, 0.0)], {})  # the first there
    assert not should_stop(rule, 10, [(10, 0.0)], others)  # no comparison at the end
    assert not should_stop(rule, 15, [(15, 0.0)], others)  # nor one that is late by then


# A population


def test_the_weak_copy_the_strong():
    rule = Population(size=8, every=5)
    space = parse_space({"x": (0.0, 1.0), "kind": ["a", "b", "c"]})
    seen: list[Observation] = []
    for _ in range(8):
        child = propose_child(rule, space, seen, random.key(0))
        assert child is not None
        assert (child.parent, child.generation) == (None, 0)
        seen.append(Observation(child.settings))
    assert propose_child(rule, space, seen, random.key(0)) is None
    values = [0.3, 0.9, float("nan"), 0.1, 0.8, 0.5, 0.6, 0.2]
    seen = [Observation(t.settings, value) for t, value in zip(seen, values, strict=True)]
    children = []
    for _ in range(8):
        child = propose_child(
            rule, space, [*seen, *(Observation(c.settings) for c in children)], random.key(0)
        )
        assert child is not None
        children.append(child)
    parents = [c.parent for c in children]
    assert {parents[2], parents[3]} <= {1, 4}  # no value, and the least
    assert [p for i, p in enumerate(parents) if i not in (2, 3)] == [0, 1, 4, 5, 6, 7]
    for i in (2, 3):
        assert children[i].settings != seen[parents[i]].settings
    assert all(c.generation == 1 for c in children)
    for i in (0, 1, 4):
        assert children[i].settings == seen[i].settings


def test_exploring_moves_numbers_by_a_fifth_within_bounds():
    space = parse_space({"x": (0.1, 1.0, "log"), "n": (1, 100, "int"), "kind": ["a", "b"]})
    start = {"x": 0.5, "n": 50, "kind": "a"}
    moved = [explore(space, start, random.fold_in(random.key(0), i)) for i in range(150)]
    assert all(space.foreign_setting(m) is None for m in moved)
    near = [m["x"] for m in moved if m["x"] == pytest.approx(0.4) or m["x"] == pytest.approx(0.6)]
    assert 0.65 < len(near) / 150 < 0.85
    assert {40, 60} <= {m["n"] for m in moved}
    assert 0.75 < sum(m["kind"] == "a" for m in moved) / 150 < 0.98
    assert max(m["x"] for m in (explore(space, {**start, "x": 1.0}, random.key(i)) for i in range(40))) == 1.0


def test_exploring_keeps_to_the_conditions():
    space = parse_space({"kind": ["a", "b"], "x": {"low": 0, "high": 1, "when": {"kind": "b"}}})
    for i in range(60):
        assert space.foreign_setting(explore(space, {"kind": "a"}, random.key(i))) is None
        assert space.foreign_setting(explore(space, {"kind": "b", "x": 0.5}, random.key(i))) is None
