"""What TensorBoard and MLflow show of a run."""

import json
from pathlib import Path

import pytest
from log_stores import local_uri, mlflow_client, read_events

from fpatch.demo.tiny import tiny_study
from fpatch.log.records import read_scalars
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.manifest import check_files
from fpatch.runs.training import train
from fpatch.runs.verifying import verify_run


def test_tensorboard_shows_loss_and_success_first_and_a_test_at_the_step_of_its_patch(tmp_path):
    settings = {"log.tensorboard": True, "evaluate.every": 2, "evaluate.best": "confidence/patch"}
    run = train(tiny_study(tmp_path, settings))
    step = run.checkpoint_step("best")
    assert step == 2
    for _ in range(2):
        evaluate_run(run.folder)
    events = read_events(run.folder)
    shown = sorted(events.Tags()["scalars"])
    assert shown[:3] == ["main/loss", "main/success in the test", "main/success in the validation"]
    assert [e.step for e in events.Scalars("main/loss")] == [1, 2, 3, 4]
    assert [e.step for e in events.Scalars("test/success/patch")] == [step]
    assert [e.step for e in events.Images("test/control and patched")] == [step]


def test_mlflow_holds_the_best_checkpoint_and_the_patch(runs: Path):
    folder = runs / "study"
    folder.mkdir()
    run = train(tiny_study(folder, {"log.runs": str(runs), "log.mlflow": True}))
    with mlflow_client(local_uri(runs)) as client:
        run_id = json.loads((run.folder / "mlflow.json").read_text())["run_id"]
        found = {f.path for name in ("checkpoints", "patch") for f in client.list_artifacts(run_id, name)}
    assert found == {"checkpoints/best.safetensors", "checkpoints/last.safetensors", "patch/tag.png"}


def test_numbers_that_come_out_otherwise_are_logged_anew(tmp_path):
    """The log, TensorBoard and the table say the same after a second evaluation of one checkpoint."""
    run = train(tiny_study(tmp_path, {"log.tensorboard": True}))
    step = run.checkpoint_step("best")
    evaluate_run(run.folder)
    size = (run.folder / "records.jsonl").stat().st_size
    evaluate_run(run.folder)
    again = (run.folder / "records.jsonl").read_bytes()[size:]
    assert {json.loads(line)["kind"] for line in again.splitlines()} <= {"artifacts", "files"}

    first = read_scalars(run.folder, "test/")
    config = run.read_json("config.json")
    config["pipeline"]["exposure"]["stops"] = [-0.2, -0.2]
    run.write_config(config)
    evaluate_run(run.folder)
    last = read_scalars(run.folder, "test/")
    changed = [name for name in last if last[name] != first[name]]
    assert changed
    assert set(changed) < set(last)
    events = read_events(run.folder)
    for name in last:
        values = [first[name], last[name]] if name in changed else [last[name]]
        assert [e.value for e in events.Scalars(name)] == pytest.approx([float(v) for v in values])
    differences = verify_run(run.folder).differences
    assert not any("records.jsonl" in sentence or "images/" in sentence for sentence in differences)
    assert not any("images/" in sentence for sentence in check_files(run).damage)
    pictures = [e.step for e in events.Images("test/control and patched")]
    assert pictures == [step, step]
