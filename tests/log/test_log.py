"""The log of a run and its sinks, against the real TensorBoard reader, MLflow store and MLflow server."""

import io
import itertools
import json
import logging
import os
import random
import socket
import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import numpy as np
import pytest
import torch
from log_stores import (
    file_size_limit,
    killed_in_fork,
    local_uri,
    mlflow_client,
    mlflow_server,
    read_events,
    read_mlflow,
)
from PIL import Image
from study_fixture import environment

from fpatch.core.names import safe_name
from fpatch.demo.tiny import tiny_study
from fpatch.log import Log, Records, open_log, records, tensorboard
from fpatch.log import mlflow as mlflow_sink
from fpatch.log.mlflow_client import make_database
from fpatch.log.records import mark_at, read_seal
from fpatch.log.sealed import seal
from fpatch.log.values import to_histogram, to_png
from fpatch.runs.folder import Run
from fpatch.runs.logging import opened_log

STEPS = 8
CHECKPOINT_EVERY = 2


def read_scalars(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Scalars in the log on disk."""
    series: dict[str, list[tuple[int, float]]] = {}
    log = Records(folder)
    for record in log:
        if record["kind"] == "scalars":
            for name, value in record["values"].items():
                series.setdefault(name, []).append((record["step"], float(value)))
    log.close()
    return series


# The log on disk


def test_numbers_of_every_origin_come_back_equal(tmp_path):
    log = open_log(tmp_path, tensorboard=False)
    third = torch.tensor(1 / 3, dtype=torch.float64, requires_grad=True)
    log.scalars(
        7, {"a": 1, "b": np.float32(0.1), "c": third, "d": np.int64(2**40), "e": torch.tensor([True])}
    )
    log.scalars(8, {"a": float("nan"), "b": torch.tensor(float("inf")), "c": np.float16("-inf")})
    log.close()
    series = read_scalars(tmp_path)
    assert series["b"][0] == (7, float(np.float32(0.1)))
    assert series["c"][0] == (7, 1 / 3)
    assert series["d"] == [(7, 2.0**40)]
    assert series["e"] == [(7, 1.0)]
    assert np.isnan(series["a"][1][1])
    assert (series["b"][1][1], series["c"][1][1]) == (np.inf, -np.inf)
    for line in (tmp_path / "records.jsonl").read_text().splitlines():
        json.loads(line, parse_constant=lambda constant: pytest.fail(f"{constant} is not JSON"))


@pytest.mark.parametrize("value", [torch.zeros(2), np.zeros((0,)), 1j, "1", None])
def test_what_is_not_one_number_is_refused_by_name(tmp_path, value):
    log = open_log(tmp_path, tensorboard=False)
    with pytest.raises(ValueError, match="'loss' must be one number"):
        log.scalars(0, {"loss": value})
    assert log.close() == []
    assert (tmp_path / "records.jsonl").read_bytes() == b""


def test_images_are_clamped_and_rounded(tmp_path):
    values = np.array([-0.2, 0.0, 0.999, 1.01, 0.5, 127.4 / 255, 127.6 / 255, np.nan, np.inf, 1.0, 0.1, 0.9])
    expected = [0, 0, 255, 255, 128, 127, 128, 0, 255, 255, 26, 230]
    log = open_log(tmp_path, tensorboard=False)
    color = torch.stack([torch.zeros(3, 4), torch.ones(3, 4), torch.from_numpy(values.reshape(3, 4))])
    log.images(
        3, {"gray/a:b": values.reshape(1, 3, 4), "color": color.to(torch.float32), "half": color.bfloat16()}
    )
    log.close()
    with Image.open(tmp_path / "images/gray/a_b/00000003.png") as image:
        assert image.mode == "L"
        assert np.asarray(image).ravel().tolist() == expected
    with Image.open(tmp_path / "images/color/00000003.png") as image:
        pixels = np.asarray(image)
    assert pixels.shape == (3, 4, 3)
    assert pixels[..., :2].reshape(-1, 2).tolist() == [[0, 255]] * 12
    assert pixels[..., 2].ravel().tolist() == expected


def test_channels_that_are_no_colors_stand_side_by_side():
    image = np.stack([np.full((4, 5), level) for level in (0.0, 1.0)])
    pixels = np.asarray(Image.open(io.BytesIO(to_png("x", image))))
    assert pixels.tolist() == [[0] * 5 + [255] * 5] * 4


@pytest.mark.parametrize("image", [np.zeros((4, 5)), torch.zeros(3, 4, 5).byte(), np.zeros((0, 4, 5)), 0.5])
def test_an_image_of_another_form_is_refused(image):
    with pytest.raises(ValueError, match=r"'x' must be floats \[3, h, w\] or \[1, h, w\]"):
        to_png("x", image)


@pytest.mark.parametrize("values", [[1e30, 1e30], [1.0, 1.0 + 2**-52], [-1e16, -1e16]])
def test_a_histogram_of_what_is_hardly_apart(values):
    made = to_histogram("x", np.array(values))
    assert (sum(made["counts"]), made["min"], made["max"]) == (2, *values)
    assert made["range"][0] < values[0] <= values[1] < made["range"][1]


def test_safe_names():
    assert safe_name("loss/a-b.c_d e") == "loss/a-b.c_d e"
    assert safe_name("mAP@0.5:0.95") == "mAP_0.5_0.95"
    assert safe_name("/../a//./Ä") == "_/_/a/_/_/Ä"
    long = {safe_name("n" * 300 + end) for end in "ab"}
    assert len(long) == 2
    assert {len(name) for name in long} == {200}
    wide = safe_name("標" * 90)
    assert 190 < len(wide.encode()) <= 200  # no file system has names of more than 255 bytes
    assert wide != safe_name("標" * 91)
    assert safe_name("標" * 60) == "標" * 60


@pytest.mark.parametrize(
    "entry", [{"bytes": "1"}, {"bytes": {}}, {"bytes": 1.5}, {"bytes": None}, {"step": "x"}, {"step": None}]
)
def test_a_seal_of_the_records_that_holds_no_numbers_is_broken(tmp_path, entry):
    """Somebody who seals it again may have put anything into it."""
    log = open_log(tmp_path, tensorboard=False)
    log.scalars(1, {"loss": 0.5})
    log.commit(1)
    log.close()
    path = tmp_path / "records.json"
    value = json.loads(path.read_bytes())
    path.write_bytes(seal(value | entry))
    with pytest.raises(ValueError, match=r"records.json is not as it was written; restore it"):
        read_seal(tmp_path)
    path.write_bytes(seal(value | {"bytes": 10**30}))
    sealed = read_seal(tmp_path)
    assert sealed is not None
    assert mark_at(tmp_path, sealed[1].size) is None


def test_two_names_with_one_safe_form_are_refused_even_after_a_resume(tmp_path):
    log = open_log(tmp_path, tensorboard=False)
    log.scalars(1, {"success>0.5": 1.0})
    log.text(1, {"success<0.5": "another kind may"})
    with pytest.raises(ValueError, match=r"'success<0.5' and 'success>0.5' are both 'success_0.5'"):
        log.scalars(1, {"success<0.5": 0.0})
    log.close()
    log = open_log(tmp_path, tensorboard=False, resume_step=1)
    with pytest.raises(ValueError, match="rename one"):
        log.scalars(2, {"success<0.5": 0.0})
    log.close()


def test_a_name_has_one_value_per_step(tmp_path):
    log = open_log(tmp_path, tensorboard=False)
    log.scalars(1, {"a": 1.0})
    log.scalars(1, {"b": 1.0})
    with pytest.raises(ValueError, match="'a' twice at 1"):
        log.scalars(1, {"a": 2.0})
    log.commit(1)
    with pytest.raises(ValueError, match="at least 1"):
        log.commit(0)
    log.close()

    log = open_log(tmp_path, tensorboard=False, resume_step=1)
    log.scalars(0, {"start": 0.0})
    log.scalars(1, {"a": 1.0, "b": 1.0, "c": 3.0})  # the part of step 1 after its checkpoint, once more
    log.close()
    log = open_log(tmp_path, tensorboard=False, resume_step=1)
    log.scalars(0, {"start": 0.0})  # what every start of the program records
    log.close()
    assert read_scalars(tmp_path) == {
        "a": [(1, 1.0)], "b": [(1, 1.0)], "c": [(1, 3.0)], "start": [(0, 0.0)],
    }  # fmt: skip


def test_descriptions_are_plain_and_stand_once(tmp_path):
    log = open_log(tmp_path, tensorboard=False)
    params = {"range": (0.5, torch.tensor(2)), "inf": float("inf"), "path": Path("a/b"), "none": None}
    for step in (None, 0, 0):
        if step is not None:
            log = open_log(tmp_path, tensorboard=False, resume_step=step)
        log.params(params)
        log.dataset("toy", "d1", "scenes.csv", num_rows=np.int64(17))
        log.close()
    log = open_log(tmp_path, tensorboard=False, resume_step=0)
    log.params(params | {"none": 1})
    log.close()
    lines = [json.loads(line) for line in (tmp_path / "records.jsonl").read_text().splitlines()]
    assert [line["kind"] for line in lines] == ["params", "input", "params"]
    assert lines[0]["values"] == {"range": [0.5, 2], "inf": "inf", "path": "a/b", "none": None}
    assert lines[1]["values"]["toy"]["profile"] == {"num_rows": 17}
    assert lines[2]["values"] == {"none": 1}


def test_artifacts_must_be_files_of_the_run_folder(tmp_path):
    log = open_log(tmp_path / "run", tensorboard=False)
    (tmp_path / "outside").touch()
    with pytest.raises(FileNotFoundError, match="absent"):
        log.artifacts(["absent"])
    with pytest.raises(ValueError, match="must lie in the run folder"):
        log.artifacts(["../outside"])
    log.close()


def test_a_run_that_has_a_log_is_only_resumed_on_purpose(tmp_path):
    log = open_log(tmp_path, tensorboard=False)
    log.scalars(1, {"a": 1.0})
    log.close()
    with pytest.raises(FileExistsError, match="resume_step"):
        open_log(tmp_path, tensorboard=False)


def test_resume_drops_later_records_their_images_and_a_torn_line(tmp_path):
    log = open_log(tmp_path, tensorboard=False)
    for step in (1, 2, 3):
        log.scalars(step, {"a": step})
        log.images(step, {"x": torch.rand(3, 4, 5)})
    log.scalars(2, {"late": 2.0})
    log.close()
    path = tmp_path / "records.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(path.read_bytes() + b'{"step": 2, "ti')
    (tmp_path / "images/x/00000009.png").write_bytes(b"an image whose record was never written")

    resumed = Records(tmp_path)
    assert [record["step"] for record in resumed] == [1, 1, 1, 2, 2, 2, 3, 3, 3, 2]  # though torn
    resumed.resume(2)
    assert path.read_bytes() == b"".join(lines[:6] + lines[9:])
    assert sorted(file.name for file in tmp_path.glob("images/x/*")) == ["00000001.png", "00000002.png"]
    (aside,) = (tmp_path / "aside").iterdir()
    assert (aside / "records.jsonl").read_bytes() == b"".join(lines[6:9])
    moved = sorted(file.name for file in aside.glob("images/x/*"))
    assert moved == ["00000003.png", "00000009.png"]
    resumed.write(3, "scalars", {"a": 3.0})
    assert [record["step"] for record in resumed] == [1, 1, 1, 2, 2, 2, 2, 3]
    resumed.close()


def test_a_damaged_line_is_named(tmp_path):
    log = open_log(tmp_path, tensorboard=False)
    log.scalars(1, {"a": 1.0})
    log.scalars(2, {"a": 1.0})
    log.close()
    path = tmp_path / "records.jsonl"
    path.write_bytes(b"{broken\n" + path.read_bytes())
    with pytest.raises(ValueError, match=r"records.jsonl: the line that ends at byte 8 .*broken"):
        open_log(tmp_path, tensorboard=False, resume_step=2)


@pytest.mark.parametrize("kind", ["scalars", "images", "text"])
def test_a_full_disk_is_one_clear_error_and_the_log_stays_whole(tmp_path, kind):
    log = open_log(tmp_path, tensorboard=kind != "scalars")
    value = {"scalars": 0.5, "images": torch.rand(3, 80, 80), "text": "t" * 2000}[kind]

    def fill():
        for step in itertools.count():
            getattr(log, kind)(step, {"x": value})

    with (
        file_size_limit(10_000),
        pytest.raises(OSError, match=r"cannot write .*(records|unf|png)") as error,
    ):
        fill()
    assert "free some space and resume the run" in str(error.value)
    assert error.value.errno
    path = tmp_path / "records.jsonl"
    assert path.read_bytes() == b"" or path.read_bytes().endswith(b"\n")
    assert not list(tmp_path.rglob("*.png"))
    num_kept = len(path.read_bytes().splitlines())
    log.close(finished=False)

    log = open_log(tmp_path, tensorboard=kind != "scalars", resume_step=num_kept)
    getattr(log, kind)(num_kept + 1, {"x": value})
    log.close()
    assert len(path.read_bytes().splitlines()) == num_kept + (2 if kind == "images" else 1)


def test_a_full_disk_while_resuming_leaves_the_log_as_it_was(tmp_path):
    log = open_log(tmp_path, tensorboard=False)
    for step in range(100):
        log.scalars(step, {"x": 0.5})
    log.close()
    before = (tmp_path / "records.jsonl").read_bytes()
    with file_size_limit(1000), pytest.raises(OSError, match=r"records\.jsonl"):
        open_log(tmp_path, tensorboard=False, resume_step=50)
    assert (tmp_path / "records.jsonl").read_bytes() == before
    assert sorted(file.name for file in tmp_path.iterdir()) == ["records.json", "records.jsonl"]


def test_a_sink_of_ones_own(tmp_path):
    heard = []

    class Sink:
        def __init__(self, records):
            heard.append([record["step"] for record in records])

        def write(self, record):
            heard.append(record["step"])

        def commit(self):
            heard.append("commit")

        def close(self, finished):
            heard.append(finished)
            return "mind the step"

    log = open_log(tmp_path, tensorboard=False, sinks=[Sink])
    log.scalars(1, {"a": 1.0})
    log.commit(1)
    log.scalars(2, {"a": 1.0})
    assert log.close(finished=False) == ["mind the step"]
    open_log(tmp_path, tensorboard=False, sinks=[Sink], resume_step=1).close()
    assert heard == [[], 1, "commit", 2, False, [1], "commit", True]


def test_a_missing_package_names_the_extra_and_only_when_asked_for(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "mlflow", None)
    for name in list(sys.modules):
        if name == "tensorboard" or name.startswith("tensorboard.") or name == "fpatch.log.tensorboard":
            monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    open_log(tmp_path / "a", tensorboard=False).close()
    with pytest.raises(ImportError, match=r"pip install 'fpatch\[log\]'"):
        open_log(tmp_path / "b")
    with pytest.raises(ImportError, match=r"pip install 'fpatch\[log\]'"):
        open_log(tmp_path / "c", tensorboard=False, mlflow=True)


def test_importing_the_log_imports_neither():
    code = "import sys, fpatch.log; assert not {'mlflow', 'tensorboard'} & set(sys.modules)"
    subprocess.run([sys.executable, "-W", "error", "-c", code], check=True)


# TensorBoard


def test_tensorboard_reads_back_every_kind(tmp_path):
    log = open_log(tmp_path)
    weights = torch.linspace(-1, 3, 101)
    patch = torch.rand(3, 7, 9)
    log.params({"lr": 0.1, "flag": True, "name": "adam", "range": (1, 2)})
    log.text(0, {"description": "# Head\n\n| a |\n|---|\n| ä |"})
    log.scalars(4, {"loss/a": 0.25, "bad": float("nan"), "high": float("inf")})
    log.images(4, {"patch": patch, "gray": patch[:1]})
    log.histograms(4, {"w": weights, "odd": np.array([1.0, np.nan]), "none": np.zeros(0)})
    live = read_events(tmp_path)  # before any commit
    assert [event.step for event in live.Scalars("loss/a")] == [4]
    log.close()

    events = read_events(tmp_path)
    assert events.Scalars("loss/a")[0].value == 0.25
    assert np.isnan(events.Scalars("bad")[0].value)
    assert events.Scalars("high")[0].value == np.inf
    assert abs(events.Scalars("bad")[0].wall_time - time.time()) < 60
    image = events.Images("patch")[0]
    assert (image.step, image.width, image.height) == (4, 9, 7)
    with Image.open(io.BytesIO(image.encoded_image_string)) as shown:
        assert np.array_equal(np.asarray(shown).transpose(2, 0, 1), (patch.numpy() * 255).round())
    histogram = events.Histograms("w")[0].histogram_value
    assert (histogram.min, histogram.max, histogram.num) == (-1, 3, 101)
    assert histogram.sum == pytest.approx(weights.sum().item(), rel=1e-5)
    assert (len(histogram.bucket), sum(histogram.bucket)) == (50, 101)
    assert histogram.bucket_limit[-1] == 3
    assert events.Histograms("odd")[0].histogram_value.num == 1
    assert "| ä |" in events.Tensors("description")[0].tensor_proto.string_val[0].decode()

    from tensorboard.plugins.hparams import metadata

    content = events.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    hparams = metadata.parse_session_start_info_plugin_data(content).hparams
    assert (hparams["lr"].number_value, hparams["flag"].bool_value) == (0.1, True)
    assert (hparams["name"].string_value, hparams["range"].string_value) == ("adam", "[1, 2]")


def test_a_resumed_run_is_purged_also_for_a_tensorboard_that_is_watching(tmp_path):
    log = open_log(tmp_path)
    for step in range(1, 7):
        log.scalars(step, {"a": 1.0})
    log.close(finished=False)
    watching = read_events(tmp_path)
    log = open_log(tmp_path, resume_step=3)
    for step in range(4, 6):
        log.scalars(step, {"a": 2.0})
    log.close()
    for events in (watching.Reload(), read_events(tmp_path)):
        assert [(event.step, event.value) for event in events.Scalars("a")] == [
            (1, 1.0), (2, 1.0), (3, 1.0), (4, 2.0), (5, 2.0),
        ]  # fmt: skip
    assert sum(path.stat().st_size > 0 for path in (tmp_path / "tensorboard").iterdir()) == 1


# MLflow


def test_mlflow_holds_every_kind(runs, monkeypatch):
    monkeypatch.chdir(runs)
    folder = runs / "first"
    environment, threshold = dict(os.environ), logging.root.manager.disable
    log = open_log(folder, mlflow=True)
    log.params(
        {"lr": 0.1, "odd name!": (1, 2), "empty": "", "long": "x" * 7000} | {f"p{i}": i for i in range(150)}
    )
    log.tags({"task": "vanish"})
    log.dataset("toy", "f" * 64, "scenes.csv", context="test", num_rows=17)
    log.text(0, {"description": "# A run\n" + "y" * 9000})
    (folder / "figures").mkdir()
    (folder / "figures/a.txt").write_text("a")
    log.artifacts(["figures/a.txt", "figures"])
    for step in (1, 2):
        log.scalars(step, {"mAP@0.5": step / 2, "bad": float("nan"), "high": float("inf")})
        log.images(step, {"patch/hood": torch.rand(3, 8, 8)})
        log.histograms(step, {"w": torch.rand(9)})
        log.commit(step)
    assert log.close() == []
    assert dict(os.environ) == environment
    assert logging.root.manager.disable == threshold

    series = read_mlflow(folder, local_uri(runs))
    assert series["mAP_0.5"] == [(1, 0.5), (2, 1.0)]
    assert [np.isnan(value) for _, value in series["bad"]] == [True, True]
    assert all(value > 1e308 for _, value in series["high"])
    with mlflow_client(local_uri(runs)) as client:
        run = client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"])
        assert run.info.status == "FINISHED"
        params = run.data.params
        assert (params["lr"], params["odd name_"], params["empty"], params["p149"]) == (
            "0.1",
            "[1, 2]",
            "",
            "149",
        )
        assert len(params["long"]) == 6000
        assert params["long"].endswith("(cut, whole among the artifacts)")
        assert run.data.tags["task"] == "vanish"
        assert run.data.tags["mlflow.note.content"].startswith("# A run")
        inputs = run.inputs.dataset_inputs[0]
        assert (inputs.dataset.name, inputs.dataset.digest, inputs.tags[0].value) == ("toy", "f" * 36, "test")
        artifacts = Path(run.info.artifact_uri.removeprefix("file://"))
    assert artifacts.is_relative_to(runs / "mlartifacts")
    assert (artifacts / "params/long.txt").read_text() == "x" * 7000
    assert len((artifacts / "text/description/00000000.md").read_text()) == 9008
    assert (artifacts / "figures/a.txt").read_text() == "a"
    images = sorted(path.name for path in artifacts.glob("images/*.png"))
    assert [name.partition("+timestamp")[0] for name in images] == ["patch~hood+step+1", "patch~hood+step+2"]
    assert sorted(path.name for path in runs.iterdir()) == ["first", "mlartifacts", "mlflow.db"]

    import mlflow

    assert mlflow.active_run() is None


def test_mlflow_takes_what_was_sent_already_only_once(runs):
    folder = runs / "again"
    log = open_log(folder, tensorboard=False, mlflow=True)
    log.params({"lr": 0.1})
    log.dataset("toy", "d", "scenes.csv")
    log.scalars(1, {"a": 0.5, "bad": float("nan")})
    log.commit(1)
    noted = json.loads((folder / "mlflow.json").read_text())
    log.close(finished=False)
    # As if killed right after sending; then as if killed right after the run was made, its id not yet noted.
    for state in (noted | {"offset": 0, "crc32": 0}, noted | {"offset": 0, "crc32": 0, "run_id": None}):
        (folder / "mlflow.json").write_text(json.dumps(state))
        assert open_log(folder, tensorboard=False, mlflow=True, resume_step=1).close() == []
    series = read_mlflow(folder, local_uri(runs))
    assert series["a"] == [(1, 0.5)]
    assert len(series["bad"]) == 1
    with mlflow_client(local_uri(runs)) as client:
        assert len(client.get_run(noted["run_id"]).inputs.dataset_inputs) == 1


def test_mlflow_starts_anew_when_a_resume_takes_back_what_was_sent(runs):
    folder = runs / "back"
    log = open_log(folder, tensorboard=False, mlflow=True)
    for step in (1, 2, 3):
        log.scalars(step, {"a": step})
    log.params({"lr": 0.1})
    log.commit(3)
    log.close(finished=False)
    first = json.loads((folder / "mlflow.json").read_text())["run_id"]
    log = open_log(folder, tensorboard=False, mlflow=True, resume_step=2)
    log.scalars(3, {"a": 30.0})
    assert log.close() == []
    assert read_mlflow(folder, local_uri(runs)) == {"a": [(1, 1.0), (2, 2.0), (3, 30.0)]}
    with mlflow_client(local_uri(runs)) as client:
        assert client.get_run(first).info.lifecycle_stage == "deleted"


def test_a_parameter_that_changed_on_resume_is_a_tag(runs):
    folder = runs / "changed"
    log = open_log(folder, tensorboard=False, mlflow=True)
    log.params({"steps": 10, "lr": 0.1})
    log.close()
    log = open_log(folder, tensorboard=False, mlflow=True, resume_step=0)
    log.params({"steps": 20, "lr": 0.1})
    assert log.close() == []
    with mlflow_client(local_uri(runs)) as client:
        data = client.get_run(json.loads((folder / "mlflow.json").read_text())["run_id"]).data
    assert data.params == {"steps": "10", "lr": "0.1"}
    assert data.tags["resumed/steps"] == "20"
    assert "resumed/lr" not in data.tags


def test_a_server_that_is_not_there_costs_nothing_and_everything_is_sent_later(runs, caplog):
    folder, took = runs / "later", {"with": 0.0, "without": 0.0}
    with socket.socket() as taken, closing(open_log(runs / "no", tensorboard=False)) as without:
        taken.bind(("127.0.0.1", 0))
        port = taken.getsockname()[1]  # bound, not listening: connections are refused
        log = open_log(folder, tensorboard=False, mlflow=f"http://127.0.0.1:{port}")
        for step in range(1, 301):
            for name, each in ("with", log), ("without", without):
                start = time.perf_counter()
                each.scalars(step, {"a": step})
                each.commit(step)
                took[name] += time.perf_counter() - start if step > 1 else 0.0
        (left,) = log.close()
    assert took["with"] < 2 * took["without"] + 1
    assert "lacks 300 records" in left
    assert f"fpatch resume {folder}" in left
    assert caplog.text.count("records are sent later") == 1
    assert open_log(folder, tensorboard=False, mlflow=True, resume_step=300).close() == []
    assert read_mlflow(folder, local_uri(runs)) == {"a": [(step, float(step)) for step in range(1, 301)]}
    assert json.loads((folder / "mlflow.json").read_text())["uri"] == local_uri(runs)


def test_a_server_that_hangs_is_waited_for_once(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_HTTP_REQUEST_TIMEOUT", "1")
    with socket.create_server(("127.0.0.1", 0)) as deaf:
        log = open_log(tmp_path, tensorboard=False, mlflow=f"http://127.0.0.1:{deaf.getsockname()[1]}")
        log.scalars(1, {"a": 1.0})
        log.commit(1)
        start = time.perf_counter()
        log.scalars(2, {"a": 1.0})
        log.commit(2)
        assert time.perf_counter() - start < 0.5
        assert "lacks 2 records" in log.close()[0]


def test_a_local_database_is_whole_or_absent(tmp_path, monkeypatch):
    import mlflow

    def make_half(uri):
        Path(uri.removeprefix("sqlite:///")).write_bytes(b"half")
        raise KeyboardInterrupt

    monkeypatch.setattr(mlflow, "MlflowClient", make_half)
    with pytest.raises(KeyboardInterrupt):
        make_database(tmp_path / "mlflow.db")
    assert list(tmp_path.iterdir()) == []


def test_a_tracking_uri_without_scheme_is_refused_at_once(tmp_path):
    with pytest.raises(ValueError, match=r"http://HOST:PORT, got 'localhost:5000'"):
        open_log(tmp_path, tensorboard=False, mlflow="localhost:5000")


@pytest.mark.slow
def test_a_server_killed_in_the_middle_of_a_run_has_everything_once_when_it_is_back(runs, monkeypatch):
    monkeypatch.setattr(mlflow_sink, "_FIRST_PAUSE_S", 0.0)
    monkeypatch.setattr(mlflow_sink, "_LONGEST_PAUSE_S", 0.0)
    monkeypatch.setattr(mlflow_sink, "_COMMIT_LIMIT_S", 60.0)
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder, uri = runs / "served-run", f"http://127.0.0.1:{port}"

    def record(step):
        log.scalars(step, {"a": step, "bad": float("nan"), "low": float("-inf")})
        log.images(step, {"patch": torch.rand(3, 8, 8)})
        log.commit(step)

    with mlflow_server(runs, port):
        log = open_log(folder, tensorboard=False, mlflow=uri)
        log.params({"lr": 0.1, "empty": "", "long": "x" * 7000})
        record(1)
        record(2)
    record(3)
    record(4)
    with mlflow_server(runs, port):
        record(5)
        assert json.loads((folder / "mlflow.json").read_text())["offset"] == log._records.size
    record(6)
    assert "lacks 3 records" in log.close()[0]
    with mlflow_server(runs, port):
        assert open_log(folder, tensorboard=False, mlflow=uri, resume_step=6).close() == []
        assert read_mlflow(folder, uri)["a"] == [(step, float(step)) for step in range(1, 7)]
    series = read_mlflow(folder, local_uri(runs))
    assert [len(points) for points in series.values()] == [6, 6, 6]
    assert all(value < -1e308 for _, value in series["low"])
    served = sorted(path.name.partition("+timestamp")[0] for path in (runs / "served").rglob("*.png"))
    assert served == [f"patch+step+{step}" for step in range(1, 7)]


@pytest.mark.parametrize("size", [0, 1, 4, 50_001])
def test_the_checksum_is_that_of_tensorboard(size):
    from tensorboard.compat.tensorflow_stub.pywrap_tensorflow import masked_crc32c

    data = np.random.default_rng(size).bytes(size)
    assert tensorboard._masked_crc32c(data) == masked_crc32c(data)


def test_large_and_small_events_can_be_read(tmp_path):
    log = open_log(tmp_path)
    picture = torch.rand(3, 200, 200)
    log.scalars(1, {"a": 0.5})
    log.images(1, {"p": picture})
    log.close()
    events = read_events(tmp_path)  # TensorBoard's reader, which drops what fails its checksum
    assert [e.value for e in events.Scalars("a")] == [0.5]
    assert events.Images("p")[0].encoded_image_string == to_png("p", picture)


# Killed at any moment


def train(folder: Path, with_mlflow: bool) -> None:
    """The loop that `fpatch.log` promises to survive, with a checkpoint that is one number."""
    state = folder / "state.json"
    done = json.loads(state.read_text()) if state.exists() else 0
    started = (folder / "records.jsonl").exists()
    log = open_log(folder, mlflow=with_mlflow, resume_step=done if started else None)
    log.params({"lr": 0.1})
    for step in range(done + 1, STEPS + 1):
        log.scalars(step, {"loss": 1 / step})
        log.images(step, {"patch": torch.full((3, 4, 4), step / STEPS)})
        log.histograms(step, {"w": np.arange(step)})
        if step % CHECKPOINT_EVERY == 0:
            log.flush()
            records.write_atomic(state, json.dumps(step).encode())
            log.commit(step)
    log.scalars(STEPS, {"test/success": 0.75})
    log.close()


def killed(folder: Path, with_mlflow: bool, moment: int | float) -> bool:
    """Train in a process that gets SIGKILL after `moment` seconds or, if an int, at its n-th write."""
    return killed_in_fork(lambda: train(folder, with_mlflow), moment)


def crash(runs: Path, with_mlflow: bool, moments: list[float]) -> None:
    """For each moment a run that is killed then, resumed, killed again, and resumed to its end."""
    import tensorboard.compat.tensorflow_stub.io.gfile  # noqa: F401

    import fpatch.log.tensorboard  # noqa: F401

    if with_mlflow:
        import mlflow.store.tracking.sqlalchemy_store  # noqa: F401
    for index, moment in enumerate(moments):
        folder = runs / f"run-{index:03d}"
        folder.mkdir()
        first = killed(folder, with_mlflow, moment)
        second = killed(folder, with_mlflow, moment / 2 if isinstance(moment, float) else moment // 2)
        train(folder, with_mlflow) if not with_mlflow else killed(folder, with_mlflow, 10**9)
        print(folder.name, int(first), int(second), flush=True)


def run_crashes(runs: Path, with_mlflow: bool, moments: list[float]) -> list[Path]:
    """Fork in a fresh process, not in this one, which may have threads."""
    code = f"from test_log import *; crash(Path({str(runs)!r}), {with_mlflow}, {moments})"
    variables = environment(Path(__file__).parent, MLFLOW_DISABLE_TELEMETRY="true")
    done = subprocess.run([sys.executable, "-c", code], env=variables, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    lines = [line.split() for line in done.stdout.splitlines() if line.startswith("run-")]
    assert sum(int(first) for _, first, _ in lines) >= len(moments) // 2, done.stdout
    return [runs / name for name, _, _ in lines]


def assert_each_step_once(folder: Path) -> None:
    expected = [(step, 1 / step) for step in range(1, STEPS + 1)]
    assert read_scalars(folder) == {"loss": expected, "test/success": [(STEPS, 0.75)]}
    lines = (folder / "records.jsonl").read_bytes().splitlines()
    assert len(lines) == 1 + 4 * STEPS + 1
    images = [f"{step:08d}.png" for step in range(1, STEPS + 1)]
    assert sorted(path.name for path in folder.glob("images/patch/*")) == images
    events = read_events(folder)
    assert [event.step for event in events.Scalars("loss")] == list(range(1, STEPS + 1))
    assert [event.step for event in events.Images("patch")] == list(range(1, STEPS + 1))
    assert [event.step for event in events.Histograms("w")] == list(range(1, STEPS + 1))
    assert [event.step for event in events.Scalars("test/success")] == [STEPS]
    assert [path.suffix for path in folder.iterdir() if path.suffix == ".tmp"] == []


@pytest.mark.slow
def test_killed_at_every_write_the_log_and_tensorboard_hold_each_step_once(tmp_path):
    rng = random.Random(0)
    moments = sorted({*range(9), *rng.sample(range(12, 250), 22)})
    for folder in run_crashes(tmp_path, False, moments):
        assert_each_step_once(folder)


@pytest.mark.slow
def test_killed_around_sending_mlflow_holds_each_step_once(runs):
    rng = random.Random(1)
    moments = [*rng.sample(range(60, 330), 3), *(rng.uniform(0.3, 2.0) for _ in range(2))]
    for folder in run_crashes(runs, True, moments):
        assert_each_step_once(folder)
        expected = [(step, 1 / step) for step in range(1, STEPS + 1)]
        assert read_mlflow(folder, local_uri(runs)) == {"loss": expected, "test/success": [(STEPS, 0.75)]}


@pytest.mark.parametrize(
    ("error", "heard"), [(KeyboardInterrupt, None), (SystemExit, None), (ValueError, False), (None, True)]
)
def test_a_stop_by_its_user_is_no_failure(tmp_path, monkeypatch, error, heard):
    closed, close = [], Log.close
    monkeypatch.setattr(Log, "close", lambda self, finished: (closed.append(finished), close(self, finished)))
    study = tiny_study(tmp_path, {"log.tensorboard": False})
    run = Run.create(tmp_path / "runs", "lamp", study.config, {})
    with suppress(*[error] if error else []), opened_log(study, run, None):
        if error:
            raise error
    assert closed == [heard]
