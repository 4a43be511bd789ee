"""Run folders: whole files or none, and nothing in them that could run."""

import io
import json
import os
import pickle
import zipfile

import numpy as np
import pytest
import torch
from safetensors import safe_open
from study_fixture import parameters

from fpatch import random
from fpatch.cli.main import main
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.evaluation import Evaluation
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.step import TrainState
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.folder import Run, describe_environment
from fpatch.runs.locks import RunError, is_held
from fpatch.runs.opening import open_run
from fpatch.runs.training import train, train_in
from fpatch.runtime.execution import Execution
from fpatch.study.setup import set_up


@pytest.fixture
def empty(tmp_path):
    environment = describe_environment(3, Execution.current(0))
    return Run.create(tmp_path / "a/runs", "name", {"name": "x"}, environment)


@pytest.fixture
def state():
    params = {"side": torch.rand(3, 4, 5), "rear": torch.rand(1, 2, 2)}
    optimizer = make_optimizer(Optimizer(), 10)
    opt_state = optimizer.init(params)
    _, opt_state = optimizer.update(params, opt_state, params=params, inplace=False)
    return TrainState(params, opt_state, 7, random.key(2**40 + 3))


def test_runs_of_one_second_have_folders_of_their_own(tmp_path, monkeypatch):
    monkeypatch.setattr("time.strftime", lambda _: "20260101-120000")
    made = [Run.create(tmp_path, "x", {}, describe_environment(0, Execution.current(0))) for _ in range(3)]
    names = [run.folder.name for run in made]
    assert names == ["20260101-120000-x", "20260101-120000-x-1", "20260101-120000-x-2"]


def test_what_a_run_says_of_where_it_was_made(empty):
    found = Run.open(empty.folder)
    assert found.execution == Execution.current(0)
    assert found.read_json("environment.json")["seed"] == 3
    assert found.read_json("config.json") == {"name": "x"}


def test_a_state_comes_back_bit_for_bit(empty, state):
    import optree

    empty.save_checkpoint("last", state, best=0.25, best_step=4)
    like = optree.tree_map(lambda t: torch.zeros_like(t) if isinstance(t, torch.Tensor) else t, state)
    found, facts = empty.load_checkpoint("last", TrainState(*like))
    assert facts == {"best": 0.25, "best_step": 4}
    assert (found.step, type(found.opt_state)) == (7, type(state.opt_state))
    assert torch.equal(found.key, state.key)
    for old, new in zip(optree.tree_leaves(state), optree.tree_leaves(found), strict=True):
        assert old is new or old == new if isinstance(old, int) else torch.equal(old, new)
        assert isinstance(old, int) or old.dtype == new.dtype


def test_a_checkpoint_of_another_form_is_refused(empty, state):
    empty.save_checkpoint("last", state)
    sgd = make_optimizer(Optimizer(name="sgd", momentum=0.0), 10)
    other = TrainState({"side": state.params["side"], "roof": torch.zeros(2)}, sgd.init({}), 0, state.key)
    with pytest.raises(RunError, match=r"params/roof must have shape \[2\] by the config, got None"):
        empty.load_checkpoint("last", other)


def test_numbered_checkpoints_and_what_a_kill_left(empty, state):
    for step in (0, 50, 100):
        empty.save_checkpoint(f"step-{step:08d}", state._replace(step=step))
    torn = empty.folder / "checkpoints/step-00000150.safetensors.tmp"
    torn.write_bytes(b"half")
    assert empty.checkpoint_steps() == [0, 50, 100]
    with empty.locked():
        assert not torn.exists()


def test_a_failed_write_keeps_the_checkpoint_before(empty, state, monkeypatch):
    empty.save_checkpoint("last", state)
    before = (empty.folder / "checkpoints/last.safetensors").read_bytes()

    def full(*_):
        raise OSError(28, "No space left on device")

    for act in ("os.fsync", "os.replace"):
        with monkeypatch.context() as patch:
            patch.setattr(act, full)
            with pytest.raises(OSError, match=r"last\.safetensors: No space left on device; its old content"):
                empty.save_checkpoint("last", state._replace(step=8))
        assert (empty.folder / "checkpoints/last.safetensors").read_bytes() == before
        assert list(empty.folder.rglob("*.tmp")) == []


