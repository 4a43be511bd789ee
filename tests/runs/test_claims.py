"""A manifest's claims are compared with the study: controls, draws and the checkpoint cannot be left out."""

import json
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

from fpatch import evaluate_run, train
from fpatch.core.files import file_digest
from fpatch.demo.tiny import tiny_study
from fpatch.log.sealed import seal
from fpatch.runs.folder import Run
from fpatch.runs.grid import evaluate_grid_run
from fpatch.runs.naming import grid_name
from fpatch.runs.tables import encode_table, load_manifest, load_table
from fpatch.runs.verifying import verify_run

GRID = {"exposure/stops": [-0.05, 0.05]}
GRID_TABLE = grid_name("test", "best", GRID)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return train(tiny_study(tmp_path, {"evaluate.every": 2}))


def seal_again(run: Run, table: str, **entries: Any) -> None:
    """Seal a manifest again, with other entries and the digests of the files that are here."""
    manifest = load_manifest(run.folder, table) | entries
    manifest["files"] = {f: file_digest(run.folder / f) for f in manifest["files"]}
    (run.folder / f"tables/{table}.json").write_bytes(seal(manifest))


def leave_out(run: Run, table: str, condition: str) -> None:
    """Make a table in which a condition was never shown."""
    columns = {n: c for n, c in load_table(run.folder, table).items() if condition not in n.split("/")}
    for suffix, data in encode_table("", columns).items():
        (run.folder / f"tables/{table}.{suffix}").write_bytes(data)
    path = run.folder / f"tables/{table}.patches.safetensors"
    save_file({n: t for n, t in load_file(path).items() if not n.startswith(f"{condition}/")}, path)
    left = [p for p in load_manifest(run.folder, table)["patches"] if not p.startswith(f"{condition}/")]
    seal_again(run, table, patches=left)


@pytest.mark.parametrize(
    ("table", "condition"), [("test", "flat"), ("test", "shuffled"), (GRID_TABLE, "noise")]
)
def test_a_control_that_was_left_out_is_missing(run, table, condition):
    """It may do as well as the patch: then its absence misleads, and no row of the others differs."""
    evaluate_run(run.folder)
    evaluate_grid_run(run.folder, GRID)
    assert verify_run(run.folder, table=table).is_proved
    leave_out(run, table, condition)
    found = verify_run(run.folder, slice(0, 2), table)
    assert found.replay is not None
    assert not found.replay.differences
    assert f"{table}: the condition {condition!r} is missing" in found.differences


def test_a_control_image_and_controls_of_older_versions_are_not_proven(run, tmp_path):
    controls = {"evaluate.controls": {"poster": str(tmp_path / "0.png")}}
    evaluate_run(run.folder, settings=controls)
    (table,) = (p.name.removesuffix(".summary.json") for p in run.folder.glob("tables/*.summary.json"))
    assert verify_run(run.folder, table=table).is_proved
    leave_out(run, table, "poster")
    found = verify_run(run.folder, slice(0, 2), table)
    assert f"the condition 'poster', which {table} does not show" in found.unproven


def test_draws_that_were_left_out_are_said(run):
    evaluate_run(run.folder, settings={"evaluate.num_draws": 3})
    columns, table = load_table(run.folder, "test-num_draws-3"), "test-num_draws-3"
    kept = {n: c[columns["draw"] < 2] for n, c in columns.items()}
    for suffix, data in encode_table("", kept).items():
        (run.folder / f"tables/{table}.{suffix}").write_bytes(data)
    seal_again(run, table, num_draws=2, rows=len(kept["draw"]))
    said = verify_run(run.folder, slice(0, 2), table).differences
    assert f"tables/{table}.json: num_draws is 2, its settings say 3" in said
    seal_again(run, "validation-00000004", num_draws=4)
    found = verify_run(run.folder, slice(0, 1), "validation-00000004")
    assert "the rows of evaluate.num_draws = 1: validation-00000004 has 4 per image" in found.unproven


def test_a_summary_of_a_checkpoint_that_is_not_here_is_counted(run):
    """The table of a checkpoint "final", which no run keeps, holds the right rows; its rates are invented."""
    evaluate_run(run.folder, checkpoint="step-00000004")
    for path in [*run.folder.glob("tables/test-step-*"), *run.folder.glob("figures/test-step-*")]:
        path.rename(path.with_name(path.name.replace("step-00000004", "final")))
    summary = run.folder / "tables/test-final.summary.json"
    value = json.loads(summary.read_bytes()) | {"checkpoint": "final"}
    value["rates"]["noise"]["value"] = 0.125
    summary.write_text(json.dumps(value, indent=2) + "\n")
    manifest = json.loads((run.folder / "tables/test-final.json").read_bytes())
    files = [file.replace("step-00000004", "final") for file in manifest["files"]]
    manifest |= {"checkpoint": "final", "files": {file: file_digest(run.folder / file) for file in files}}
    (run.folder / "tables/test-final.json").write_bytes(seal(manifest))
    found = verify_run(run.folder, table="test-final")
    assert "tables/test-final.summary.json: rates.noise.value is 0.125, 0.0 is counted" in found.differences
    assert "checkpoint 'final' of test-final: the patch is that of 'best'" in found.unproven


@pytest.mark.parametrize("name", ["../../0.png", "/proc/self/status", "x" * 300, "a\0b"])
def test_records_that_name_files_elsewhere_are_not_followed(run, name):
    """A file of the user may be large, or one that blocks its reader; its digest is nobody's business."""
    evaluate_run(run.folder)
    manifest = load_manifest(run.folder, "test")
    manifest["files"][name] = "0" * 64
    (run.folder / "tables/test.json").write_bytes(seal(manifest))
    environment = run.read_json("environment.json")
    environment["files"][name] = "0" * 64
    (run.folder / "environment.json").write_bytes(seal(environment))
    said = verify_run(run.folder, slice(0, 1)).differences
    outside = f"{name} is recorded, and is no file of the folder"
    assert outside in said if "/" in name else f"{name} is missing" in said
