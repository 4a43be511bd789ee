"""Measuring: controls, deltas, blocks, and that looking changes nothing."""

import hashlib
import io
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from rich.console import Console
from study_fixture import make_study, parameters

from fpatch import random
from fpatch.cli.tables import success_table
from fpatch.core.files import file_digest
from fpatch.core.resource import Resource
from fpatch.core.tree import take_rows
from fpatch.evaluation.blocks import measure
from fpatch.evaluation.columns import metric_names, object_columns, result_columns, tensor_digest
from fpatch.evaluation.conditions import CONTROLS, make_conditions, make_controls, make_patches
from fpatch.evaluation.evaluation import Evaluation, evaluate
from fpatch.evaluation.means import scalars, standard_errors
from fpatch.evaluation.rates import conditions_of, effects, of_objects, success
from fpatch.evaluation.thresholds import threshold_curve
from fpatch.graph.samples import control
from fpatch.metrics import bootstrap_mean
from fpatch.optim.loop import fit
from fpatch.optim.step import make_state, make_step
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.figures import picture_effects
from fpatch.runs.opening import open_run
from fpatch.runs.replaying import replay_run
from fpatch.runs.training import train
from fpatch.runtime.execution import Execution
from fpatch.study.config import load_study
from fpatch.study.setup import make_loader, set_up


@pytest.fixture(scope="module")
def parts(trained):
    """Pipeline, trained parameters and test photographs."""
    run, study = open_run(trained.folder)
    made = set_up(study)
    state, _ = run.load_checkpoint("best", made.initial)
    return study.pipeline.at("test"), state.params, made.dataset.split("test")


@pytest.fixture(scope="module")
def table(trained):
    return trained.load_table("test")


# Controls


def test_what_the_benign_prints_are(parts):
    pipeline, params, _ = parts
    patches = make_patches(pipeline, params)
    controls = make_controls(patches, random.key(4))
    assert tuple(controls) == CONTROLS
    for name, patch in patches["patch"].items():
        noise, flat, shuffled = (controls[c]["patch"][name] for c in CONTROLS)
        assert noise.shape == flat.shape == shuffled.shape == patch.shape
        assert 0.0 <= float(noise.min()) < 0.1 < 0.9 < float(noise.max()) < 1.0
        assert torch.equal(flat, patch.mean((1, 2), keepdim=True).expand_as(patch))
        pixels, mixed = (sorted(map(tuple, p.flatten(1).T.tolist())) for p in (patch, shuffled))
        assert pixels == mixed  # whole pixels, their colors kept together
        assert not torch.equal(patch, shuffled)
    assert not torch.equal(controls["noise"]["patch"]["side"][:, :6, :5], controls["noise"]["patch"]["rear"])
    alone = make_controls({"patch": {"rear": patches["patch"]["rear"]}}, random.key(4))
    for c in CONTROLS:  # a print goes by the name of its patch, not by its place among others
        assert torch.equal(alone[c]["patch"]["rear"], controls[c]["patch"]["rear"])
    other = make_controls(patches, random.key(5))
    assert not torch.equal(controls["noise"]["patch"]["side"], other["noise"]["patch"]["side"])


def test_a_picture_of_ones_own_is_a_control():
    picture = random.uniform(random.key(1), (3, 24, 40))
    patches = {
        "patch": {"a": torch.zeros(3, 12, 20), "b": torch.zeros(1, 6, 5), "c": torch.zeros(2, 3, 24, 40)}
    }
    made = make_controls(patches, random.key(0), {"logo": picture})["logo"]["patch"]
    assert {n: p.shape for n, p in made.items()} == {n: p.shape for n, p in patches["patch"].items()}
    pixels = Image.fromarray((picture * 255).round().byte().permute(1, 2, 0).numpy())
    by_pil = np.asarray(pixels.resize((20, 12), Image.Resampling.BILINEAR)).transpose(2, 0, 1) / 255
    assert np.abs(made["a"].numpy() - by_pil).max() < 2 / 255
    gray = np.asarray(pixels.convert("L").resize((5, 6), Image.Resampling.BILINEAR)) / 255
    assert np.abs(made["b"][0].numpy() - gray).max() < 3 / 255
    assert torch.equal(made["c"], picture.expand(2, -1, -1, -1))


