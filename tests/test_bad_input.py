"""Whatever is wrong: one clear error, exit code 2, and nothing that was written is lost."""
# ruff: noqa: E501, the tables of cases have a line for each

import datetime
import decimal
import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet
import pytest
from log_stores import file_size_limit, mlflow_server, read_mlflow
from study_fixture import (
    STEPS,
    change,
    environment,
    logged_steps,
    make_study,
    parameters,
    read_records,
)

from fpatch.cli.main import main
from fpatch.runs.folder import Run
from fpatch.runs.standing import go_back
from fpatch.runs.training import resume, train
from fpatch.study.config import load_study


def refuse(capsys, *words) -> str:
    """The one error line of a command that is refused."""
    capsys.readouterr()  # a training before it shows its progress
    assert main(list(map(str, words))) == 2
    out, err = capsys.readouterr()
    assert err.startswith("fpatch: error: ")
    assert err.count("fpatch: error: ") == 1
    assert "Traceback" not in err + out
    return err.removeprefix("fpatch: error: ").removesuffix("\n")


def refuse_to_train(capsys, path: Path, *words) -> str:
    """Likewise, and no run folder was begun."""
    message = refuse(capsys, "train", path, *words)
    assert not (path.parent / "runs").exists()
    return message


def replace(path: Path, old: str, new: str) -> None:
    text = path.read_text()
    assert text.count(old) >= 1, (old, text)
    path.write_text(text.replace(old, new, 1))


def edit_csv(path: Path, line: int, column: str, value: str) -> None:
    lines = [row.split(",") for row in path.read_text().splitlines()]
    lines[line - 1][lines[0].index(column)] = value
    path.write_text("\n".join(map(",".join, lines)) + "\n")


@pytest.fixture
def study(tmp_path) -> Path:
    return make_study(tmp_path)


# Photographs


def test_a_missing_photograph(study, capsys):
    (study.parent / "photograph-02.png").unlink()
    message = refuse_to_train(capsys, study)
    assert "placements.csv, line" in message
    assert "photograph-02.png: no such image" in message


@pytest.mark.parametrize("name", ["photograph-01.png", "photograph-06.png"])
def test_a_truncated_photograph(study, capsys, name):
    path = study.parent / name
    path.write_bytes(path.read_bytes()[:2000])
    assert f"{name}: not a readable image" in refuse_to_train(capsys, study)


@pytest.mark.parametrize(
    ("name", "command"), [("photograph-03.png", "train"), ("photograph-10.png", "evaluate")]
)
def test_a_truncated_photograph_that_is_met_later(trained, study, capsys, name, command):
    path = study.parent / name
    whole = path.read_bytes()
    path.write_bytes(whole[:2000])
    if command == "evaluate":
        assert main(["train", str(study)]) == 0
        capsys.readouterr()
    subject = study if command == "train" else next((study.parent / "runs").iterdir())
    assert f"{name}: not a readable image" in refuse(capsys, command, subject)
    path.write_bytes(whole)
    run = Run(next((study.parent / "runs").iterdir()))
    assert main(["resume", str(run.folder)]) == 0
    assert parameters(run) == parameters(trained)


def test_a_photograph_that_is_none(study, capsys):
    (study.parent / "photograph-01.png").write_text("hello")
    assert "photograph-01.png: not a readable image (unknown format)" in refuse_to_train(capsys, study)


# Tables


