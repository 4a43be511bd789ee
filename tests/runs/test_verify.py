"""Verifying is a proof: a bit, a row, a value or an input that changed is named, sealed again or not."""

import errno
import json
import os
import random as python_random
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet
import pytest
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from study_fixture import copy_run

from fpatch.cli.main import main
from fpatch.core.files import digest, file_digest
from fpatch.log.sealed import SEAL, seal
from fpatch.runs import record
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.folder import Run
from fpatch.runs.grid import evaluate_grid_run
from fpatch.runs.locks import RunError
from fpatch.runs.manifest import check_files
from fpatch.runs.naming import grid_name
from fpatch.runs.tables import encode_table
from fpatch.runs.verifying import verify_run

GRID = {"camera/exposure/stops": [-0.2, 0.2]}
GRID_TABLE = grid_name("test", "best", GRID)
OUTSIDE = ("placements.csv", "objects.csv", "tiny.safetensors", "photograph-01.png", "photograph-09.png")
"""Files of the study on which the numbers rest."""
UNCHECKED = {".lock", "tensorboard"}
"""Files of the run without a digest."""


@pytest.fixture(scope="module")
def whole(trained, tmp_path_factory) -> Run:
    """A copy of a run with a grid and with figures of analysis; not to be written to for good."""
    run = copy_run(trained, tmp_path_factory.mktemp("whole"))
    evaluate_run(run.folder)
    evaluate_grid_run(run.folder, GRID)
    return run


@pytest.fixture
def copy(whole, tmp_path) -> Run:
    """A copy that a test may damage for good."""
    return copy_run(whole, tmp_path)


def files_of(run: Run) -> list[Path]:
    return sorted(p for p in run.folder.rglob("*") if p.is_file() and p.stat().st_size)


def places(run: Run) -> dict[str, Path]:
    """All files of a run and of its study, by the name that must be said of them."""
    outside = {name: run.folder.parent.parent / name for name in OUTSIDE}
    return {p.relative_to(run.folder).as_posix(): p for p in files_of(run)} | outside


def say(run: Run, capsys, *words: str) -> tuple[int, str]:
    """Exit code and output of `fpatch replay --verify`."""
    capsys.readouterr()
    code = main(["replay", str(run.folder), "--verify", *words])
    found = capsys.readouterr()
    return code, found.out + found.err


def assert_named(name: str, run: Run, capsys, *words: str) -> bool:
    """It is named as different (True), or it is in the list of what was not checked (False)."""
    code, said = say(run, capsys, *words)
    folder = name.partition("/")[0]
    if folder in UNCHECKED:
        assert f"not checked: {folder}" in said, (name, said)
        return False
    assert code != 0, (name, said)
    sentences = [line for line in said.splitlines() if not line.startswith(("checked", "not "))]
    assert any(name in line or Path(name).name in line for line in sentences), (name, said)
    return True


def flip(path: Path, rng: python_random.Random) -> bytes:
    """Flip one bit; return what was there."""
    data = path.read_bytes()
    position, bit = rng.randrange(len(data)), rng.randrange(8)
    path.write_bytes(data[:position] + bytes([data[position] ^ 1 << bit]) + data[position + 1 :])
    return data


# Nothing was changed


def test_an_untouched_run_is_proved_and_what_is_not_checked_is_listed(whole, capsys):
    for table in ("test", "validation-00000003", "validation-00000006", GRID_TABLE):
        code, said = say(whole, capsys, "--table", table)
        assert code == 0, said
    unchecked = check_files(whole).unchecked
    assert {name.partition("/")[0] for name in unchecked} == UNCHECKED
    listed = [line for line in said.splitlines() if line.startswith("not checked: ")]
    assert len(listed) == 2
    everything = {p.relative_to(whole.folder).as_posix() for p in whole.folder.rglob("*") if p.is_file()}
    assert check_files(whole).checked | set(unchecked) == everything


def test_what_a_user_puts_into_the_folder_is_listed(copy):
    (copy.folder / "notes.txt").write_text("mine")
    assert check_files(copy).unchecked["notes.txt"] == "no digest is recorded"
    assert verify_run(copy.folder, slice(0, 1)).is_proved


# One bit, in any file