def evaluation(value: float) -> Evaluation:
    names, values = np.array(["a", "b", "ä"]), np.full(3, value, np.float32)
    table = {"image_id": np.arange(3), "path": names, "x/patch": values}
    return Evaluation(table, {"patch": {"patch": {"side": torch.full((1, 2, 2), value)}}}, {})


def test_an_evaluation_comes_back(empty):
    empty.save_evaluation("test", evaluation(0.1), Execution.current(5))
    table = empty.load_table("test")
    assert table["x/patch"].dtype == np.float32
    assert table["x/patch"][0] == np.float32(0.1)
    assert table["path"].tolist() == ["a", "b", "ä"]
    assert empty.load_execution("test").block == 5
    assert torch.equal(empty.load_conditions("test")["patch"]["patch"]["side"], torch.full((1, 2, 2), 0.1))
    assert (empty.folder / "tables/test.csv").read_text().splitlines()[1] == '0,"a",0.1'


@pytest.mark.parametrize("moment", range(4))
def test_an_evaluation_is_replaced_whole_or_is_said_to_be_cut_off(empty, moment, monkeypatch):
    from pathlib import Path

    empty.save_evaluation("test", evaluation(1.0), Execution.current(5))
    calls = []
    replace = Path.replace

    def die(path, target):
        if len(calls) == moment:
            raise KeyboardInterrupt
        calls.append(path)
        return replace(path, target)

    monkeypatch.setattr(Path, "replace", die)
    if moment < 3:
        with pytest.raises(KeyboardInterrupt):
            empty.save_evaluation("test", evaluation(2.0), Execution.current(5))
        with pytest.raises(RunError, match="has no table 'test'; `fpatch evaluate"):
            empty.load_table("test")
    else:
        empty.save_evaluation("test", evaluation(2.0), Execution.current(5))
        assert empty.load_table("test")["x/patch"].tolist() == [2.0] * 3


def test_objects_are_read_without_the_table_of_rows(run):
    (run.folder / "tables/test.parquet").write_bytes(b"")
    assert run.load_objects("test") == {}
    with pytest.raises(RunError, match="has no table 'none'"):
        run.load_objects("none")


def test_nothing_in_a_run_folder_can_run(trained):
    """No pickle and no archive of one: JSON, safetensors, Parquet, CSV, PNG and event files only."""
    suffixes = set()
    for path in trained.folder.rglob("*"):
        if not path.is_file() or not path.stat().st_size:
            continue
        suffixes.add(path.suffix if "tfevents" not in path.name else ".tfevents")
        data = path.read_bytes()
        assert not zipfile.is_zipfile(path), path
        assert not data.startswith(pickle.PROTO), path
        with pytest.raises((pickle.UnpicklingError, RuntimeError, LookupError)):  # by its first bytes
            torch.load(io.BytesIO(data), weights_only=True)
        if path.suffix == ".safetensors":
            with safe_open(path, framework="pt") as file:
                assert list(file.keys())
    assert suffixes == {".json", ".jsonl", ".safetensors", ".parquet", ".csv", ".png", ".tfevents"}


def test_what_a_run_leaves(trained):
    there = {str(p.relative_to(trained.folder)) for p in trained.folder.rglob("*") if p.is_file()}
    assert there >= {
        "config.json", "environment.json", "records.jsonl", "checkpoints/last.safetensors",
        "checkpoints/best.safetensors", "checkpoints/step-00000000.safetensors", "patch/side.png",
        "patch/rear.png",
        "tables/test.parquet", "tables/test.csv", "tables/test.patches.safetensors", "tables/test.json",
        "tables/test.summary.json", "figures/test.png",
    }  # fmt: skip
    assert parameters(trained, "step-00000006") == parameters(trained)


