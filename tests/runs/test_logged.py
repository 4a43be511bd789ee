"""What TensorBoard and MLflow show of a run."""

import json
from pathlib import Path

from log_stores import local_uri, mlflow_client, read_events

from fpatch.demo.tiny import tiny_study
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.training import train


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
