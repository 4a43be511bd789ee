"""Every metric where two processes train: the numbers are those of one, and nobody waits for the other."""

import subprocess
import sys
from pathlib import Path

import pytest
from study_fixture import OBJECT_METRICS, environment, make_study, read_records
from sweeps import sweep_file, the_sweep

from fpatch import metrics
from fpatch.evaluation.means import scalars
from fpatch.graph.stage import Definition
from fpatch.runs.folder import Run
from fpatch.runs.opening import open_run
from fpatch.study.config import load_study
from fpatch.study.splits import evaluate_split
from fpatch.study.study import Study

SECTIONS = (
    OBJECT_METRICS
    + """
[pipeline.halves]
stage = "not_finite:halves"
phases = ["eval"]
[pipeline.classes]
stage = "metrics.class_hit"
phases = ["eval"]
writes.found = "classes/found"
writes.confidence = "classes/confidence"
writes.answer = "classes/answer"
writes.label = "classes/label"
[pipeline.accuracy]
stage = "metrics.torchmetric"
phases = ["eval"]
reads = {preds = "logits", target = "target"}
metric = {loader = "metrics.torchmetrics", arguments = {name = "MulticlassAccuracy", num_classes = 2}}
[pipeline.curve]
stage = "metrics.torchmetric"
phases = ["eval"]
reads = {preds = "logits", target = "target"}
metric = {loader = "metrics.torchmetrics", arguments = {name = "MulticlassAUROC", num_classes = 2}}
"""
)


def with_every_metric(path: Path) -> Path:
    path.write_text(path.read_text().replace("[objective]", f"{SECTIONS}[objective]"))
    return path


def check_equals_one(run: Run) -> None:
    """What two processes logged is what one measures with the same patch, to the bit."""
    run, study = open_run(run.folder)
    again = measure_alone(run, study)
    logged = [r for r in read_records(run.folder) if r["kind"] == "scalars" and r["step"] == 6]
    values = {n: v for r in logged for n, v in r["values"].items()}
    for name, value in again.items():
        found = values[f"validation/{name}"]
        assert found == pytest.approx(value, abs=0, nan_ok=True) or (found is None and value != value), name
    for path in ("precision/map", "accuracy/MulticlassAccuracy", "curve/MulticlassAUROC"):
        assert f"{path}/patch" in again


def measure_alone(run: Run, study: Study) -> dict[str, float]:
    dataset = study.data.open().split("validation")
    result = evaluate_split(study, run.load_params("last"), dataset, "validation", lambda *_: None)
    return scalars(result, study.evaluate.metric)


def test_the_study_has_every_metric_of_the_package(tmp_path):
    used = {n.stage.definition.name for n in load(tmp_path).pipeline.values()}
    stages = (getattr(metrics, name) for name in metrics.__all__)
    known = {s.name for s in stages if isinstance(s, Definition) and s.role == "metric"}
    assert len(known) >= 5
    assert known <= used


def load(folder: Path) -> Study:
    return load_study(with_every_metric(make_study(folder)))


def test_two_processes_measure_what_one_does(tmp_path):
    """A collective of a library would wait for process 1, which validates nothing."""
    study = with_every_metric(make_study(tmp_path))
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    done = subprocess.run(
        [*command, "-m", "fpatch", "train", str(study)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=170,
    )
    assert done.returncode == 0, done.stderr
    (folder,) = (tmp_path / "runs").glob("*-tiny")
    assert Run.open(folder).processes == 2
    check_equals_one(Run.open(folder))


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_sweep_of_two_processes_measures_what_one_does(tmp_path):
    sweep = (
        'num_trials = 1\nsearch = "random"\nprocesses = 2\ncpus = 0.5\nobjective = "precision/map_50/patch"'
    )
    study = with_every_metric(sweep_file(tmp_path, sweep))
    done = subprocess.run(
        [sys.executable, "-m", "fpatch", "sweep", str(study)],
        cwd=tmp_path,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )
    assert done.returncode == 0, done.stderr
    journal = the_sweep(tmp_path)
    (entry,) = journal.entries()
    assert entry.outcome is not None
    assert entry.outcome.status == "finished", entry.outcome.traceback
    run = Run.open(journal.run_folder(entry.trial.name))
    assert run.processes == 2
    check_equals_one(run)