CSV = {
    "missing column": (lambda p: replace(p, "ulx", "ul_x"), "column 'ulx' is missing (did you mean 'ul_x'?)"),
    "text in a number": (lambda p: edit_csv(p, 3, "ury", "top"), "line 3, column ury: 'top' is not a finite"),
    "no number": (lambda p: edit_csv(p, 3, "ury", "nan"), "line 3, column ury: 'nan' is not a finite number"),
    "outside": (lambda p: edit_csv(p, 2, "lrx", "500"), "line 2, column lrx: 500 is outside the image"),
    "empty": (lambda p: p.write_text(""), "placements.csv: the file is empty"),
    "only a header": (lambda p: p.write_text(p.read_text().splitlines()[0]), "has a header but no rows"),
    "not a table": (lambda p: p.write_bytes(b"\xff\xfe\x00"), "not text in UTF-8"),
    "gone": (Path.unlink, "placements.csv: no such file"),
    "no test rows": (lambda p: p.write_text(p.read_text().replace(",test,", ",train,")), "no test rows"),
    "no eval rows": (
        lambda p: p.write_text(p.read_text().replace(",validation,", ",train,")), "validation = false",
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CSV)
def test_placements(study, capsys, case):
    damage, expected = CSV[case]
    damage(study.parent / "placements.csv")
    if case.startswith("no "):
        (study.parent / "objects.csv").unlink()
        study.write_text(study.read_text().replace('objects = "objects.csv"\n', ""))
    assert expected in refuse_to_train(capsys, study)


def test_quads(study, capsys):
    path = study.parent / "placements.csv"
    lines = path.read_text().splitlines()
    corners = lines[1].split(",")
    crossing = [*corners[:3], *corners[5:7], *corners[3:5], *corners[7:]]
    path.write_text("\n".join([lines[0], ",".join(crossing), *lines[2:]]))
    assert "line 2: the quad" in (message := refuse_to_train(capsys, study))
    assert "crosses itself; two neighboring corners are exchanged" in message
    flat = [*corners[:3], *corners[3:5] * 4]
    path.write_text("\n".join([lines[0], ",".join(flat), *lines[2:]]))
    assert "has zero area" in refuse_to_train(capsys, study)


def test_several_problems_are_told_together(study, capsys):
    path = study.parent / "placements.csv"
    edit_csv(path, 2, "ulx", "left")
    edit_csv(path, 4, "lly", "")
    message = refuse_to_train(capsys, study)
    assert "2 problems" in message
    assert "line 2, column ulx" in message
    assert "line 4, column lly" in message


def test_patches_that_the_table_or_the_pipeline_lacks(study, capsys):
    assert "no rows for the patches 'raer' ('raer'" not in (
        message := refuse_to_train(capsys, study, "--data.patches", '["side", "raer"]')
    )
    assert "'raer'" in message
    assert "did you mean 'rear'?" in message
    message = refuse_to_train(capsys, study, "--pipeline.pixels.shapes", "{side = [3, 4, 4]}")
    assert "name the patch 'rear', which the pipeline does not make" in message
    message = refuse_to_train(capsys, study, "--data.patches", '["rear", "side"]')
    assert "must be the same in the same order" in message
    assert "set data.patches = [" in message


# Configs


CONFIG = {
    "typo in a key": (("learning_rate", "learning_rte"), "optimizer: unknown key 'learning_rte'; did you mean 'learning_rate'?"),
    "typo in a section": (("[optimizer]", "[optimiser]"), "unknown section 'optimiser'; did you mean 'optimizer'?"),
    "typo in a stage": (("compose.exposure", "compose.exposre"), "no definition 'compose.exposre'; did you mean 'compose.exposure'?"),
    "typo in a setting": (("stops =", "stop ="), "pipeline.camera.exposure: unknown key 'stop'; did you mean 'stops'?"),
    "a module that is not there": (("study_fixture:tiny", "study_fxture:tiny"), "needs the module 'study_fxture', which cannot be imported"),
    "a loader that is not there": (("study_fixture:tiny", "study_fixture:tny"), "no loader 'study_fixture:tny'; did you mean 'study_fixture:tiny'?"),
    "text for a number": (("num_steps = 6", 'num_steps = "six"'), "train.num_steps: expected a whole number, got 'six'"),
    "a fraction for a count": (("num_steps = 6", "num_steps = 6.5"), "train.num_steps: expected a whole number, got 6.5"),
    "zero": (("num_steps = 6", "num_steps = 0"), "train.num_steps must be at least 1, got 0"),
    "another word": (("[optimizer]", '[optimizer]\nname = "adan"'), "optimizer.name: expected one of 'adam', 'adamw', 'adamax', 'adagrad', 'adadelta', 'rmsprop', 'sgd', 'bim', 'mifgsm', 'nifgsm', got 'adan'"),
    "a range the wrong way round": (("[-0.2, 0.2]", "[0.2, -0.2]"), "got (0.2, -0.2); swap the two"),
    "a range that is none": (("[-0.2, 0.2]", "0.2"), "pipeline.camera.exposure.stops: expected [low, high], got 0.2"),
    "phases that are none": (('phases = ["eval"]', "phases = 3"), "pipeline.suppress.phases: expected"),
    "wiring that is none": (('stage = "losses.vanish"', 'stage = "losses.vanish"\nreads = 4'), "pipeline.vanish.reads: expected"),
    "no stage": (('stage = "losses.vanish"', ""), "pipeline.vanish: the key 'stage' is required"),
    "a loss weight without a term": (("vanish = 1.0", "vanihs = 1.0"), "no loss term 'vanihs'; did you mean 'vanish'?"),
    "no weight that counts": (("vanish = 1.0, total_variation = 0.05", "vanish = 0"), "at least one weight must differ from 0; terms: total_variation, vanish"),
    "no objective": (("[objective]\nweights = {vanish = 1.0, total_variation = 0.05}", ""), "the section [objective] is required; add it"),
    "a key that is required": (("size = [48, 64]", ""), "data: the key 'size' is required"),
    "weights that are gone": (('"tiny.safetensors"', '"gone.safetensors"'), "gone.safetensors: no such file"),
    "a name that is no folder": (('name = "tiny"', 'name = "../tiny"'), "name: the name '../tiny' must not hold '/'"),
    "no metric": (('stage = "metrics.detection_hit"', 'stage = "metrics.class_hit"'), "'hit'"),
    "another metric": (("[evaluate]", '[evaluate]\nmetric = "fond"'), "no stage in phase 'validation' writes 'fond'; did you mean 'found'?"),
    "another scalar for the best": (("[evaluate]", '[evaluate]\nbest = "success/ptch"'), "evaluate.best: the validation has no scalar 'success/ptch'; did you mean 'success/patch'?"),
    "broken TOML": (("[train]", "[train"), "study.toml: not valid TOML: "),
    "an order that cannot be": (('[pipeline.pixels]\nstage = "create.pixels"', '[pipeline.pixels]\nstage = "create.pixels"\nwrites = ["paint"]'), "patch"),
    "a URI that is none": (("mlflow = false", 'mlflow = "localhost:5000"'), "or like sqlite:///FILE or http://HOST:PORT, got 'localhost:5000'"),
}  # fmt: skip


@pytest.mark.parametrize("case", CONFIG)
def test_configs(study, capsys, case):
    (old, new), expected = CONFIG[case]
    replace(study, old, new)
    assert expected in refuse_to_train(capsys, study)


def test_files_that_are_none(tmp_path, capsys):
    assert (
        refuse(capsys, "train", tmp_path / "a.toml")
        == f"{tmp_path}/a.toml: no such config file; check the path"
    )
    assert (
        refuse(capsys, "describe", tmp_path) == f"{tmp_path}: it is a folder; give the TOML file of a study"
    )
    (tmp_path / "b.toml").write_bytes(b"\xff\xff")
    assert "b.toml: not valid TOML" in refuse(capsys, "train", tmp_path / "b.toml")
    (tmp_path / "c.toml").write_text("")
    assert "the section [data] is required; add it" in refuse(capsys, "train", tmp_path / "c.toml")


def test_overrides(study, capsys):
    for words, expected in {
        ("--train.num_stps", "3"): "train: unknown key 'num_stps'; did you mean 'num_steps'?",
        ("--trian.num_steps", "3"): "--trian.num_steps: there is no 'trian'; did you mean 'train'?",
        ("--train.num_steps", "many"): "train.num_steps: expected a whole number, got 'many'",
        ("--train.num_steps.low", "3"): "--train.num_steps.low: train.num_steps is 6, which has no 'low'",
        ("--pipeline.exposure.stops", "[0, 1]"): "there is no 'exposure'; did you mean 'camera/exposure'?",
        ("--train.num_steps",): "--train.num_steps: a value must follow",
    }.items():
        assert expected in refuse_to_train(capsys, study, *words)


def test_a_runs_folder_that_is_a_file(study, capsys):
    (study.parent / "runs").write_text("")
    message = refuse(capsys, "train", study)
    runs = study.parent / "runs"
    assert message == f"log.runs: {runs} cannot be written: {runs} is no folder; choose another"


def test_weights_that_are_broken(study, capsys):
    path = study.parent / "tiny.safetensors"
    path.write_bytes(path.read_bytes()[:100])
    message = refuse_to_train(capsys, study)
    assert f"resource 'study_fixture:tiny' cannot be loaded from {path}: " in message


# While training


def add_fragile(study: Path) -> None:
    fragile = '[pipeline.fragile]\nstage = "study_fixture:fragile"\nphases = ["train"]\n[pipeline.affine]'
    replace(study, "[pipeline.affine]", fragile)
    replace(study, "vanish = 1.0,", "vanish = 1.0, fragile = 0.001,")
    change(study, learning_rate=0.04, checkpoint_every=3, num_steps=40, tensorboard=True)


def test_a_loss_that_is_not_finite(study, capsys):
    add_fragile(study)
    message = refuse(capsys, "train", study)
    run = Run(next((study.parent / "runs").iterdir()))
    steps = logged_steps(run.folder)
    step = steps[-1]
    assert steps == list(range(1, step + 1))
    assert message.startswith(f"update {step + 1}: the loss term 'fragile' is nan in row ")
    assert "photograph-02.png, draw 0, with the sample {'affine/angle_deg': " in message
    assert message.endswith(
        f"; the state before it is kept; finished steps are kept; resume with: fpatch resume {run.folder}"
    )
    assert step in run.checkpoint_steps()
    # The cause removed, the run goes on from the state before, and ends as if nothing had happened.
    config = run.read_json("config.json")
    config["objective"]["weights"]["fragile"] = 0.0
    del config["pipeline"]["fragile"], config["objective"]["weights"]["fragile"]
    config["train"]["num_steps"] = step + 2
    run.write_json("config.json", config)
    assert "pipeline.fragile.stage must be study_fixture:fragile, as when" in refuse(
        capsys, "resume", run.folder
    )
    assert main(["resume", str(run.folder), "--from", "last"]) == 0
    assert logged_steps(run.folder) == list(range(1, step + 3))
    assert main(["resume", str(run.folder)]) == 0  # once accepted, it is the record


def test_a_loss_of_parameters_that_an_evaluation_does_not_have(study, capsys):
    add_fragile(study)
    replace(study, 'fragile"\nphases = ["train"]', 'fragile"')
    message = refuse_to_train(capsys, study)
    assert (
        "a node reads the parameters 'side', but an evaluation has patches only; read `patch` instead"
        in message
    )
    assert message.endswith("; in node 'fragile': study_fixture:fragile(image_id=2)")


def test_a_loss_that_is_not_finite_at_the_start(study, capsys):
    add_fragile(study)
    replace(study, "[pipeline.fragile]", "[pipeline.fragile]\nimage_id = 1")
    replace(study, "shapes = {", "start = [0.0, 0.1]\nshapes = {")
    message = refuse_to_train(capsys, study)
    assert "before training, on the first images: the loss term 'fragile' is nan in row 1" in message
    assert "photograph-0" in message
    assert "with the sample {'affine/angle_deg'" in message


# Run folders


def damage_json(name: str, **values):
    def damage(run: Run) -> None:
        facts = run.read_json(name) | values
        run.write_json(name, {k: v for k, v in facts.items() if v is not None})

    return damage


def truncate(name: str):
    return lambda run: os.truncate(run.folder / name, (run.folder / name).stat().st_size // 2)


def remove(name: str):
    return lambda run: (run.folder / name).unlink()


FOLDERS = {
    "another version": (damage_json("environment.json", format=7, fpatch="9.1.0"), "was made by fpatch 9.1.0, in format 7; this is"),
    "no version": (damage_json("environment.json", format=None), "environment.json is broken (it lacks 'format')"),
    "no config": (remove("config.json"), "lacks config.json: it is no run folder, or was killed at its start; train again"),
    "no environment": (remove("environment.json"), "lacks environment.json"),
    "half a config": (truncate("config.json"), "config.json is broken ("),
    "half an environment": (truncate("environment.json"), "environment.json is broken ("),
    "a foreign setting": (damage_json("config.json", color="red"), "config.json: unknown section 'color'"),
    "weights that changed": (lambda run: (run.folder.parent.parent / "tiny.safetensors").write_bytes(b"x" * 999), "tiny.safetensors has changed"),
    "weights that are gone": (lambda run: (run.folder.parent.parent / "tiny.safetensors").unlink(), "tiny.safetensors: no such file"),
    "photographs that are gone": (lambda run: [p.unlink() for p in run.folder.parent.parent.glob("*.png")], "no such image"),
}  # fmt: skip


@pytest.mark.parametrize("case", FOLDERS)
@pytest.mark.parametrize("command", ["resume", "evaluate", "replay"])
def test_run_folders(run, capsys, case, command):
    damage, expected = FOLDERS[case]
    if command == "resume" and case.startswith(("weights", "photographs")):
        go_back(run, "step-00000002")  # so that a resume has something to do
    damage(run)
    before = {p.name: p.read_bytes() for p in run.folder.rglob("*.safetensors")}
    assert expected in refuse(capsys, command, run.folder)
    assert {p.name: p.read_bytes() for p in run.folder.rglob("*.safetensors")} == before


FILES = {
    "half a checkpoint": ("resume", truncate("checkpoints/last.safetensors"), "last.safetensors is broken"),
    "an empty checkpoint": ("evaluate", lambda run: os.truncate(run.folder / "checkpoints/best.safetensors", 0), "best.safetensors is broken"),
    "no checkpoint": ("evaluate", remove("checkpoints/best.safetensors"), "lacks checkpoints/best.safetensors; there is: last, step-0"),
    "half a table": ("replay", truncate("tables/test.parquet"), "test.parquet is broken"),
    "a table with half its columns": ("replay", lambda run: drop_column(run, "found/noise"), "the table has no column 'found/noise'"),
    "a table that was cut off": ("replay", remove("tables/test.json"), "has no table 'test'; tables: validation-00000003, validation-00000006"),
    "half of what was shown": ("replay", truncate("tables/test.patches.safetensors"), "test.patches.safetensors is broken"),
    "half an execution": ("replay", truncate("tables/test.json"), "test.json is broken"),
    "a damaged log": ("resume", lambda run: replace(run.folder / "records.jsonl", "{", "("), "records.jsonl was cut or edited: it does not hold the records before"),
    "a checkpoint of another patch": ("resume", lambda run: run.write_json("config.json", grown(run)), "pipeline.pixels.shapes.side must be [3, 10, 14], as when the run started, got [3, 11, 14]"),
}  # fmt: skip


def drop_column(run: Run, column: str) -> None:
    path = run.folder / "tables/test.parquet"
    pyarrow.parquet.write_table(pyarrow.parquet.read_table(path).drop_columns([column]), path)


def grown(run: Run) -> dict:
    config = run.read_json("config.json")
    config["pipeline"]["pixels"]["shapes"]["side"] = [3, 11, 14]
    return config


COLUMNS = {
    "dates": ("sample/camera/exposure/stops", lambda n: pa.array([datetime.date(2026, 1, 1)] * n)),
    "durations": ("sample/camera/exposure/stops", lambda n: pa.array([1] * n, pa.duration("s"))),
    "bytes": ("path", lambda n: pa.array([b"a"] * n)),
    "decimals": ("found/patch", lambda n: pa.array([decimal.Decimal(1)] * n)),
    "lists": ("found/delta", lambda n: pa.array([[1.0]] * n)),
    "objects": ("image_id", lambda n: pa.array([{"a": 1}] * n)),
}


@pytest.mark.parametrize("case", [*COLUMNS, "one name twice"])
def test_a_column_of_a_table_holds_numbers_bools_or_texts(run, capsys, case):
    """`fpatch analyze` ended with a traceback."""
    path = run.folder / "tables/test.parquet"
    table = pyarrow.parquet.read_table(path)
    if case in COLUMNS:
        name, made = COLUMNS[case]
        table = table.set_column(table.column_names.index(name), name, made(len(table)))
        said = f"the column {name!r} must hold numbers, bools or texts, got "
    else:
        table, said = (
            table.append_column("found/delta", table["found/delta"]),
            "2 columns are named 'found/delta'",
        )
    pyarrow.parquet.write_table(table, path)
    assert f"test.parquet is broken ({said}" in refuse(capsys, "analyze", run.folder)


@pytest.mark.parametrize("case", FILES)
def test_files_of_a_run(run, capsys, case):
    command, damage, expected = FILES[case]
    damage(run)
    assert expected in refuse(capsys, command, run.folder)


def test_what_is_no_run(tmp_path, capsys):
    for command in ("resume", "evaluate", "replay"):
        assert "no such run folder" in refuse(capsys, command, tmp_path / "absent")
        assert "lacks environment.json: it is no run folder" in refuse(capsys, command, tmp_path)


def test_replay_before_evaluation_says_what_to_run(tmp_path, capsys):
    run = train(load_study(make_study(tmp_path, validation=False, num_steps=1)))
    message = refuse(capsys, "replay", run.folder, "--verify")
    assert message == f"{run.folder} has no table 'test'; `fpatch evaluate {run.folder}` makes 'test'"
    message = refuse(capsys, "evaluate", run.folder, "--split", "validation")
    assert message == "data.validation: the study has no validation split; evaluate the test split"
    assert "there is: best, last" in refuse(capsys, "evaluate", run.folder, "--checkpoint", "first")


def test_a_run_without_metrics_trains_and_says_why_it_cannot_be_evaluated(tmp_path, capsys):
    study = make_study(tmp_path, validation=False, num_steps=1)
    study.write_text(
        study.read_text().replace('[pipeline.hit]\nstage = "metrics.detection_hit"\nphases = ["eval"]\n', "")
    )
    run = train(load_study(study))
    assert parameters(run, "best") == parameters(run)
    message = refuse(capsys, "evaluate", run.folder)
    assert "evaluate.metric: no stage in phase 'test' writes 'found'" in message


def test_a_relabeled_photograph_set_is_refused_on_resume(run, capsys):
    placements = run.folder.parent.parent / "placements.csv"
    placements.write_text(placements.read_text().replace(",side,", ",top,"))
    assert "no rows for the patches 'side'" in refuse(capsys, "resume", run.folder)


# A full disk


def test_no_room_for_a_run_folder(study, capsys):
    with file_size_limit(100):
        message = refuse(capsys, "train", study)
    assert "environment.json: File too large" in message
    assert list((study.parent / "runs").iterdir()) == []


@pytest.mark.parametrize("limit", [4_000, 8_000, 20_000])
def test_a_full_disk_while_training(trained, tmp_path, capsys, limit):
    study = make_study(tmp_path, tensorboard=True)
    with file_size_limit(limit):
        message = refuse(capsys, "train", study)
    run = Run(next((tmp_path / "runs").iterdir()))
    assert message.startswith(f"cannot write {run.folder}/")
    assert "File too large; its old content is kept: free some space and resume the run" in message
    for line in (run.folder / "records.jsonl").read_text().splitlines():
        json.loads(line)
    with file_size_limit(limit):
        assert f"cannot write {run.folder}" in refuse(capsys, "resume", run.folder)
    resume(run.folder)
    assert parameters(run) == parameters(trained)
    assert logged_steps(run.folder) == list(range(1, STEPS + 1))


def test_a_full_disk_while_evaluating_keeps_the_evaluation_before(run, capsys):
    before = {p: p.read_bytes() for p in run.folder.glob("tables/*")}
    with file_size_limit(8_000):
        assert "cannot write" in refuse(capsys, "evaluate", run.folder)
    assert {p: p.read_bytes() for p in run.folder.glob("tables/*") if p.suffix != ".tmp"} == before
    assert main(["replay", str(run.folder), "--verify"]) == 0
    assert main(["evaluate", str(run.folder)]) == 0
    assert main(["replay", str(run.folder), "--verify"]) == 0


@contextmanager
def small_disk(folder: Path, size: str) -> Iterator[None]:
    """A file system of its own, where the kernel lets us."""
    folder.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", folder]).returncode:
        pytest.skip("mounting is not permitted")
    try:
        yield
    finally:
        subprocess.run(["umount", folder], check=True)


def test_a_disk_that_is_really_full(trained, tmp_path, capsys):
    study = make_study(tmp_path, runs=str(tmp_path / "disk/runs"))
    with small_disk(tmp_path / "disk", "100k"):
        message = refuse(capsys, "train", study)
        assert "No space left on device" in message
        run = Run(next((tmp_path / "disk/runs").iterdir()))
        subprocess.run(["mount", "-o", "remount,size=10m", tmp_path / "disk"], check=True)
        resume(run.folder)
        assert parameters(run) == parameters(trained)
        assert logged_steps(run.folder) == list(range(1, STEPS + 1))


# A server that goes away


@pytest.mark.slow
def test_a_tracking_server_that_goes_away_in_the_middle(trained, runs):
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    uri = f"http://127.0.0.1:{port}"
    study = make_study(runs / "study", mlflow=uri, runs=str(runs / "kept"))
    with mlflow_server(runs, port):
        server = next(  # the group that mlflow_server started
            int(pid) for pid in os.listdir("/proc")
            if pid.isdigit() and f"--port\0{port}".encode() in Path(f"/proc/{pid}/cmdline").read_bytes()
        )  # fmt: skip

        def stop_server(task, done, total, note=""):
            if task == "training" and done == 3:
                os.killpg(os.getpgid(server), signal.SIGKILL)

        run = train(load_study(study), stop_server)
    assert parameters(run) == parameters(trained)
    assert logged_steps(run.folder) == list(range(1, STEPS + 1))
    with mlflow_server(runs, port):
        resume(run.folder)
    state = json.loads((run.folder / "mlflow.json").read_text())
    assert state["offset"] == (run.folder / "records.jsonl").stat().st_size
    series = read_mlflow(run.folder, f"sqlite:///{runs / 'mlflow.db'}")
    assert [step for step, _ in series["train/loss"]] == list(range(1, STEPS + 1))
    assert len(read_records(run.folder))


# In a process of its own


def test_a_limit_on_file_sizes_in_a_process_of_its_own(tmp_path):
    make_study(tmp_path)
    limited = (
        "import resource, runpy\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (6_000, resource.RLIM_INFINITY))\n"
        "runpy.run_module('fpatch', run_name='__main__')"
    )
    done = subprocess.run(
        [sys.executable, "-c", limited, "train", "study.toml"],
        cwd=tmp_path, env=environment(), capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith("fpatch: error: cannot write ")
    assert done.stderr.count("\n") == 1


def test_settings_of_a_wrong_type_in_python():
    """Where nothing checks the annotations, as it is outside of these tests."""
    program = """
from fpatch import compose, create
import torch
patch = {"patch": {"hood": torch.ones(3, 2, 2)}, "image_id": torch.tensor([0]), "draw": torch.tensor([0])}
for make in (
    lambda: compose.blur(-1.0),
    lambda: compose.white_balance(kelvin=6500),
    lambda: create.tile(grid=(1, 2), only="hood")({}, torch.tensor([0, 1]), patch),
):
    try:
        make()
    except ValueError as error:
        print(error)
"""
    said = subprocess.run([sys.executable, "-c", program], env=environment(), capture_output=True, text=True)
    assert said.stderr == ""
    assert said.stdout.splitlines() == [
        "blur(sigma_px) must be (low, high), got -1.0; for one value, give it twice",
        "white_balance(kelvin) must be (low, high), got 6500; for one value, give it twice",
        "create.tile(only) must be a tuple of names, got 'hood'; write ('hood',)",
    ]