def test_controls_of_a_study(tmp_path):
    path = make_study(tmp_path)
    Image.fromarray(np.arange(600, dtype=np.uint8).reshape(10, 20, 3)).save(tmp_path / "logo.png")
    text = path.read_text()

    def write(controls: str) -> Path:
        path.write_text(text.replace("[evaluate]\n", f"[evaluate]\ncontrols = {controls}\n"))
        return path

    run = train(load_study(write('{logo = "logo.png"}')))
    study = open_run(run.folder)[1]
    logo = study.evaluate.controls["logo"]
    assert isinstance(logo, Resource)
    assert logo.sha256 == file_digest(tmp_path / "logo.png")
    _, rates = evaluate_run(run.folder)
    assert list(rates.rates) == ["patch", "noise", "flat", "shuffled", "logo"]
    expected = make_controls(run.load_conditions("test")["patch"], random.key(0), study.evaluate.pictures)
    shown = run.load_conditions("test")["logo"]
    assert all(torch.equal(shown["patch"][n], p) for n, p in expected["logo"]["patch"].items())
    table = run.load_table("test")
    assert set(table) >= {"found/logo", "best_score/delta/logo", "digest/logo"}
    assert (table["digest/logo"] != table["digest/noise"]).all()
    (tmp_path / "logo.png").unlink()  # what was shown is kept
    assert replay_run(run.folder)[0].differences == {}
    with pytest.raises(FileNotFoundError, match=r"logo\.png: no such file"):
        load_study(path)
    for name in ("noise", "none", "delta", '"a/b"'):
        with pytest.raises(ValueError, match=r"evaluate\.controls: (a control cannot be called|the name)"):
            load_study(write(f'{{{name} = "logo.png"}}'))


def test_no_patch_is_the_control_of_the_same_samples_bit_for_bit(parts):
    pipeline, params, dataset = parts
    batch = dataset.batch(dataset.image_ids)
    sample = pipeline.sample(random.key(1), batch)
    conditions = make_conditions(pipeline, params, random.key(2))
    results = measure(pipeline, conditions, sample, batch, block=4, keep=("image",))
    by_hand = pipeline.apply(params, control(sample), batch)
    assert torch.equal(results["none"]["image"], by_hand["image"])
    broken = {name: torch.full_like(value, float("nan")) for name, value in params.items()}
    again = measure(
        pipeline, make_conditions(pipeline, broken, random.key(2)), sample, batch, block=4, keep=("image",)
    )
    assert again["none"]["digest"] == results["none"]["digest"]
    assert again["patch"]["digest"] != results["patch"]["digest"]
    patched = pipeline.apply(params, sample, batch)
    assert torch.equal(results["patch"]["image"], patched["image"])
    outside = (results["patch"]["image"] == results["none"]["image"]).all(1).float().mean()
    assert 0.6 < float(outside) < 0.98


def test_deltas(table):
    for metric in ("found", "best_score"):
        values = {c: table[f"{metric}/{c}"].astype(np.float32) for c in ("patch", "none", *CONTROLS)}
        assert np.array_equal(table[f"{metric}/delta"], values["patch"] - values["none"])
        for c in CONTROLS:
            assert np.array_equal(table[f"{metric}/delta/{c}"], values["patch"] - values[c])
    assert (table["best_score/delta"] < -0.1).any()
    assert set(table["draw"]) == {0, 1}
    assert len({tuple(row) for row in zip(table["image_id"], table["draw"], strict=True)}) == 8


def test_a_delta_of_booleans_is_a_number():
    finite = {"": torch.tensor([True])}
    result = result_columns(
        {
            c: {
                "digest": [c],
                "finite": finite,
                "found": torch.tensor([c == "none"]),
                "target": torch.ones(1),
            }
            for c in ("patch", "none", "noise")
        },
        ("found",),
    )
    assert {name.partition("/")[0] for name in result} == {"found", "finite", "digest"}
    assert result["found/delta"].tolist() == [-1.0]
    assert result["found/delta/noise"].tolist() == [0.0]


