"""Every benchmark suite, in its small form: that it runs, and that what it writes can be read."""

import importlib.util
import json
import math
import sys
from pathlib import Path
from types import ModuleType

import pytest
from inductor import with_inductor
from typecheck import unchecked

from fpatch import random
from fpatch.tune import Sweep

FOLDER = Path(__file__).parents[1] / "benchmarks"
SUITES = sorted(p.stem for p in FOLDER.glob("*.py") if p.stem not in ("harness", "workloads"))

HARTMANN6 = (0.20169, 0.150011, 0.476874, 0.275332, 0.311652, 0.6573)
"""Where the function of Hartmann is greatest, as published."""
RATE = {
    "optimizer.name": "adam",
    "optimizer.learning_rate": 0.05,
    "train.batch_size": 32,
    "objective.weights.total_variation": 0.01,
    "pipeline.implant.scale.low": 0.75,
}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, FOLDER / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def _importable(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(FOLDER))


LONG = ("records", "sweep", "memory", "evaluation", "data", "search", "start")
MARKS: dict[str, pytest.MarkDecorator] = {name: pytest.mark.slow for name in LONG} | {
    "random_draws": with_inductor
}
"""Marks of suites; the longest are slow, so that the tests of every change take eight minutes."""


@pytest.mark.parametrize("suite", [pytest.param(name, marks=MARKS.get(name, ())) for name in SUITES])
def test_small_form_writes_figures(suite: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "record.json"
    with unchecked():  # which a compiler cannot trace
        load(suite).main(["--small", "--json", str(path)])
    record = json.loads(path.read_text())
    assert record["small"] is True
    assert record["machine"]["torch"]
    assert record["figures"]
    printed = capsys.readouterr().out
    for figure in record["figures"]:
        assert figure["workload"] in printed
        numbers = [v for v in figure.values() if isinstance(v, int | float)]
        numbers += [x for v in figure.values() if isinstance(v, dict) for x in v.values()]
        assert numbers
        assert all(math.isfinite(x) for x in numbers)


def test_quartiles_are_of_the_ratios_within_rounds() -> None:
    harness = load("harness")
    times = harness.Times({"a": [2.0, 30.0, 4.0], "b": [1.0, 10.0, 4.0]})
    assert times.ratio("a", "b") == (1.5, 2.0, 2.5)
    assert times.ms("a") == 4000.0


def test_functions_are_called_in_turn_after_the_warmup() -> None:
    calls: list[str] = []
    harness = load("harness")
    harness.interleave({"a": lambda: calls.append("a"), "b": lambda: calls.append("b")}, 2, warmup=1)
    assert calls == ["a", "b", "a", "b", "a", "b"]


def test_a_gpu_is_busy_while_any_kernel_runs() -> None:
    covered = load("harness").covered
    assert covered([(4.0, 5.0), (0.0, 2.0), (1.0, 3.0), (1.5, 1.7)]) == 0.8
    assert covered([(2.0, 3.0)]) == 1.0


def test_what_was_measured_before_the_end_is_kept(tmp_path: Path) -> None:
    harness = load("harness")
    record = harness.Record("x", harness.Options(json=str(tmp_path / "x.json")))
    for i in range(2):
        record.add(f"workload {i}", ms=1.5)
        kept = json.loads((tmp_path / "x.json").read_text())["figures"]
        assert kept == [{"workload": f"workload {n}", "ms": 1.5} for n in range(i + 1)]


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("branin", {"x": math.pi, "y": 2.275}),
        ("hartmann6", dict(zip([f"x{i}" for i in range(6)], HARTMANN6, strict=True))),
        ("rate", RATE),
    ],
)
def test_the_problems_of_a_search_have_the_best_values_that_their_regret_counts_from(
    name: str, settings: dict[str, float]
) -> None:
    problem = load("search").PROBLEMS[name]
    drawn = [problem.truth(s) for s in problem.space.draw(random.key(0), 500)]
    assert problem.space.foreign_setting(settings) is None
    assert problem.truth(settings) == pytest.approx(problem.best, abs=1e-5)
    assert max(drawn) < problem.best
    assert len(set(drawn)) == 500


def test_our_own_search_is_the_default_only_with_a_gain_over_those_of_optuna() -> None:
    """The rule of `search.py`, applied to its record over 50 seeds."""
    figures = json.loads((FOLDER / "results" / "search-cpu.json").read_text())["figures"]
    rivals = [f for f in figures if f["workload"].endswith((", optuna_gp", ", tpe"))]
    assert len(rivals) == 6
    assert {f["seeds"] for f in figures} == {50}
    gains = all(f["noisy_gp_minus_regret"]["high"] < 0 for f in rivals)
    stays = all(
        f["noisy_gp_minus_regret"]["high"] < 0 or f["noisy_gp_minus_late"]["high"] < 0
        for f in rivals
        if f["workload"].startswith("branin")
    )
    assert (Sweep(num_trials=1).search == "noisy_gp") == gains
    assert stays  # else it goes