def test_any_reader_of_json_takes_what_a_run_leaves(trained):
    """There are no intervals from four photographs: null, since JSON has no NaN."""

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    files = [*trained.folder.glob("*.json"), *trained.folder.glob("tables/*.json")]
    read = {f.name: json.loads(f.read_text(), parse_constant=refuse) for f in files}
    assert read["test.summary.json"]["rates"]["patch"]["low"] is None
    assert read["test.summary.json"]["clean"]["value"] == 1.0


def test_patches_of_a_checkpoint_are_loaded_in_part(trained, tmp_path):
    """Whole, or by name: to begin another training with, whose optimizer starts afresh."""
    run, study = open_run(trained.folder)
    parts = set_up(study)
    state, _ = run.load_checkpoint("last", parts.initial)
    found = run.load_params("last")
    assert found.keys() == state.params.keys() == {"side", "rear"}
    assert all(torch.equal(found[n], state.params[n]) for n in found)
    side = run.load_params("last", ["side"])
    assert list(side) == ["side"]
    start = parts.initial._replace(params={**parts.initial.params, **side})
    for _ in train_in(tmp_path / "next", study, start, until=3):
        pass
    begun, _ = Run(tmp_path / "next").load_checkpoint("step-00000000", parts.initial)
    assert torch.equal(begun.params["side"], state.params["side"])
    assert torch.equal(begun.params["rear"], parts.initial.params["rear"])
    with pytest.raises(RunError, match=r"checkpoint 'last' of .* has no patch 'sid'; did you mean 'side'"):
        run.load_params("last", ["sid"])
    with pytest.raises(RunError, match=r"lacks checkpoints/lost\.safetensors"):
        run.load_params("lost")


@pytest.mark.parametrize("words", [("grid", "--over", "exposure/stops=0,0.05"), ("analyze",), ("evaluate",)])
def test_a_run_that_cannot_be_written_is_refused_before_the_work(tmp_path, capsys, words):
    run = train(tiny_study(tmp_path))
    evaluate_run(run.folder)
    capsys.readouterr()
    with run.locked():
        assert main([words[0], str(run.folder), *words[1:]]) == 2
    said, errors = capsys.readouterr()
    assert said == ""
    assert "is being written by another process" in errors


def test_a_folder_that_cannot_be_written_is_one_sentence():
    with (
        pytest.raises(RunError, match=r"/sys cannot be written \(.+\); copy it to a folder of yours"),
        Run("/sys").locked(),
    ):
        pass


def test_whether_a_lock_is_held_is_found_without_a_write(tmp_path):
    assert not is_held(tmp_path)
    assert not list(tmp_path.iterdir())
    with Run(tmp_path).locked():
        assert is_held(tmp_path)
    assert not is_held(tmp_path)


def test_a_folder_whose_name_is_no_text_is_refused_before_it_is_made(tmp_path):
    strange = tmp_path / os.fsdecode(b"b\xe9")
    with pytest.raises(ValueError, match="the path is not text in UTF-8; rename the folder"):
        train(tiny_study(tmp_path, {"log.runs": str(strange)}))
    assert not strange.exists()
    run = train(tiny_study(tmp_path))
    with pytest.raises(ValueError, match="the path is not text in UTF-8; rename the folder"):
        evaluate_run(run.folder.rename(strange))


@pytest.mark.parametrize("place", ["records.jsonl", "tables/test.csv", "figures/test.png"])
def test_a_folder_in_the_place_of_a_file_is_one_sentence(tmp_path, capsys, place):
    run = train(tiny_study(tmp_path))
    (run.folder / place).unlink(missing_ok=True)
    (run.folder / place / "mine").mkdir(parents=True)
    assert main(["evaluate", str(run.folder)]) == 2
    sentence = capsys.readouterr().err.splitlines()[-1]
    assert str(run.folder / place) in sentence
    assert sentence.endswith("a folder stands where a file is needed; move it away")
