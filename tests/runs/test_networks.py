"""A run that trains a patch and a network: folder, checkpoints, resume, evaluation, replay and verify."""

import dataclasses
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from cases import randomize
from laws import assert_equal
from log_stores import killed_in_fork
from safetensors.torch import load_file
from study_fixture import environment
from torch import Tensor, nn

import fpatch
from fpatch.core.resource import define_loader
from fpatch.demo.tiny import tiny_study
from fpatch.runs.replaying import replay_step
from fpatch.runs.training import resume, train
from fpatch.runs.verifying import verify_run
from fpatch.study.setup import set_up
from fpatch.study.study import Study


class Net(nn.Module):
    """From images to two logits, by batch statistics and dropout."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.drop = nn.Conv2d(3, 4, 4, 4), nn.BatchNorm2d(4), nn.Dropout(0.2)
        self.head = nn.Linear(4, 2)
        randomize(self, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.drop(self.norm(self.conv(images)).relu().mean((-1, -2))))


net = define_loader("net", Net)
TRAINED = {"victim": {"stage": "graph.module", "model": {"loader": net.name}, "trainable": True}}
WIRING = {"reads": ["image"], "writes": ["logits"]}


OPTIMIZER = {
    "optimizer.name": "adamw", "optimizer.schedule": "one_cycle", "optimizer.peak_momentum": 0.85,
    "optimizer.clip_norm": 1.0, "optimizer.learning_rate": 0.05,
}  # fmt: skip


def study(folder, **overrides) -> Study:
    made = tiny_study(folder, OPTIMIZER | overrides)
    config = made.pipeline.given_config | {"victim": TRAINED["victim"] | WIRING}
    return dataclasses.replace(made, pipeline=fpatch.build(config))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    made = train(study(tmp_path_factory.mktemp("networks"), **{"train.checkpoint_every": 2}))
    fpatch.evaluate_run(made.folder)
    return made


def test_weights_move_and_stand_in_the_checkpoints(run):
    first, last = run.load_params("step-00000000"), run.load_params("last")
    assert set(first) == {"tag", *(f"victim/{name}" for name in Net().state_dict())}
    assert all(not torch.equal(first[name], last[name]) for name in first)
    assert int(last["victim/norm.num_batches_tracked"]) == 4
    assert set(run.load_params("last", ["tag"])) == {"tag"}


def test_an_evaluation_is_of_the_weights_of_its_checkpoint(run):
    """Against the network itself, with these weights, on the composed images."""
    seen = []
    again, differences = fpatch.replay_run(
        run.folder, keep=("image", "logits"), on_block=lambda rows, values: seen.append(values)
    )
    assert (again.differences, differences) == ({}, [])
    model, params = Net().eval(), run.load_params("best")
    model.load_state_dict({name[7:]: v for name, v in params.items() if name.startswith("victim/")})
    for block in seen:
        for values in block.values():
            with torch.no_grad():
                torch.testing.assert_close(values["logits"], model(values["image"]))


def test_the_run_verifies_and_a_changed_weight_is_noticed(run, tmp_path):
    assert verify_run(run.folder).differences == []
    copied = shutil.copytree(run.folder, tmp_path / "copy")
    path = copied / "checkpoints/best.safetensors"
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(bytes(data))
    assert any("best" in sentence for sentence in differences_of(copied))


def differences_of(folder) -> list[str]:
    try:
        return verify_run(folder).differences
    except (ValueError, RuntimeError) as error:
        return [str(error)]


def test_a_resumed_run_ends_with_the_same_bits(run, tmp_path):
    with pytest.raises(KeyboardInterrupt):
        train(study(tmp_path, **{"train.checkpoint_every": 2}), on_progress=stop_at(3))
    (folder,) = (path for path in tmp_path.iterdir() if path.is_dir())
    again = resume(folder)
    assert_equal(again.load_params("last"), run.load_params("last"))
    assert (again.folder / "checkpoints/last.safetensors").stat().st_size > 0


def crash(folder: str, moments: list[int]) -> None:
    """Train, and be killed at each of these acts of writing in turn; then go on to the end."""

    def work() -> None:
        runs = [path.parent for path in Path(folder).glob("*/config.json")]
        resume(runs[0]) if runs else train(study(Path(folder), **{"train.checkpoint_every": 1}))

    kills = [killed_in_fork(work, moment) for moment in moments]
    assert not killed_in_fork(work, 10**9)
    print("kills", *map(int, kills))


@pytest.mark.slow
@pytest.mark.parametrize("moments", [[30, 9], [45, 20, 14]])
def test_a_killed_run_ends_with_the_same_bits(run, tmp_path, moments):
    """Weights, buffers of the batch norm, and the state of AdamW with a beta that moves."""
    code = f"from test_networks import *; crash({str(tmp_path)!r}, {moments})"
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment(Path(__file__).parent), capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.split()[-len(moments) :] == ["1"] * len(moments), done.stdout
    (config,) = tmp_path.glob("*/config.json")
    again, whole = (load_file(one / "checkpoints/last.safetensors") for one in (config.parent, run.folder))
    assert {"params", "opt", "fixed"} <= {name.partition(".")[0].partition("/")[0] for name in whole}
    assert_equal(again, whole)


def stop_at(step: int):
    def watch(task: str, done: int, total: int, note: str) -> None:
        if task == "training" and done == step:
            raise KeyboardInterrupt

    return watch


def test_an_update_replays(run):
    replayed = replay_step(run.folder, 4)
    assert all(was == now for was, now in replayed.scalars.values())


def test_what_is_not_trained_stays(tmp_path):
    made = study(tmp_path)
    made = dataclasses.replace(made, objective=dataclasses.replace(made.objective, wrt=("tag",)))
    done = train(made)
    first, last = done.load_params("step-00000000"), done.load_params("last")
    moved = {name for name in first if not torch.equal(first[name], last[name])}
    assert {name for name in moved if not name.startswith("victim/norm.")} == {"tag"}


def test_a_table_without_a_checkpoint_of_its_state_is_refused(run, tmp_path):
    copied = shutil.copytree(run.folder, tmp_path / "copy")
    for path in (copied / "checkpoints").iterdir():
        path.unlink()
    with pytest.raises((ValueError, RuntimeError), match="no checkpoint of"):
        fpatch.replay_run(copied)


def test_statistics_of_micro_batches_are_refused_before_the_folder_is_made(tmp_path):
    made = study(tmp_path, **{"train.micro_batch": 1})
    for begin in train, set_up:
        with pytest.raises(ValueError, match=r"node 'victim' takes statistics.*local_statistics"):
            begin(made)
    assert not [path for path in tmp_path.iterdir() if path.is_dir()]