def kinds(run: Run) -> dict[str, Path]:
    """One file of each kind."""
    found: dict[str, str] = {}
    for name in places(run):
        folder, _, rest = name.rpartition("/")
        kind = folder.partition("/")[0] + rest.partition(".")[2] if folder else name
        found.setdefault(kind, name)
    return {name: places(run)[name] for name in found.values()}


def test_one_bit_of_one_file_of_each_kind(whole, capsys):
    rng = python_random.Random(0)
    assert len(kinds(whole)) > 18
    for name, path in kinds(whole).items():
        before = flip(path, rng)
        try:
            assert_named(name, whole, capsys, "--rows", "0:1")
        finally:
            path.write_bytes(before)


@pytest.mark.slow
@pytest.mark.timeout(1800)  # 500 commands
def test_500_flipped_bits(whole, capsys):
    rng = python_random.Random(1)
    everywhere, listed = places(whole), set()
    for i in range(500):
        name = sorted(everywhere)[i % len(everywhere)]
        before = flip(everywhere[name], rng)
        try:
            if not assert_named(name, whole, capsys, "--rows", "0:1"):
                listed.add(name.partition("/")[0])
        finally:
            everywhere[name].write_bytes(before)
    assert listed == {"tensorboard"}  # all others are named


@pytest.mark.parametrize("part", [pytest.param("kinds"), pytest.param("all", marks=pytest.mark.slow)])
def test_a_deleted_file(whole, capsys, part):
    for name, path in (kinds if part == "kinds" else places)(whole).items():
        if name == ".lock" or name.startswith("tensorboard"):
            continue  # nothing is lost with them
        before = path.read_bytes()
        path.unlink()
        try:
            code, said = say(whole, capsys, "--rows", "0:1")
            assert code != 0, name
            assert name in said or Path(name).name in said, (name, said)
        finally:
            path.write_bytes(before)


# One value, in any file


def leaves(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if isinstance(value, dict | list) and value:
        for key in value if isinstance(value, dict) else range(len(value)):
            yield from leaves(value[key], (*place, key))
    else:
        yield place


def edited(value: Any, place: tuple[Any, ...]) -> Any:
    """A copy in which one entry is another."""
    value = json.loads(json.dumps(value))
    target = value
    for key in place[:-1]:
        target = target[key]
    old = target[place[-1]]
    target[place[-1]] = (
        not old
        if isinstance(old, bool)
        else np.nextafter(old, np.inf)
        if isinstance(old, float)
        else old + 1
        if isinstance(old, int)
        else f"{old}x"
    )
    return value


def edits(path: Path) -> Iterator[bytes]:
    """The content of a file of JSON, each time with one value edited."""
    if path.suffix == ".json":
        value = json.loads(path.read_bytes())
        for place in leaves(value):
            yield json.dumps(edited(value, place), indent=2).encode() + b"\n"
    else:
        lines = path.read_bytes().splitlines(keepends=True)
        for i, line in enumerate(lines):
            value = json.loads(line)
            for place in leaves(value):
                new = json.dumps(edited(value, place), ensure_ascii=False).encode() + b"\n"
                yield b"".join([*lines[:i], new, *lines[i + 1 :]])


@pytest.mark.parametrize("share", [pytest.param(0.02), pytest.param(1.0, marks=pytest.mark.slow)])
def test_an_edited_value_in_any_json(whole, share):
    rng, count = python_random.Random(2), 0
    for path in files_of(whole):
        name = path.relative_to(whole.folder).as_posix()
        if path.suffix not in (".json", ".jsonl"):
            continue
        before = path.read_bytes()
        try:
            for content in edits(path):
                if rng.random() < share:
                    path.write_bytes(content)
                    count += 1
                    try:
                        damage = " ".join(check_files(whole).damage)
                    except ValueError as error:
                        damage = str(error)
                    assert name in damage, (name, content)
        finally:
            path.write_bytes(before)
    assert count > 20


def test_an_edited_header_or_number_of_a_checkpoint(copy):
    path = copy.folder / "checkpoints/step-00000002.safetensors"
    before = path.read_bytes()
    with safe_open(path, framework="pt") as file:
        metadata = dict(file.metadata())
    for field, value in {
        "step": "3", "format": "9", "facts": '{"best": 2.0, "best_step": 1}', "records": "[1, \"x\"]",
        "previous": "null", "numbered": "false", "state": "0" * 64, "seal": "0" * 64, "more": "1",
    }.items():  # fmt: skip
        save_file(load_file(path), path, metadata | {field: value})
        assert any("step-00000002" in s for s in check_files(copy).damage), field
        path.write_bytes(before)
    tensors = load_file(path)
    for name in tensors:
        other = load_file(path)
        flat = other[name].view(-1)
        flat[0] = flat[0] + 1
        save_file(other, path, metadata)
        assert any("step-00000002" in s for s in check_files(copy).damage), name
        path.write_bytes(before)


# Edited and sealed again: what is computed again does not believe a digest


def seal_again(run: Run, name: str = "test") -> None:
    path = run.folder / f"tables/{name}.json"
    manifest = json.loads(path.read_bytes())
    manifest["files"] = {file: file_digest(run.folder / file) for file in manifest["files"]}
    path.write_bytes(seal(manifest))


def rewrite(run: Run, name: str, change: Callable[[dict[str, np.ndarray]], Mapping[str, np.ndarray]]) -> None:
    """Change the columns of a table, in both of its files, and seal it again."""
    prefix = "objects." if name.endswith(".objects") else ""
    table = pyarrow.parquet.read_table(run.folder / f"tables/{name}.parquet")
    columns = change({n: table[n].to_numpy().copy() for n in table.column_names})
    for suffix, data in encode_table(prefix, columns).items():
        (run.folder / f"tables/{name.removesuffix('.objects')}.{suffix}").write_bytes(data)
    seal_again(run, name.removesuffix(".objects"))


def other(value: Any) -> Any:
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, bool | np.bool_):
        return not value
    if isinstance(value, np.floating):
        up = np.nextafter(value, value.dtype.type(np.inf))
        return -0.0 if value == 0 and not np.signbit(value) else up
    return value + 1


