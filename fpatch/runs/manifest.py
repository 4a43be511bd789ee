"""Every file of a run folder: as recorded, different, or not checked for a reason."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fpatch.log.records import mark_at, parse_record, read_seal
from fpatch.log.sealed import SEAL
from fpatch.runs.checkpoints import Header, check_checkpoint, has_checkpoint
from fpatch.runs.checks import record_damage
from fpatch.runs.files import file_damage, is_sealed_run
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.runs.naming import find_other_name
from fpatch.runs.standing import find_damage
from fpatch.runs.tables import load_manifest, table_damage

OLD = "made by a version that recorded no digest"

_UNRECORDED: tuple[tuple[str, str], ...] = (
    ("tensorboard/", "a copy of the records"),
    ("profile/", "times of steps"),
    ("aside/", "moved aside by a resume"),
    ("mlflow.json", "what MLflow has received"),
    (".lock", "empty; held while a process writes"),
    ("figures/scatter", "drawn from a table by fpatch analyze"),
    ("figures/training.gif", "drawn from the checkpoints by fpatch analyze"),
)


class Files(NamedTuple):
    """The files of a run folder, by relative path.

    Attributes:
        checked: Files that equal their recorded digest.
        unchecked: The reason for each file that nothing can be compared with.
        damage: A sentence for each file that is missing or not as it was written.
    """

    checked: set[str]
    unchecked: dict[str, str]
    damage: list[str]


def check_files(run: Run) -> Files:
    """Compare every file of a run folder with its recorded digest."""
    there = {p.relative_to(run.folder).as_posix() for p in run.folder.rglob("*") if p.is_file()}
    checked: set[str] = set()
    damage: list[str] = []
    is_old = not {"files", SEAL} & set(run.read_json("environment.json"))
    for files, said in (
        _check_inputs(run),
        _check_records(run, is_old),
        _check_logged(run),
        _check_checkpoints(run),
        _check_tables(run, there),
    ):
        checked |= files
        damage += said
    named = {file for file in there if any(file in sentence for sentence in damage)}
    checked = (checked & there) - named
    rest = sorted(there - checked - named)
    return Files(checked, {file: _reason(file, is_old) for file in rest}, list(dict.fromkeys(damage)))


_Found = tuple[set[str], list[str]]
"""The files that equal their digest, and a sentence for each that does not."""


def _check_inputs(run: Run) -> _Found:
    environment = run.read_json("environment.json")
    if not {"files", SEAL} & set(environment):
        return set(), []
    return {"environment.json", *environment.get("files", ())}, record_damage(run)


def _check_records(run: Run, is_old: bool) -> _Found:
    """Check the log against its seal; what follows it was not committed."""
    path = run.folder / "records.jsonl"
    try:
        sealed = read_seal(run.folder)
    except ValueError:
        return set(), ["records.json is not as it was written"]
    if sealed is None:
        return set(), [] if is_old else ["records.json is missing"]
    if not path.is_file():
        return {"records.json"}, ["records.jsonl is missing"]
    if mark_at(run.folder, sealed[1].size) != sealed[1]:
        return {"records.json"}, ["records.jsonl is not as it was written: records were cut or edited"]
    if path.stat().st_size > sealed[1].size:
        return {"records.json"}, []  # the rest of the log is not sealed
    return {"records.json", "records.jsonl"}, []


def _check_logged(run: Run) -> _Found:
    """Check the files that the log names by their digests: logged images, and the patches."""
    recorded: dict[str, str] = {}
    for record in _lines(run.folder / "records.jsonl"):
        if record.get("kind") == "files" and isinstance(record.get("values"), dict):
            recorded.update(record["values"])
    return _compare(run.folder, recorded)


def _lines(path: Path) -> Iterator[dict[str, Any]]:
    """Read the records that can be read; the log is checked as a whole elsewhere."""
    for line in path.read_bytes().splitlines() if path.is_file() else ():
        try:
            yield dict(parse_record(line))
        except ValueError:
            continue


def _compare(folder: Path, recorded: Mapping[str, str]) -> _Found:
    said = (file_damage(folder, file, digest) for file, digest in recorded.items())
    return set(recorded), [sentence for sentence in said if sentence is not None]


def _check_checkpoints(run: Run) -> _Found:
    """Check the tensors and headers of all checkpoints, and that none of their chain is missing."""
    checked, damage = set(), []
    headers: dict[str, Header] = {}
    for path in sorted((run.folder / "checkpoints").glob("*.safetensors")):
        file = f"checkpoints/{path.name}"
        try:
            headers[path.stem] = check_checkpoint(run.folder, path.stem)
        except RunError as error:
            damage.append(f"{file}: {str(error).removeprefix(str(run.folder))}")
            continue
        if headers[path.stem].state is not None:
            checked.add(file)
    for name, header in headers.items():
        before = header.previous
        if before is None or f"checkpoints/step-{before.step:08d}.safetensors is missing" in damage:
            continue
        one = f"step-{before.step:08d}"
        if not has_checkpoint(run.folder, one):
            damage.append(f"checkpoints/{one}.safetensors is missing")
        elif one in headers and headers[one].state not in (None, before.state):
            damage.append(f"checkpoints/{one}.safetensors is not the one before checkpoint {name!r}")
    last = headers.get("last")
    if last is not None and last.numbered and last.state is not None:
        one = f"step-{last.step:08d}"
        if not has_checkpoint(run.folder, one):
            damage.append(f"checkpoints/{one}.safetensors is missing")
        elif one in headers and headers[one].state != last.state:
            damage.append(f"checkpoints/{one}.safetensors is not the state of checkpoint 'last'")
    damage += _find_other_best(run, headers)
    if "last" in headers or not has_checkpoint(run.folder, "last"):
        damage += find_damage(run) if _is_whole(damage) else []
    return checked, damage


def _find_other_best(run: Run, headers: Mapping[str, Header]) -> list[str]:
    """Without validations the best checkpoint of a finished run is the last one."""
    best, last = headers.get("best"), headers.get("last")
    if best is None or last is None or last.facts or None in (best.state, last.state):
        return []
    config = run.read_json("config.json")
    finished = last.step >= config.get("train", {}).get("num_steps", last.step)
    what = "checkpoints/best.safetensors is not the last checkpoint, though nothing validates"
    return [what] if finished and best.state != last.state else []


def _is_whole(damage: list[str]) -> bool:
    """Return whether all checkpoints can be read."""
    return not any("broken" in sentence for sentence in damage)


def _check_tables(run: Run, there: set[str]) -> _Found:
    checked, damage = set(), []
    manifests = {f for f in there if f.startswith("tables/") and f.endswith(".json")}
    names = {f.removeprefix("tables/").removesuffix(".json") for f in manifests}
    names = {name for name in names if not name.endswith(".summary")}
    for name in sorted(names):
        try:
            manifest = load_manifest(run.folder, name)
        except RunError as error:
            if f"tables/{name}.parquet" in there:  # otherwise it is no manifest
                damage.append(f"tables/{name}.json: {error}")
            continue
        if {"files", SEAL} & set(manifest) or is_sealed_run(run.folder):
            checked |= {f"tables/{name}.json", *manifest.get("files", ())}
            damage += [*table_damage(run.folder, name), *find_other_name(name, manifest)]
    for file in sorted(there):
        name = file.removeprefix("tables/").removesuffix(".parquet").removesuffix(".objects")
        if file.startswith("tables/") and file.endswith(".parquet") and name not in names:
            damage.append(f"tables/{name}.json is missing, so {file} is no whole evaluation")
    return checked, damage


def _reason(file: str, is_old: bool) -> str:
    """Return the reason why a file is not checked."""
    for start, reason in _UNRECORDED:
        if file.startswith(start):
            return reason
    if file == "records.jsonl":
        return OLD if is_old else "records.json does not cover all of it"
    if file.endswith(".tmp"):
        return "incomplete, left by a kill"
    return OLD if is_old else "no digest is recorded"
