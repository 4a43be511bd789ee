"""Rerunning what was logged, bit for bit, and noticing every bit that was changed."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from PIL import Image, PngImagePlugin
from study_fixture import SPLITS, run_fpatch

from fpatch.cli.main import main
from fpatch.data import read_image, targets
from fpatch.data.images import to_pixels
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.replaying import replay
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.opening import open_run
from fpatch.runs.replaying import replay_run, replay_step
from fpatch.runs.training import train
from fpatch.study.config import load_study

NUM_ROWS = 8  # four photographs, two draws


def edit_table(run, column, row, change):
    path = run.folder / "tables/test.parquet"
    table = pyarrow.parquet.read_table(path)
    values = table[column].to_numpy().copy()
    values[row] = change(values[row])
    index = table.column_names.index(column)
    pyarrow.parquet.write_table(table.set_column(index, column, pa.array(values)), path)


def one_ulp(value):
    return np.nextafter(np.float32(value), np.float32(np.inf))


def photograph(run, row):
    """Its path, and the rows that show it."""
    paths = run.load_table("test")["path"]
    return run.folder.parent.parent / Path(paths[row]).name, np.flatnonzero(paths == paths[row]).tolist()


def verify(run, capsys, *arguments):
    code = main(["replay", str(run.folder), "--verify", *arguments])
    return code, capsys.readouterr().out


def test_verify_in_a_new_process(trained):
    done = run_fpatch("replay", trained.folder, "--verify", cwd=trained.folder)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == f"rows {NUM_ROWS} identical {NUM_ROWS} different 0"


@pytest.mark.parametrize(("rows", "count"), [("0:3", 3), ("5:", 3), ("6", 1), (":2", 2), ("2:100", 6)])
def test_a_subset_of_the_rows(trained, capsys, rows, count):
    code, printed = verify(trained, capsys, "--rows", rows)
    assert code == 0
    assert printed.splitlines()[0] == f"replaying: {count} done"
    assert printed.splitlines()[-1] == f"rows {count} identical {count} different 0"


def test_the_images_of_rows_are_written(trained, capsys, tmp_path):
    code, printed = verify(trained, capsys, "--rows", "2:4", "--out", str(tmp_path / "seen"))
    conditions = trained.load_conditions("test")
    names = {f"row-{row:05d}-{condition}.png" for row in (2, 3) for condition in conditions}
    assert code == 0
    assert {path.name for path in (tmp_path / "seen").iterdir()} == names
    assert all(f"  {tmp_path / 'seen' / name}" in printed for name in names)
    seen = images(trained, slice(3, 4))
    for condition in conditions:
        written = read_image(tmp_path / "seen" / f"row-00003-{condition}.png")
        assert np.array_equal(written.permute(1, 2, 0), to_pixels(seen[condition][0], condition))
    assert not torch.equal(seen["patch"], seen["none"])


def images(run, rows, **settings):
    """Of some rows, at most a block of them, by condition."""
    found = {}
    replay_run(
        run.folder,
        rows,
        keep=("image",),
        on_block=lambda _, by: found.update({c: v["image"] for c, v in by.items()}),
        **settings,
    )
    return found


def test_what_if_another_value_had_been_sampled(trained, capsys):
    path = next(n for n in trained.load_table("test") if n.endswith("stops")).removeprefix("sample/")
    logged = float(trained.load_table("test")[f"sample/{path}"][4])
    assert verify(trained, capsys, "--rows", "4", "--set", f"{path}={logged!r}")[0] == 0
    code, printed = verify(trained, capsys, "--rows", "4", "--set", f"{path}=-9")
    assert code == 1
    assert printed.count("row 4:\n") == 1
    assert "\n  digest/none: " in printed
    dark, bright = (images(trained, slice(4, 5), edits={path: stops})["none"] for stops in (-9.0, 1.0))
    assert dark.mean() < 0.1 * bright.mean()


def test_an_edit_of_a_stage_that_rows_skip_says_so(tmp_path, caplog):
    settings = {"pipeline.jpeg": {"stage": "compose.jpeg", "p": 0.5}, "evaluate.num_draws": 4}
    run = train(tiny_study(tmp_path, settings | {"train.num_steps": 1}))
    evaluate_run(run.folder)
    on = run.load_table("test")["sample/jpeg/on"]
    assert 0 < on.sum() < len(on)
    replay_run(run.folder, edits={"jpeg/quality": 10})
    said = f"jpeg/quality changes nothing in {int((~on).sum())} of {len(on)} rows, which skip its stage"
    assert said in caplog.text
    caplog.clear()
    replay_run(run.folder, edits={"jpeg/quality": 10, "jpeg/on": 1})
    assert "changes nothing" not in caplog.text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--set", "stops"), "--set must be PATH=NUMBER, such as camera/exposure/stops=-2, got 'stops'"),
        (("--set", "camera/exposure/stop=1"), "no sampled value 'camera/exposure/stop'; did you mean"),
        (("--set", "camera/exposure/stops=nan"), "--set must be PATH=NUMBER"),
        (("--step", "1", "--out", "x"), "--step takes no --out, which is for evaluated rows"),
        (("--step", "1", "--table", "test"), "--step takes no --table"),
    ],
)
def test_edits_that_cannot_be_made(trained, capsys, words, message):
    assert main(["replay", str(trained.folder), *words]) == 2
    assert message in capsys.readouterr().err


def test_every_evaluation_of_a_run_can_be_replayed(trained, capsys):
    tables = sorted(p.stem for p in (trained.folder / "tables").glob("*.parquet"))
    assert tables == ["test", "validation-00000003", "validation-00000006"]
    for table in tables:
        assert "different 0" in verify(trained, capsys, "--table", table)[1]


@pytest.mark.parametrize("order", [range(NUM_ROWS)[::-1], [6, 1, 4], [3]])
def test_any_order_gives_the_same_bits(trained, order):
    run, study = open_run(trained.folder)
    table = run.load_table("test")
    result = replay(
        study.pipeline.at("test"), run.load_conditions("test"), study.data.open().split("test"), table, order,
        block=study.evaluate.block,
    )  # fmt: skip
    assert result.differences == {}
    assert result.rows.tolist() == list(order)
    for name, column in result.columns.items():
        assert column.tolist() == table[name][list(order)].tolist(), name


def test_nothing_is_drawn(trained, monkeypatch):
    monkeypatch.setattr("fpatch.random.fold_in", lambda *_: pytest.fail("replay must not derive a key"))
    assert replay_run(trained.folder)[0].differences == {}


@pytest.mark.parametrize("column", ["sample/affine/angle_deg", "sample/camera/exposure/stops"])
def test_one_ulp_of_one_sampled_number_is_named(run, capsys, column):
    edit_table(run, column, 5, one_ulp)
    code, out = verify(run, capsys)
    assert code == 1
    assert [line.partition(":")[0] for line in out.splitlines() if line.startswith("row ")] == ["row 5"]
    assert out.endswith(f"rows {NUM_ROWS} identical {NUM_ROWS - 1} different 1\n")


def test_composed_images_are_compared_and_not_only_samples(run):
    edit_table(run, "sample/affine/angle_deg", 2, lambda v: v + np.float32(0.5))
    edit_table(run, "sample/implant/jitter/0/1/0", 4, lambda v: v + np.float32(0.01))
    result, _ = replay_run(run.folder)
    assert sorted(result.differences) == [2, 4]
    named = {row: {s.partition(":")[0] for s in found} for row, found in result.differences.items()}
    assert {"digest/patch", "digest/none", "digest/noise", "sample"} <= named[2]
    assert "digest/none" not in named[4]  # the corner of a patch is nowhere to be seen without patches
    assert {"digest/patch", "digest/flat", "digest/shuffled"} <= named[4]
    assert 0 < result.largest <= 1


def test_one_ulp_of_a_result_is_named(run):
    edit_table(run, "best_score/noise", 0, one_ulp)
    result, _ = replay_run(run.folder)
    assert {row: [s.partition(":")[0] for s in found] for row, found in result.differences.items()} == {
        0: ["best_score/noise"]
    }


def test_a_result_that_does_not_come_out_again_is_named(run):
    config = run.read_json("config.json")
    del config["pipeline"]["hit"]
    run.write_json("config.json", config)
    found, _ = replay_run(run.folder, rows=slice(0, 2))
    assert set(found.differences) == {0, 1}
    assert "found/patch: was logged, and is missing in the replay" in found.differences[0]


def test_a_changed_patch_is_named_in_every_row_that_shows_it(run):
    from safetensors.torch import load_file, save_file

    path = run.folder / "tables/test.patches.safetensors"
    tensors = load_file(path)
    value = tensors["noise/patch/side"]
    value[0, 5, 7] = 1.0 - value[0, 5, 7]
    save_file(tensors, path)
    result, _ = replay_run(run.folder)
    assert sorted(result.differences) == list(range(NUM_ROWS))
    assert all("noise" in sentence for found in result.differences.values() for sentence in found)


def test_one_pixel_of_a_photograph(run, capsys):
    path, rows = photograph(run, 1)
    pixels = np.array(Image.open(path))
    pixels[20, 30, 0] ^= 1
    Image.fromarray(pixels).save(path)
    code, out = verify(run, capsys)
    assert code == 1
    assert [int(line.split()[1][:-1]) for line in out.splitlines() if line.startswith("row ")] == rows
    assert out.count("digest/patch") == 2


def test_one_byte_of_metadata_changes_the_photograph_but_not_the_images(run):
    path, rows = photograph(run, 1)
    info = PngImagePlugin.PngInfo()
    info.add_text("Comment", "a")
    pixels = np.array(Image.open(path))
    Image.fromarray(pixels).save(path, pnginfo=info)
    result, _ = replay_run(run.folder)
    assert {row: [s.partition(":")[0] for s in found] for row, found in result.differences.items()} == {
        row: ["photograph"] for row in rows
    }


@pytest.mark.parametrize("loss", ["flipped", "cut off"])
def test_a_photograph_with_one_broken_byte_does_not_hide_the_other_rows(run, capsys, loss):
    path, rows = photograph(run, 2)
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 16
    path.write_bytes(data if loss == "flipped" else data[: len(data) // 2])
    code, out = verify(run, capsys)
    assert code == 1
    named = [line for line in out.splitlines() if line.startswith("row ")]
    assert [int(line.split()[1][:-1]) for line in named] == rows
    assert all("not a readable image" in line for line in named)
    assert out.endswith(f"rows {NUM_ROWS} identical {NUM_ROWS - 2} different 2\n")


def test_another_number_of_threads_is_recreated(trained):
    threads = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        result, environment = replay_run(trained.folder)
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(threads)
    assert (result.differences, environment) == ({}, [])


def test_another_environment_is_said_first(run, capsys):
    path = run.folder / "tables/test.json"
    facts = json.loads(path.read_text())
    facts["execution"] |= {"torch": "1.0", "cpu": "abacus"}
    path.write_text(json.dumps(facts))
    lines = verify(run, capsys)[1].splitlines()
    said = [line for line in lines if line.startswith("not the recorded execution: ")]
    assert [line.split(": ")[1] for line in said] == ["cpu", "torch"]
    assert lines.index(said[0]) == 1
    assert lines[-1].startswith("rows 8 ")


def test_rows_that_do_not_exist(trained, capsys):
    for rows in ("50:60", "x", "3:1"):
        assert main(["replay", str(trained.folder), "--rows", rows]) == 2
        assert capsys.readouterr().err.startswith("fpatch: error: ")
    assert main(["replay", str(trained.folder), "--rows", "-1"]) == 0
    assert capsys.readouterr().out.endswith("\nrows 1 identical 1 different 0\n")
    run, study = open_run(trained.folder)
    with pytest.raises(ValueError, match="row 8 does not exist; the table has rows 0 to 7"):
        replay(study.pipeline.at("test"), {}, study.data.open(), run.load_table("test"), [8])


# Training batches


@pytest.mark.parametrize("step", [1, 2, 5, 6])
def test_a_training_update_from_the_nearest_checkpoint(trained, step):
    again = replay_step(trained.folder, step)
    assert again.identical
    assert (again.step, again.start) == (step, (step - 1) // 2 * 2)
    assert set(again.scalars) == {"train/loss", "train/vanish", "train/total_variation", "train/grad_norm"}
    assert again.info.batch["image_id"].max() < SPLITS.index("validation")
    assert again.environment == []


def test_an_edited_loss_is_noticed(run, capsys):
    path = run.folder / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    (record,) = [r for r in records if r["step"] == 4 and "train/loss" in r["values"]]
    record["values"]["train/vanish"] = float(one_ulp(record["values"]["train/vanish"]))
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert main(["replay", str(run.folder), "--step", "4", "--verify"]) == 1
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines if line.endswith("DIFFERENT")] == ["train/vanish"]
    assert main(["replay", str(run.folder), "--step", "3", "--verify"]) == 0


def test_an_update_that_lacks_a_scalar_of_its_record_is_different(run, capsys):
    path = run.folder / "records.jsonl"
    records = [json.loads(line) for line in path.read_text().splitlines()]
    (record,) = [r for r in records if r["step"] == 4 and "train/loss" in r["values"]]
    del record["values"]["train/grad_norm"]
    path.write_text("".join(json.dumps(r) + "\n" for r in records))
    assert main(["replay", str(run.folder), "--step", "4", "--verify"]) == 1
    (line,) = [x for x in capsys.readouterr().out.splitlines() if x.endswith("DIFFERENT")]
    assert line.split()[:3] == ["train/grad_norm", "logged", "nan"]


def test_a_patch_that_the_updates_do_not_give_is_noticed(tmp_path, capsys):
    """Every number of the updates is right; the patches of the checkpoints are those of another training."""
    run = train(tiny_study(tmp_path, {"train.checkpoint_every": 2}))
    assert replay_step(run.folder, 3).states == {}
    assert replay_step(run.folder, 2).states == {"step-00000002": True}
    assert replay_step(run.folder, 4).states == {"step-00000004": True, "last": True, "best": True}
    other = train(tiny_study(tmp_path, {"train.checkpoint_every": 2, "optimizer.learning_rate": 0.3}))
    for name in ("step-00000004", "last", "best"):
        file = f"checkpoints/{name}.safetensors"
        (run.folder / file).write_bytes((other.folder / file).read_bytes())
    again = replay_step(run.folder, 4)
    assert all(repr(was) == repr(now) for was, now in again.scalars.values())
    assert not again.identical
    assert main(["replay", str(run.folder), "--step", "4", "--verify"]) == 1
    said = capsys.readouterr().out
    assert "checkpoints/best: the state after the update is DIFFERENT" in said
    assert main(["replay", str(run.folder), "--step", "3", "--verify"]) == 0
    assert "not proven: the patch after update 3: no checkpoint" in capsys.readouterr().out


def test_an_update_that_was_not_made(trained, capsys):
    assert main(["replay", str(trained.folder), "--step", "7"]) == 2
    assert "has no record of update 7" in capsys.readouterr().err


@pytest.mark.parametrize("step", ["0", "-1", "two"])
def test_what_is_no_update_is_refused(trained, capsys, step):
    with pytest.raises(SystemExit) as refused:
        main(["replay", str(trained.folder), "--step", step])
    assert refused.value.code == 2
    assert f"got {step!r}" in capsys.readouterr().err


def test_a_missing_checkpoint_only_costs_time(run):
    for step in (0, 4):
        (run.folder / f"checkpoints/step-{step:08d}.safetensors").unlink()
    again = replay_step(run.folder, 5)
    assert again.identical
    assert again.start == 2
    with pytest.raises(ValueError, match="no checkpoint before update 1"):
        replay_step(run.folder, 1)


# Through the API, with data from anywhere


def test_the_folder_may_move_with_its_data(trained, tmp_path):
    from study_fixture import copy_run

    moved = copy_run(trained, tmp_path / "elsewhere")
    assert replay_run(moved.folder)[0].differences == {}


def test_a_data_set_kept_on_disk_gives_the_same(trained):
    run, study = open_run(trained.folder)
    data = study.data
    dataset = targets(
        data.placements, data.objects, size=data.size, patches=data.patches, resident="disk"
    ).split("test")
    table = run.load_table("test")
    assert (
        replay(
            study.pipeline.at("test"), run.load_conditions("test"), dataset, table, block=study.evaluate.block
        ).differences
        == {}
    )


@pytest.mark.parametrize("block", [1, 5, 16])
def test_every_size_of_block_replays(trained, tmp_path, block):
    from study_fixture import make_study

    from fpatch.runs.evaluating import evaluate_run

    run = train(load_study(make_study(tmp_path, num_steps=1, block=block, validation=False)))
    evaluate_run(run.folder)
    result, _ = replay_run(run.folder, slice(1, 6))
    assert (len(result.rows), result.differences) == (5, {})