# Blocks


def test_a_row_is_the_same_wherever_it_stands_in_a_block(parts):
    pipeline, params, dataset = parts
    batch = dataset.batch(dataset.image_ids)
    sample = pipeline.sample(random.key(1), batch)
    conditions = make_conditions(pipeline, params, random.key(2))
    metrics = metric_names(pipeline)
    whole = result_columns(measure(pipeline, conditions, sample, batch, block=4), metrics)
    for order in ([3, 2, 1, 0], [2], [1, 3], [3, 0, 2]):
        rows = torch.tensor(order)
        part = measure(pipeline, conditions, take_rows(sample, rows), take_rows(batch, rows), block=4)
        for name, column in result_columns(part, metrics).items():
            assert column.tolist() == whole[name][order].tolist(), (name, order)


def test_the_end_of_a_table_is_the_same_without_its_beginning(parts):
    pipeline, params, dataset = parts
    whole = evaluate(pipeline, params, dataset, random.key(3), block=3, num_draws=2).table
    part = evaluate(pipeline, params, dataset.select(dataset.image_ids[2:]), random.key(3), block=3).table
    assert part["key/0"].tolist() == whole["key/0"][2:4].tolist()
    for name in whole:
        assert part[name].tolist() == whole[name][2:4].tolist(), name


def test_edits_conditions_and_what_is_kept(parts):
    pipeline, params, dataset = parts
    seen = []
    result = evaluate(
        pipeline, params, dataset, random.key(3), block=3, keep=["image"], edit=control,
        conditions={"patch": make_patches(pipeline, params), "none": make_patches(pipeline, params)},
        progress=lambda done, total: seen.append((done, total)),
    )  # fmt: skip
    assert seen == [(3, 4), (4, 4)]
    assert conditions_of(result.table) == ["patch", "none"]
    assert result.table["digest/patch"].tolist() == result.table["digest/none"].tolist()
    assert (result.table["sample/implant/opacity/0"] == 0).all()
    assert result.kept["patch"]["image"].shape == (4, 3, 48, 64)
    assert tensor_digest(result.kept["none"]["image"][1]) == result.table["digest/none"][1]


def test_what_cannot_be_evaluated_is_refused(parts):
    pipeline, params, dataset = parts
    none = {"none": make_patches(pipeline, params)}
    with pytest.raises(ValueError, match=r"evaluate\(conditions\) must hold 'patch', .*, got \['none'\]"):
        evaluate(pipeline, params, dataset, random.key(0), conditions=none)
    with pytest.raises(ValueError, match="no value 'imgae'; did you mean 'image'"):
        evaluate(pipeline, params, dataset, random.key(0), keep=["imgae"])
    with pytest.raises(ValueError, match=r"'logo' must be \[3, h, w\], in color, got \[4, 5, 6\]"):
        evaluate(pipeline, params, dataset, random.key(0), pictures={"logo": torch.zeros(4, 5, 6)})


def test_execution():
    here = Execution.current(16)
    with here._replace(threads=2, torch="1.0").recreated() as differences:
        assert torch.get_num_threads() == 2
    assert differences == [f"torch: 1.0 was recorded, {torch.__version__} is here"]
    assert torch.get_num_threads() == here.threads


# Rates


def test_success_counts_only_what_is_found_without_a_patch():
    table = {
        "image_id": np.array([0, 0, 1, 2, 3]),
        "found/patch": np.array([False, True, False, False, True]),
        "found/noise": np.array([True, True, True, False, True]),
        "found/none": np.array([True, True, True, False, True]),
        "displaced/patch": np.array([True, False, False, True, False]),
        "displaced/noise": np.zeros(5, bool),
    }
    rates = success(table)
    assert (rates.rates["patch"].value, rates.rates["patch"].count) == (0.5, 4)
    assert rates.rates["patch"].photographs == 3
    assert (rates.displaced["patch"].value, rates.gone["patch"].value) == (0.25, 0.25)
    assert rates.rates["noise"].value == 0.0
    assert rates.over["noise"].value == 0.5
    assert (rates.clean.value, rates.clean.count) == (0.8, 5)
    assert "none" not in rates.rates
    flat = rates.scalars()
    assert (flat["success/patch"], flat["success/over/noise"], flat["success/clean"]) == (0.5, 0.5, 0.8)
    with pytest.raises(ValueError, match="no metric 'seen'"):
        success(table, "seen")


