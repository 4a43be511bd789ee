"""The record of a run's inputs: its settings, the source files behind its stages, its tables and images."""

import functools
import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fpatch.core.files import digest, file_digest
from fpatch.core.resource import named_files
from fpatch.core.schema import flatten
from fpatch.core.sources import edited_modules, module_digests
from fpatch.data import TargetSet
from fpatch.log.records import parse_record
from fpatch.log.sealed import seal
from fpatch.log.values import to_plain
from fpatch.runs.files import read_json
from fpatch.runs.places import is_place
from fpatch.study.study import Study

MAX_HASHED_BYTES = 4 * 2**30
"""Images of more bytes together are known by size and time alone; this many take some seconds to hash."""

_PACKAGE = Path(__file__).parents[1]


def describe_sources(study: Study) -> dict[str, dict[str, str]]:
    """Return the digests of the source files on which a run depends.

    Returns:
        "fpatch": the files of each wing; "modules": the modules of the user that define stages and loaders,
        and those that they import from beside them; "files": the files that settings of stages name.
    """
    files = {name: file_digest(name) for name in sorted(set(_files_of(study.config.get("pipeline", {}))))}
    return {"fpatch": dict(_wing_digests()), "modules": module_digests(_modules_of(study)), "files": files}


def describe_data(study: Study, dataset: TargetSet) -> dict[str, Any]:
    """Return the digests of the tables, the classes, and the names and sizes of the images."""
    tables = {"placements": study.data.placements, "objects": study.data.objects}
    digests = {name: file_digest(path) for name, path in tables.items() if path is not None}
    sizes = "\n".join(f"{path.name} {path.stat().st_size}" for path in dataset.paths)
    classes = digest(json.dumps(dataset.class_names).encode())
    return digests | {"classes": classes, "photographs": digest(sizes.encode())}


def describe_images(dataset: TargetSet) -> list[dict[str, Any]]:
    """Describe every image of a data set: its name, split and size, and its digest or its time.

    Contents are hashed up to `MAX_HASHED_BYTES`; beyond it, the time of the last change takes their place.
    """
    states = [path.stat() for path in dataset.paths]
    hashed = sum(state.st_size for state in states) <= MAX_HASHED_BYTES
    found = []
    for path, split, state in zip(dataset.paths, dataset.splits, states, strict=True):
        content = (
            {"sha256": _digest_of(str(path), state.st_size, state.st_mtime_ns)}
            if hashed
            else {"modified_ns": state.st_mtime_ns}
        )
        found.append({"name": path.name, "split": split, "bytes": state.st_size, **content})
    return found


def images_file(dataset: TargetSet) -> bytes:
    """Return the content of `data.json`: the description of all images."""
    return seal({"images": describe_images(dataset)})


def changed_images(folder: Path, dataset: TargetSet, splits: Iterable[str] | None = None) -> list[str]:
    """Compare the images with `data.json`; return a sentence for each that differs, in some splits or all.

    The images of a run without that file are not compared.
    """
    path = folder / "data.json"
    if not path.is_file():
        return []
    wanted = None if splits is None else set(splits)
    recorded = read_json(path, "images")["images"]
    if len(recorded) != len(dataset.paths):
        return [f"images: {len(recorded)} were recorded, {len(dataset.paths)} are here"]
    said = []
    for was, image_path in zip(recorded, dataset.paths, strict=True):
        if wanted is not None and was["split"] not in wanted:
            continue
        now = image_path.stat() if image_path.is_file() else None
        if now is None:
            said.append(f"image {image_path}: the file is missing")
        elif was["bytes"] != now.st_size:
            said.append(f"image {image_path}: {was['bytes']} bytes were recorded, {now.st_size} are here")
        elif "sha256" in was and was["sha256"] != _digest_of(str(image_path), now.st_size, now.st_mtime_ns):
            said.append(f"image {image_path}: its content is not the recorded one")
        elif not {"sha256", "modified_ns"} & set(was):
            said.append(f"image {image_path}: data.json lacks its digest")
        elif was.get("modified_ns", now.st_mtime_ns) != now.st_mtime_ns:
            said.append(
                f"image {image_path}: it was changed or copied since, and its content is not recorded"
            )
    return said


def count_unhashed(folder: Path) -> int:
    """Return the number of images of which `data.json` holds no digest, but a time."""
    path = folder / "data.json"
    recorded = read_json(path, "images")["images"] if path.is_file() else []
    return sum("sha256" not in entry for entry in recorded)


def images_trained_on(folder: Path, split: str, dataset: TargetSet) -> list[Path]:
    """Return the images of a view whose content is that of an image of the training, as `data.json` says."""
    path = folder / "data.json"
    if not path.is_file():
        return []
    recorded = read_json(path, "images")["images"]
    trained = {entry["sha256"] for entry in recorded if entry["split"] == split and "sha256" in entry}
    shown = [dataset.paths[i] for i in dataset.image_ids.tolist()]
    states = [image.stat() for image in shown]
    return [
        image
        for image, state in zip(shown, states, strict=True)
        if _digest_of(str(image), state.st_size, state.st_mtime_ns) in trained
    ]