@pytest.mark.slow
def test_an_edited_value_in_any_column_of_a_table(copy):
    columns = copy.load_table("test")
    for name in columns:

        def change(table, name=name):
            table[name][2] = other(table[name][2])
            return table

        before = {p: p.read_bytes() for p in copy.folder.glob("tables/test*")}
        rewrite(copy, "test", change)
        found = verify_run(copy.folder)
        said = [*found.differences, *(s for row in found.replay.differences.values() for s in row)]
        assert not found.is_proved, name
        assert any(name in sentence for sentence in said), (name, said)
        for path, data in before.items():
            path.write_bytes(data)


CUTS: dict[str, Callable[[int], list[int]]] = {
    "the last row": lambda n: list(range(n - 1)),
    "the first row": lambda n: list(range(1, n)),
    "half": lambda n: list(range(n // 2)),
    "every second": lambda n: list(range(0, n, 2)),
    "one instead of another": lambda n: [0, 0, *range(2, n)],
    "one twice": lambda n: [0, *range(n)],
    "another order": lambda n: [1, 0, *range(2, n)],
}


@pytest.mark.parametrize("cut", CUTS)
@pytest.mark.parametrize("name", ["test", "validation-00000003", GRID_TABLE])
def test_a_table_that_was_cut_never_verifies(copy, name, cut):
    """Not even with its number of rows and its digests made to fit."""

    def change(table):
        rows = CUTS[cut](len(table["image_id"]))
        return {n: column[rows] for n, column in table.items()}

    rewrite(copy, name, change)
    found = verify_run(copy.folder, table=name)
    assert not found.is_proved
    path = copy.folder / f"tables/{name}.json"
    count = len(pyarrow.parquet.read_table(path.with_suffix(".parquet")))
    path.write_bytes(seal(json.loads(path.read_bytes()) | {"rows": count}))
    found = verify_run(copy.folder, table=name)
    assert not found.is_proved
    assert found.files.damage == []


def copy_table(run: Run, source: str, name: str, as_its_own: bool) -> None:
    """Copy the files of a table under another name, as a user does, or as one who forges its record."""
    for folder in ("tables", "figures"):
        for path in (run.folder / folder).glob(f"{source}*"):
            rest = path.name.removeprefix(source)
            if rest.startswith(".") or (rest.startswith("-") and rest.partition(".")[0] in _FIGURES):
                shutil.copy(path, path.with_name(name + rest))
    if as_its_own:
        path = run.folder / f"tables/{name}.json"
        manifest = json.loads(path.read_bytes())
        manifest["files"] = {f.replace(f"/{source}", f"/{name}"): d for f, d in manifest["files"].items()}
        path.write_bytes(seal(manifest))


_FIGURES = ("-effects", "-classes", "-cells")


@pytest.mark.parametrize("as_its_own", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_a_table_under_the_name_of_another_is_named(copy, caplog, as_its_own):
    """The rows of each are right; they answer another question than the name says."""
    evaluate_run(copy.folder, checkpoint="last")
    evaluate_run(copy.folder, settings={"seed": 5})
    other_grid = {"camera/exposure/stops": [-0.2, 0.1]}
    evaluate_grid_run(copy.folder, other_grid)
    for source, name in (
        (GRID_TABLE, "test"),
        ("test-last", "test"),
        ("test-seed-5", "test"),
        ("validation-00000003", "test"),
        ("test", "test-mine"),
        (grid_name("test", "best", other_grid), GRID_TABLE),
    ):
        before = {p: p.read_bytes() for p in copy.folder.rglob("*") if p.is_file()}
        copy_table(copy, source, name, as_its_own)
        (copy.folder / f"tables/{name}.summary.json").unlink(missing_ok=True)
        said = f"tables/{name}.json is the record of another table, {source!r}"
        assert said in verify_run(copy.folder, slice(0, 1), name).differences, (source, name)
        caplog.clear()
        main(["analyze", str(copy.folder), "--table", name])
        assert said in caplog.text
        for path in {*before, *(p for p in copy.folder.rglob("*") if p.is_file())}:
            path.write_bytes(before[path]) if path in before else path.unlink()
    assert not [s for s in verify_run(copy.folder, slice(0, 1)).differences if "another table" in s]


@pytest.mark.parametrize("field", ["block", "threads"])
@pytest.mark.parametrize("value", [-1, 0, True, 2.5, "3", None])
def test_an_execution_that_runs_nothing_is_refused(copy, capsys, field, value):
    path = copy.folder / "tables/test.json"
    facts = json.loads(path.read_bytes())
    facts["execution"][field] = value
    path.write_bytes(seal(facts))
    code, said = say(copy, capsys)
    assert code == 1
    assert f"execution.{field}" in said
    assert said.splitlines()[-1] == "rows 0 identical 0 different 0"


def edit_json(path: Path, **entries: Any) -> None:
    path.write_bytes(seal(json.loads(path.read_bytes()) | entries))


def test_a_summary_a_csv_a_patch_and_a_logged_rate_are_computed_again(copy):
    def said() -> str:
        return " ".join(verify_run(copy.folder).differences)

    summary = copy.folder / "tables/test.summary.json"
    before = summary.read_bytes()
    value = json.loads(before)
    value["rates"]["noise"]["value"] += 1e-12
    summary.write_text(json.dumps(value, indent=2) + "\n")
    seal_again(copy)
    assert "test.summary.json: rates.noise.value" in said()
    summary.write_bytes(before)
    text = copy.folder / "tables/test.csv"
    before = text.read_bytes()
    text.write_bytes(before.replace(b"true", b"false", 1))
    seal_again(copy)
    assert "test.csv does not hold the numbers" in said()
    text.write_bytes(before)
    shown = copy.folder / "tables/test.patches.safetensors"
    tensors = load_file(shown)
    for name in tensors:
        before = shown.read_bytes()
        changed = {n: t.clone() for n, t in tensors.items()}
        changed[name].view(-1)[3] = 1.0 - changed[name].view(-1)[3]
        save_file(changed, shown)
        seal_again(copy)
        assert f"{name} is not that of checkpoint 'best'" in said()
        shown.write_bytes(before)
    seal_again(copy)
    log = copy.folder / "records.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()]
    for line in lines:
        if "test/success/noise" in line["values"]:
            line["values"]["test/success/noise"] += 0.25
    log.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
    data = log.read_bytes()
    edit_json(copy.folder / "records.json", bytes=len(data), sha256=digest(data))
    assert "records.jsonl: test/success/noise is" in said()


# Inputs


@pytest.mark.parametrize("command", ["replay", "evaluate", "grid", "analyze", "transfer", "matrix"])
def test_every_command_says_which_input_is_not_the_recorded_one(copy, tmp_path, capsys, caplog, command):
    study = copy.folder.parent.parent
    objects = study / "objects.csv"
    objects.write_text(objects.read_text().replace("20", "21", 1))
    picture = study / "photograph-10.png"
    picture.write_bytes(picture.read_bytes()[:-12] + bytes(12))
    environment = copy.read_json("environment.json")
    environment["sources"]["fpatch"]["losses"] = "0" * 32
    environment["sources"]["modules"]["study_fixture"] = "0" * 32
    (copy.folder / "environment.json").write_bytes(seal(environment))
    other = copy_run(copy, tmp_path / "other").folder
    other = other.rename(other.with_name("other"))
    words = {
        "replay": ["--rows", "0"], "evaluate": [], "analyze": ["--metric", "best_score/delta/noise"],
        "grid": ["--over", "camera/exposure/stops=0"],
        "transfer": [str(other), "--out", str(study / "transfer")],
        "matrix": ["--defense", "defend.bit_depth", "--out", str(study / "matrix")],
    }[command]  # fmt: skip
    main([command, str(copy.folder), *words])
    capsys.readouterr()
    for name in ("data.objects", "photograph-10.png", "fpatch/losses", "module study_fixture"):
        assert name in caplog.text, name
    caplog.clear()
    code, said = say(copy, capsys)
    assert code == 1
    for name in ("data.objects", "photograph-10.png", "fpatch/losses", "module study_fixture"):
        assert name in said


def test_swapped_labels_and_another_list_of_classes(copy, capsys):
    config = copy.read_json("config.json")
    config["data"]["classes"] = ["vehicle", "nothing"]
    copy.write_config(config)
    code, said = say(copy, capsys)
    assert code == 1
    assert "data.classes" in said


def test_large_data_sets_are_known_by_size_and_time(copy, monkeypatch):
    from fpatch.runs.opening import open_run

    monkeypatch.setattr(record, "MAX_HASHED_BYTES", 0)
    dataset = open_run(copy.folder)[1].data.open()
    (copy.folder / "data.json").write_bytes(record.images_file(dataset))
    assert record.changed_images(copy.folder, dataset) == []
    picture = copy.folder.parent.parent / "photograph-10.png"
    data = picture.read_bytes()
    shutil.copy(picture, picture.with_suffix(".old"))
    picture.write_bytes(data)
    (said,) = record.changed_images(copy.folder, dataset)
    assert "photograph-10.png: it was changed or copied since, and its content is not recorded" in said


def edit_record(run: Run, file: str, change: Callable[[dict[str, Any]], Any]) -> None:
    """Edit a sealed file, and seal it and the record again."""
    value = json.loads((run.folder / file).read_text())
    change(value)
    (run.folder / file).write_bytes(seal(value))
    environment = run.read_json("environment.json")
    if file in environment.get("files", {}):
        environment["files"][file] = file_digest(run.folder / file)
        (run.folder / "environment.json").write_bytes(seal(environment))


LACKS: dict[str, tuple[str, Callable[[dict[str, Any]], Any]]] = {
    "sources.fpatch": ("environment.json", lambda v: v.pop("sources")),
    "module study_fixture": ("environment.json", lambda v: v["sources"]["modules"].clear()),
    "data.placements": ("environment.json", lambda v: v.update(data={})),
    "data.objects": ("environment.json", lambda v: v["data"].pop("objects")),
    "data.classes": ("environment.json", lambda v: v.pop("data")),
    "files.config.json": ("environment.json", lambda v: v.pop("files")),
    "files.data.json": ("environment.json", lambda v: v["files"].pop("data.json")),
    "photograph-00.png: data.json lacks its digest": (
        "data.json", lambda v: [i.pop("sha256") for i in v["images"]],
    ),
    "tables/test.json lacks 'files'": ("tables/test.json", lambda v: v.pop("files")),
    "tables/test.json lacks 'state'": ("tables/test.json", lambda v: v.pop("state")),
    "tables/test.json: step is 5, its patch is that of step 6": (
        "tables/test.json", lambda v: v.update(step=5),
    ),
    "tables/test.json is broken (grid": ("tables/test.json", lambda v: v.update(grid=[1])),
}  # fmt: skip


@pytest.mark.parametrize("part", LACKS)
def test_a_sealed_record_that_lacks_a_part_proves_nothing(copy, capsys, part):
    """A part that is taken out, such as the digests of the data, is no claim of an older version."""
    edit_record(copy, *LACKS[part])
    code, said = say(copy, capsys, "--rows", "0:1")
    assert code == 1
    assert part in said


def test_a_table_or_checkpoint_in_the_form_of_an_older_version_is_named(copy, capsys):
    """A run that began with digests has them everywhere; to take all of one file out is no claim of age."""
    manifest = copy.folder / "tables/test.json"
    plain = {n: v for n, v in json.loads(manifest.read_bytes()).items() if n not in (SEAL, "files", "state")}
    sealed = manifest.read_bytes()
    manifest.write_text(json.dumps(plain))
    code, said = say(copy, capsys, "--rows", "0:1")
    assert code == 1
    assert "tables/test.json lacks 'seal', which every evaluation records" in said
    manifest.write_bytes(sealed)

    path = copy.folder / "checkpoints/step-00000002.safetensors"
    with safe_open(path, "pt") as file:
        header = {n: file.metadata()[n] for n in ("step", "format", "facts")}
    save_file({n: t + 1 for n, t in load_file(path).items()}, path, header)
    code, said = say(copy, capsys, "--rows", "0:1")
    assert code == 1
    assert "its header lacks 'state', which every checkpoint records" in said
    with pytest.raises(RunError, match="lacks 'state'"):
        copy.load_params("step-00000002")


@pytest.mark.parametrize("grid", [True, 7, "x", [1], {"a": 1}, {"a": None}, {"a": ["x"]}, {"a": [10**400]}])
def test_a_grid_that_is_none_is_one_sentence(copy, capsys, grid):
    edit_record(copy, "tables/test.json", lambda v: v.update(grid=grid))
    code, said = say(copy, capsys, "--rows", "0:1")
    assert code in (1, 2)
    assert "tables/test.json is broken (grid" in said


def test_images_of_which_no_content_is_recorded_are_not_proven(copy, capsys):
    study = copy.folder.parent.parent

    def know_by_time(value: dict[str, Any]) -> None:
        for image in value["images"]:
            del image["sha256"]
            image["modified_ns"] = (study / image["name"]).stat().st_mtime_ns

    edit_record(copy, "data.json", know_by_time)
    code, said = say(copy, capsys, "--rows", "0:1")
    assert code == 0
    assert "not proven: the content of 12 images: their sizes and times alone are recorded" in said


# Old runs


def test_a_run_of_an_older_version_says_what_its_record_cannot_prove(tmp_path, capsys):
    here = Path(__file__).parents[1] / "recorded"
    shutil.copytree(here / "run", tmp_path / "run")
    shutil.copytree(here / "study", tmp_path, dirs_exist_ok=True)
    config = tmp_path / "run/config.json"
    config.write_text(config.read_text().replace("/fpatch-old", str(tmp_path)))
    found = verify_run(tmp_path / "run")
    assert found.files.damage == []
    assert found.files.checked == set()
    assert {"config.json", "records.jsonl", "tables/test.csv"} <= set(found.files.unchecked)
    assert found.replay is not None
    assert len(found.replay.rows) == 4
    said = [s for sentences in found.replay.differences.values() for s in sentences]
    assert not any(s.startswith(("sample", "key/", "draw", "path", "image_id", "photograph")) for s in said)


def test_a_run_of_somebody_else_that_cannot_be_written_is_verified(copy, monkeypatch, capsys):
    """No file of the run is opened for writing, and none is made."""
    real = os.open

    def refuse(path, flags, *words, **named):
        inside = (
            Path(os.fsdecode(path)).is_relative_to(copy.folder) if isinstance(path, str | Path) else False
        )
        if inside and flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return real(path, flags, *words, **named)

    monkeypatch.setattr(os, "open", refuse)
    code, said = say(copy, capsys)
    assert (code, "rows 8 identical 8" in said) == (0, True), said
    assert main(["replay", str(copy.folder), "--step", "3", "--verify"]) == 0
    (copy.folder / "records.jsonl").unlink()
    assert say(copy, capsys)[0] == 1
    assert not (copy.folder / "records.jsonl").exists()