def test_what_is_missed_counts_all_objects_and_what_the_score_loses_only_the_found():
    rng = np.random.default_rng(0)
    table = {
        "image_id": np.repeat(np.arange(10), 2),
        "has_object/none": np.arange(20) % 5 > 0,
        **{f"best_score/{c}": rng.uniform(size=20) for c in ("patch", "noise", "none")},
    }
    real = table["has_object/none"]
    table |= {f"found/{c}": (table[f"best_score/{c}"] > 0.4) & real for c in ("patch", "noise", "none")}
    rates = success(table)
    found = table["found/none"]
    for c in ("patch", "noise", "none"):
        missed = rates.missed[c]
        assert (missed.value, missed.count) == (1 - table[f"found/{c}"][real].mean(), 16)
        assert missed.low < missed.value < missed.high
    assert rates.missed["none"].value == pytest.approx(1 - rates.clean.value)
    for c in ("patch", "noise"):
        lost = (table["best_score/none"] - table[f"best_score/{c}"])[found]
        assert rates.drop[c] == bootstrap_mean(lost, table["image_id"][found])
        assert rates.drop[c].value == pytest.approx(lost.mean())
        assert rates.rates[c].count == rates.drop[c].count == found.sum()
        assert rates.rates[c].value == pytest.approx((~table[f"found/{c}"])[found].mean())
    assert list(rates.missed) == ["patch", "noise", "none"]
    assert list(rates.drop) == ["patch", "noise"]
    flat, whole = rates.scalars(), rates.to_json()
    assert flat["success/missed/none"] == rates.missed["none"].value
    assert flat["success/drop/noise"] == rates.drop["noise"].value
    assert whole["missed"]["patch"]["count"] == 16
    assert whole["clean"] == rates.clean._asdict()
    del table["best_score/noise"]
    assert success(table).drop == {}


def test_rows_without_an_object_enter_no_mean():
    """Their scores of 0 look like success, and their deltas of 0 like failure."""
    rng = np.random.default_rng(1)
    real = np.arange(24) % 3 > 0
    table = {"image_id": np.repeat(np.arange(12), 2)}
    for group in ("", "a/"):
        results = {c: rng.uniform(0.2, 1.0, 24) * real for c in ("patch", "none")}
        table |= {f"{group}best_score/{c}": score for c, score in results.items()}
        table |= {f"{group}found/{c}": score > 0.5 for c, score in results.items()}
        table |= {f"{group}has_object/{c}": real for c in results}
        table[f"{group}best_score/delta"] = results["patch"] - results["none"]
        table[f"{group}vanish/patch"] = rng.uniform(size=24) * real
    found = scalars(Evaluation(table, {}, {}))
    errors = standard_errors(Evaluation(table, {}, {}))
    alone = {name: column[real] for name, column in table.items()}
    for name in ("best_score/patch", "a/best_score/delta", "vanish/patch", "a/found/none"):
        assert found[name] == pytest.approx(float(alone[name].mean()))
        assert found[name] != pytest.approx(float(table[name].mean()))
        assert errors[name] == pytest.approx(standard_errors(Evaluation(alone, {}, {}))[name])
    assert found["has_object/patch"] == found["a/has_object/none"] == pytest.approx(2 / 3)
    none = scalars(Evaluation({**table, "has_object/none": np.zeros(24, bool)}, {}, {}))
    assert np.isnan(none["best_score/patch"])
    plain = {name: column for name, column in table.items() if "has_object" not in name}
    assert scalars(Evaluation(plain, {}, {}))["best_score/patch"] == table["best_score/patch"].mean()