def changed_sources(
    recorded: Mapping[str, Mapping[str, str]], study: Study, unrelated: Sequence[str] = ()
) -> list[str]:
    """Compare the source files with recorded digests; return a sentence for each kind of difference.

    Args:
        recorded: The digests of the record, by kind and name.
        study: The study.
        unrelated: The wings of the library that are not compared.
    """
    here = describe_sources(study)
    said = []
    for kind, what in (("fpatch", "fpatch/"), ("modules", "module "), ("files", "file ")):
        if kind == "files" and kind not in recorded:
            continue  # a run of an older version
        content = "content" if kind == "files" else "source"
        before, now = recorded.get(kind, {}), here[kind]
        names = [n for n in {**before, **now} if before.get(n) != now.get(n)]
        if kind == "fpatch":
            names = [n for n in names if n not in unrelated]
        new, gone = [n for n in names if n not in before], [n for n in names if n not in now]
        other = [n for n in names if n in before and n in now]
        for found, why in (
            (new, f"the {content} is not recorded"),
            (gone, f"the {content} is missing"),
            (other, f"the {content} is not the recorded one"),
        ):
            if found:
                said.append(f"{', '.join(f'{what}{name}' for name in found)}: {why}")
    return [*said, *edited_sources(study)]


def edited_sources(study: Study) -> list[str]:
    """Return a sentence if files of modules were edited after their import, so that older code runs."""
    if not (names := edited_modules(_modules_of(study))):
        return []
    return [f"{', '.join(f'module {n}' for n in names)}: edited after the import; start Python again"]


def changed_settings(folder: Path, config: Mapping[str, Any]) -> list[tuple[str, Any, Any]]:
    """Compare a config with the last settings in the log: name, recorded and present value."""
    recorded: dict[str, Any] = {}
    for values in _logged_params(folder):
        recorded |= values
    if not recorded:
        return []
    here = json.loads(json.dumps({name: to_plain(value) for name, value in flatten(config).items()}))
    names = {**recorded, **here}
    return [(n, recorded.get(n), here.get(n)) for n in names if recorded.get(n) != here.get(n)]


def is_moved(name: str, was: Any, now: Any) -> bool:
    """Return whether a setting is the path of a file that may have moved; digests tell whether it is equal.

    Example:
        >>> from fpatch.runs.record import is_moved
        >>> is_moved("data.placements", "/project/data/placements.csv", "../../data/placements.csv")
        True
        >>> is_moved("data.placements", "/project/data/placements.csv", "/project/data/others.csv")
        False
    """
    if name == "data.root":
        return True  # the images are compared
    if not (isinstance(was, str) and isinstance(now, str)):
        return False
    is_path = is_place(name) or (os.path.isabs(was) and os.path.isabs(now))
    return is_path and Path(was).name == Path(now).name


def _logged_params(folder: Path) -> Iterator[dict[str, Any]]:
    path = folder / "records.jsonl"
    if path.is_file():
        for line in path.read_bytes().splitlines():
            try:
                record = parse_record(line)
            except ValueError:
                continue  # the log itself is checked elsewhere
            if record["kind"] == "params":
                yield record["values"]


@functools.lru_cache(maxsize=2**16)
def _digest_of(path: str, size: int, modified_ns: int) -> str:
    return file_digest(path)[:32]


@functools.cache
def _wing_digests() -> tuple[tuple[str, str], ...]:
    """Return the digest of the source files of each wing of the library, as they were first read."""
    wings: dict[str, Any] = {}
    for path in sorted(_PACKAGE.rglob("*.py")):
        place = path.relative_to(_PACKAGE)
        hashed = wings.setdefault(place.parts[0], hashlib.sha256())
        hashed.update(f"{place.as_posix()}\n".encode() + path.read_bytes())
    return tuple((name, hashed.hexdigest()[:32]) for name, hashed in wings.items())


def _modules_of(study: Study) -> set[str]:
    """Return the modules outside fpatch that define stages and loaders of a study."""
    found = {n.stage.definition.module for n in study.pipeline.values()}
    found |= {loader.partition(":")[0] for loader in _loaders(study.config) if ":" in loader}
    return {name for name in found if name.partition(".")[0] != "fpatch"}


def _files_of(config: Any) -> Iterator[str]:
    """Yield the names of files in the settings of stages; a resource has the digests of its own."""
    if isinstance(config, Mapping):
        if not isinstance(config.get("loader"), str):
            for value in config.values():
                yield from _files_of(value)
    elif isinstance(config, list | tuple):
        for value in config:
            yield from _files_of(value)
    else:
        yield from named_files(config)


def _loaders(config: Any) -> Iterator[str]:
    if isinstance(config, Mapping):
        if isinstance(config.get("loader"), str):
            yield config["loader"]
        for value in config.values():
            yield from _loaders(value)
