"""The best checkpoint: which one of equal results, and where its step is printed."""

import json
import math
import re

import pytest
from study_fixture import make_study, parameters

from fpatch.cli.main import main
from fpatch.runs.folder import Run
from fpatch.runs.standing import go_back
from fpatch.runs.training import resume, train
from fpatch.runs.validating import _is_better
from fpatch.study.config import load_study
from fpatch.study.setup import set_up

NAN = math.nan


@pytest.mark.parametrize(
    ("later", "earlier", "better"),
    [
        ((0.5, 0.1), (0.4, 0.9), True),
        ((0.4, 0.9), (0.5, 0.1), False),
        ((0.5, 0.2), (0.5, 0.1), True),
        ((0.5, 0.1), (0.5, 0.2), False),
        ((0.5, 0.1), (0.5, 0.1), True),
        ((0.5, NAN), (0.5, NAN), True),
        ((0.5, NAN), (0.5, 0.1), False),
        ((0.5, 0.1), (0.5, NAN), True),
        ((NAN, 0.9), (0.0, 0.1), False),
        ((0.0, 0.1), (NAN, 0.9), True),
        ((NAN, NAN), (NAN, NAN), True),
    ],
)
def test_which_is_better(later, earlier, better):
    assert _is_better(later, earlier) is better


@pytest.fixture(scope="module")
def run(tmp_path_factory) -> Run:
    """Three photographs: no patch of six steps hides an object, so that every validation ties."""
    return train(load_study(make_study(tmp_path_factory.mktemp("best"), every=2)))


def validations(run: Run) -> dict[int, dict[str, float]]:
    records = map(json.loads, (run.folder / "records.jsonl").read_text().splitlines())
    found: dict[int, dict[str, float]] = {}
    for r in records:
        if r["kind"] == "scalars":
            found.setdefault(r["step"], {}).update(r["values"])
    return {s: v for s, v in found.items() if "validation/success/patch" in v}


def test_of_equal_results_the_larger_loss_of_score_is_best(run):
    results = {
        s: (v["validation/success/patch"], v["validation/success/drop/patch"])
        for s, v in validations(run).items()
    }
    assert list(results) == [2, 4, 6]
    assert len({rate for rate, _ in results.values()}) < 3, results
    step = max(results, key=lambda s: results[s])
    assert step != 2
    facts = run.checkpoint_facts("best")
    assert (facts["best_step"], facts["best"], facts["best_effect"]) == (step, *results[step])
    assert run.checkpoint_step("best") == step


def test_a_checkpoint_of_an_earlier_version_goes_on(tmp_path):
    """Its facts know nothing of the score lost: the later of equal results is better."""
    path = make_study(tmp_path, every=2)
    expected = parameters(train(load_study(path)))
    run = train(load_study(make_study(tmp_path / "old", every=2)))
    state, _ = run.load_checkpoint("step-00000004", set_up(load_study(path)).initial)
    old = {"best": 0.0, "best_step": 2}
    go_back(run, "step-00000004")
    for name in ("last", "best"):
        run.save_checkpoint(name, state, **old)
    resume(run.folder)
    assert parameters(run) == expected
    assert run.checkpoint_facts("best")["best_step"] == 6


def test_the_step_is_printed_where_a_result_is(run, tmp_path, capsys):
    step = run.checkpoint_step("best")
    study = run.folder.parent.parent / "study.toml"
    assert main(["resume", str(run.folder)]) == 0
    printed = capsys.readouterr().out
    assert re.search(rf"best checkpoint: step {step}, success/\S+ [\d.]+ in the validation", printed), printed
    for command in (
        ["evaluate", run.folder],
        ["analyze", run.folder],
        ["grid", run.folder, "--over", "camera/exposure/stops=0,0.1"],
    ):
        assert main([str(word) for word in command]) == 0
        printed = " ".join(capsys.readouterr().out.split())
        assert f"checkpoint best (step {step})" in printed or "no importances" in printed
    other = train(load_study(study, {"name": "other"}))
    assert main(["transfer", str(run.folder), str(other.folder), "--out", str(tmp_path / "transfer")]) == 0
    assert f"{run.folder.name} step {step}" in " ".join(capsys.readouterr().out.split())
    written = json.loads((tmp_path / "transfer.json").read_text())
    assert written[run.folder.name]["steps"][run.folder.name] == step