def test_the_table_for_people_has_denominators_and_counts():
    table = {
        "image_id": np.arange(30),
        **{f"found/{c}": np.arange(30) < n for c, n in {"patch": 6, "noise": 20, "none": 24}.items()},
        **{f"best_score/{c}": np.full(30, v) for c, v in {"patch": 0.3, "noise": 0.6, "none": 0.8}.items()},
    }
    console = Console(width=160, record=True, file=io.StringIO())
    console.print(success_table("a title", success(table), {"more": ["x", "y"]}))
    said = " ".join(console.export_text().split())
    for text in (
        "of 24 found", "75.0 [", "no patch 20.0 (6)", "trained patch 0.50, noise 0.20",
        "missed %, of all 30 rows with an object: trained patch 80.0 (24), noise 33.3 (10)",
    ):  # fmt: skip
        assert text in said, said
    lines = str(success(table)).splitlines()
    assert lines[0].startswith("patch              75.0 % [")
    assert lines[-1].startswith("patch minus noise  58.3 % [")


def test_nothing_found_is_no_rate_but_no_crash():
    table = {"image_id": np.arange(3), **{f"found/{c}": np.zeros(3, bool) for c in ("patch", "none", "flat")}}
    rates = success(table)
    assert np.isnan(rates.rates["patch"].value)
    assert np.isnan(rates.over["flat"].value)
    assert rates.clean.value == 0.0
    assert rates.missed["none"].value == 1.0
    Console(file=io.StringIO()).print(success_table("", rates))


def test_curve_over_thresholds():
    table = {
        "image_id": np.arange(4),
        "best_score/none": np.array([0.9, 0.7, 0.4, 0.2]),
        "best_score/patch": np.array([0.5, 0.1, 0.3, 0.1]),
    }
    curve = threshold_curve(table, [0.3, 0.6, 0.95], "patch")
    assert [(r.value, r.count) for r in curve[:2]] == [(1 / 3, 3), (1.0, 2)]
    assert np.isnan(curve[2].value)


# Looking changes nothing (X3)


@pytest.mark.slow
def test_logging_and_evaluation_on_or_off_give_the_same_patch(trained, tmp_path):
    expected = parameters(trained)
    variants = {
        "silent": {"tensorboard": False, "validation": False, "checkpoint_every": 100},
        "chatty": {"tensorboard": True, "every": 2, "checkpoint_every": 1, "profile_steps": 2},
        "other block": {"block": 5, "num_draws": 1},
    }
    for name, settings in variants.items():
        run = train(load_study(make_study(tmp_path / name, **settings)))
        assert parameters(run) == expected, name


def test_the_ready_made_caller_is_the_loop_in_the_open(trained):
    study = open_run(trained.folder)[1]
    made = set_up(study)
    state = make_state(made.objective, made.optimizer, random.key(study.seed))
    step = make_step(made.objective, made.optimizer)
    *_, (state, _) = fit(state, step, make_loader(study, made), 6)
    bits = {f"params/{name}": value.numpy().tobytes() for name, value in state.params.items()}
    assert bits == parameters(trained)


def test_the_victim_is_the_same_afterwards(trained, tmp_path):
    study = load_study(make_study(tmp_path))
    model = study.pipeline["victim"].stage.config.model.value

    def digest():
        found = hashlib.sha256()
        for name, tensor in model.state_dict().items():
            found.update(name.encode() + tensor.numpy().tobytes())
        return found.hexdigest()

    before = digest()
    run = train(study)
    assert parameters(run) == parameters(trained)
    assert digest() == before
    assert all(p.grad is None for p in model.parameters())
    assert model.norm.num_batches_tracked == 0
    assert not any(m.training for m in model.modules())


def test_metrics_of_one_of_several_victims_go_by_their_group():
    table = {
        "image_id": np.arange(30),
        **{f"found/{c}": np.arange(30) < n for c, n in {"patch": 6, "noise": 20, "none": 24}.items()},
        **{f"displaced/{c}": np.arange(30) < n for c, n in {"patch": 9, "noise": 20, "none": 24}.items()},
        **{f"best_score/{c}": np.full(30, v) for c, v in {"patch": 0.3, "noise": 0.6, "none": 0.8}.items()},
        "has_object/none": np.arange(30) < 28,
    }
    grouped = {n if n == "image_id" else f"victims/a/{n}": c for n, c in table.items()}
    other = {f"victims/b/{n}": np.zeros_like(c) for n, c in table.items() if n != "image_id"}
    assert repr(success(grouped | other, "victims/a/found")) == repr(success(table))
    np.testing.assert_array_equal(effects(grouped | other, "victims/a/found"), np.full(30, 0.5))
    only_found = {n: c for n, c in table.items() if "score" not in n}
    np.testing.assert_array_equal(effects(only_found), ((np.arange(30) >= 6) & (np.arange(30) < 24)))


def test_an_evaluation_pictures_the_largest_and_smallest_effects(trained, monkeypatch):
    captions = []
    monkeypatch.setattr(
        "fpatch.runs.figures.make_figure", lambda *a: captions.append(a[3]) or torch.zeros(3, 4, 4)
    )
    run, opened = open_run(trained.folder)
    state, _ = run.load_checkpoint("best", set_up(opened).initial)
    table = run.load_table("test")
    picture_effects(opened, state.params, set_up(opened).dataset.split("test"), table, "test")
    effect = effects(table)
    ordered = np.argsort(-effect, kind="stable").tolist()
    largest = list({int(table["image_id"][row]): effect[row] for row in reversed(ordered)}.items())[::-1]
    smallest = {int(table["image_id"][row]): effect[row] for row in ordered}
    top = sorted(largest, key=lambda entry: -entry[1])[:2]  # four images
    last = sorted((e for image, e in smallest.items() if image not in dict(top)), reverse=True)
    ends = [*(e for _, e in top), *last]
    expected = [f"patch, score {abs(e):.2f} {'lower' if e > 0 else 'higher'}" for e in ends]
    assert captions == [expected]
    assert (run.folder / "figures/test-effects.png").stat().st_size > 5000


def test_a_row_without_an_object_is_pictured_neither_as_strong_nor_as_weak(trained, monkeypatch):
    evaluate_run(trained.folder)
    table = dict(trained.load_table("test"))
    table["has_object/none"] = np.arange(len(table["image_id"])) >= 3
    table["best_score/patch"] = table["best_score/none"] - np.linspace(1, -1, len(table["image_id"]))
    chosen = []

    def note(dataset, table, rows, place):
        chosen.extend(rows.tolist())
        raise InterruptedError

    monkeypatch.setattr("fpatch.runs.figures.logged_rows", note)
    _, study = open_run(trained.folder)
    with pytest.raises(InterruptedError):
        picture_effects(study, {}, set_up(study).dataset.split("test"), table, "test")
    assert chosen[0] == 3
    assert set(chosen).isdisjoint({0, 1, 2})


def test_objects_of_several_victims_are_counted_each_in_its_group():
    valid = torch.tensor([[True, False, False], [True, True, False]])
    found = {"patch": [[0, 0, 0], [1, 0, 0]], "none": [[1, 0, 0], [1, 1, 0]]}
    results = {
        c: {
            "v/a/object_found": torch.tensor(rows).bool(),
            "v/b/object_found": valid,
            "v/a/object_valid": valid,
            "v/b/object_valid": valid,
        }
        for c, rows in found.items()
    }
    batch = {"image_id": torch.tensor([4, 9]), "draw": torch.zeros(2, dtype=torch.int64)}
    metrics = list(results["patch"])
    every = torch.ones(2, dtype=torch.bool)
    for values in results.values():
        values["finite"] = {"v/a/": every, "v/b/": every}
    columns = object_columns(results, batch, metrics)
    assert columns["image_id"].tolist() == [4, 9, 9]
    assert columns["v/a/found/patch"].tolist() == [False, True, False]
    assert columns["v/b/found/none"].tolist() == [True] * 3
    rates = of_objects(columns, "v/a/found")
    assert rates.clean.value == 1.0
    assert rates.missed["patch"].value == pytest.approx(2 / 3)


@pytest.mark.parametrize("groups", [("v/a/", "v/b/"), ("v/b/", "v/a/")])
def test_a_goal_of_one_victim_leaves_out_no_object_of_another(groups):
    """Victim a has the goal 2 and does not ask about the object of that class; victim b asks about both."""
    label = torch.tensor([[2, 0], [0, 2]])
    results = {}
    for c, found in {"patch": [[0, 0], [1, 0]], "none": [[1, 1], [1, 0]]}.items():
        found, results[c] = torch.tensor(found).bool(), {}
        for group in groups:
            asked = label != 2 if group == "v/a/" else torch.ones_like(found)
            entries = {"found": found & asked, "valid": asked, "label": label}
            entries |= {"reached": ~found & asked} if group == "v/a/" else {}
            results[c] |= {f"{group}object_{n}": v for n, v in entries.items()}
        results[c]["finite"] = dict.fromkeys(groups, torch.ones(2, dtype=torch.bool))
    batch = {"image_id": torch.tensor([4, 9]), "draw": torch.zeros(2, dtype=torch.int64)}
    columns = object_columns(results, batch, [n for n in results["patch"] if n != "finite"])
    assert columns["label"].tolist() == [2, 0, 0, 2]
    targeted, untargeted = (of_objects(columns, f"{group}found") for group in ("v/a/", "v/b/"))
    assert (targeted.rates["patch"].value, targeted.rates["patch"].count) == (0.5, 2)
    assert (targeted.clean.value, targeted.clean.count) == (1.0, 2)
    assert (untargeted.rates["patch"].value, untargeted.rates["patch"].count) == (2 / 3, 3)
    assert (untargeted.clean.value, untargeted.clean.count) == (0.75, 4)
    assert (untargeted.missed["patch"].value, targeted.missed["patch"].value) == (0.75, 0.5)
    assert targeted.gain == {}  # without a score of the goal
    assert effects(columns, "v/a/found").tolist() == [0, 1, 0, 0]


def test_a_goal_of_one_victim_leaves_out_no_row_of_another():
    """A classifier without a goal writes no `has_object`: the means of its metrics are over all rows."""
    rng = np.random.default_rng(2)
    label, sure = np.arange(24) // 2 % 3, rng.uniform(size=24)
    table = {"image_id": np.arange(24), "v/a/label": label, "v/b/label": label, "v/b/confidence/patch": sure}
    table |= {
        f"v/a/{n}/{c}": (label != 2) & (sure > 0.5) for n in ("found", "reached") for c in ("patch", "none")
    }
    table |= {f"v/a/has_object/{c}": label != 2 for c in ("patch", "none")}
    table |= {"v/a/confidence/patch": sure}
    found = scalars(Evaluation(table, {}, {}), "v/a/found")
    assert found["v/b/confidence/patch"] == pytest.approx(sure.mean())
    assert found["v/a/confidence/patch"] == pytest.approx(sure[label != 2].mean())
    top = {n.removeprefix("v/a/"): c for n, c in table.items()}
    assert scalars(Evaluation(top, {}, {}))["v/b/confidence/patch"] == pytest.approx(sure.mean())
    top["label"] = np.where(np.arange(24) < 6, -1, label)  # rows without an object
    assert scalars(Evaluation(top, {}, {}))["v/b/confidence/patch"] == pytest.approx(sure[6:].mean())


def test_a_control_may_begin_with_delta_and_not_be_called_so():
    table = {
        f"found/{n}": np.zeros(3, bool) for n in ("patch", "none", "delta_print", "delta", "delta/noise")
    }
    assert conditions_of(table) == ["patch", "delta_print", "none"]
    patches = {"patch": {"a": torch.zeros(3, 4, 4)}}
    for name in ("patch", "noise", "delta", "a/b"):
        with pytest.raises(ValueError, match=r"make_controls\(pictures\): (a control cannot|the name)"):
            make_controls(patches, random.key(0), {name: torch.zeros(3, 2, 2)})
