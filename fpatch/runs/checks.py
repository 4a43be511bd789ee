"""Compare the record of a run folder with the study, data, sources and execution at hand."""

import dataclasses
import json
import logging
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from fpatch.core.inputs import parse_json
from fpatch.core.names import typed
from fpatch.core.schema import encode, flatten
from fpatch.data import TargetSet
from fpatch.log.sealed import SEAL, is_edited
from fpatch.runs.files import file_damage
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.runs.naming import find_other_name
from fpatch.runs.places import to_relative
from fpatch.runs.record import (
    changed_images,
    changed_settings,
    changed_sources,
    count_unhashed,
    describe_data,
    is_moved,
)
from fpatch.runs.standing import find_damage
from fpatch.runs.tables import load_manifest, table_damage
from fpatch.study.config import of_any_version
from fpatch.study.study import Study

_logger = logging.getLogger(__name__)


_ELSEWHERE = ("name", "device", "log")
"""Settings that no patch depends on; the device is compared as part of the recorded execution."""
_UNRELATED = ("analysis", "cli", "doctor", "log", "tune", "viz")
"""Wings of the library that no number depends on."""
_PARTS = {
    "files": ("config.json", "data.json"),
    "data": ("placements", "classes"),
    "sources": ("fpatch",),
}
"""The digests that every run with a sealed record has, by the part of `environment.json`."""
_SAID = 3
"""Sentences of one kind that are said before the rest is counted."""


def check_study(run: Run, study: Study) -> list[str]:
    """Check that a study would train the patch of the run.

    Returns:
        The differences that change last bits only, a sentence each.

    Raises:
        RunError: If another setting differs; the message gives its recorded and its present value.
    """
    recorded = of_any_version(run.read_json("config.json"))
    config = json.loads(json.dumps(study.config))
    before = flatten(to_relative(recorded, run.folder, start=run.folder))
    here = flatten(to_relative(config, run.folder))
    before = {n: v for n, v in _defaults(study).items() if n in here} | before  # of settings that are newer
    found = ((n, before.get(n), here.get(n)) for n in {**before, **here} if before.get(n) != here.get(n))
    different = [entry for entry in found if not is_moved(*entry)]
    return _check_settings(run, different, "give the study of its config.json, or another folder")


def _defaults(study: Study) -> dict[str, Any]:
    """Return the defaults of all settings of a study, by their dotted names."""
    sections = {name: getattr(study, name) for name in study.config if name != "pipeline"}
    found = {name: _own_defaults(s) for name, s in sections.items() if dataclasses.is_dataclass(s)}
    nodes = {path: _own_defaults(n.stage.config) for path, n in study.pipeline.items()}
    return flatten({**found, "pipeline": nodes})


def _own_defaults(config: Any) -> dict[str, Any]:
    fields = {f.name: f.default for f in dataclasses.fields(config)}
    return {name: encode(v) for name, v in fields.items() if v is not dataclasses.MISSING}


def check_config(run: Run, accept: bool = False) -> list[str]:
    """Check that `config.json` has the settings that the log recorded.

    Paths may differ: the digests of their files are compared instead.

    Args:
        run: The run.
        accept: Say every difference, and refuse none.

    Returns:
        The differences that change last bits only, or that are accepted, a sentence each.

    Raises:
        RunError: If another setting differs; the message gives its recorded and its present value.
    """
    config = run.read_json("config.json")
    different = [entry for entry in changed_settings(run.folder, config) if not is_moved(*entry)]
    if accept:
        return [f"{name}: {was} was recorded, {now} is here" for name, was, now in different]
    way_out = f"restore config.json, or accept it: fpatch resume {typed(run.folder)} --from last"
    return _check_settings(run, different, way_out)


def _check_settings(run: Run, different: Sequence[tuple[str, Any, Any]], way_out: str) -> list[str]:
    said = []
    for name, was, now in different:
        if name.partition(".")[0] in _ELSEWHERE:
            continue
        if was is None and (not now or ".files." in name):
            continue  # an older version lacked the setting, which is off, or digests of files beside weights
        if name != "train.micro_batch":
            raise RunError(
                f"{run.folder}: {name} must be {was}, as when the run started, got {now}; {way_out}"
            )
        said.append(f"{name}: {was} was recorded, {now} is here")
    return said


def warn_if_inexact(run: Run, differences: Sequence[str], processes: int) -> None:
    """Warn about differences that make a resumed run inexact."""
    recorded = run.stretches()
    if set(recorded) != {processes}:
        said = " then ".join(map(str, recorded))
        differences = [*differences, f"processes: {said} was recorded, {processes} is here"]
    for what in differences:
        _logger.warning("the patch will not equal that of an uninterrupted run bit for bit: %s", what)


def check_data(run: Run, study: Study, dataset: TargetSet) -> None:
    """Check that tables and classes are those of the run; changed images, which may be repaired, are said.

    Raises:
        RunError: If a table or the list of classes differs.
    """
    tables, images = _data_differences(run, study, dataset)
    if tables:
        raise RunError(
            f"{run.folder}: the {tables[0]} of the data have changed since the run started; restore "
            "them to resume it, or train again"
        )
    if images:
        what = "images have changed since the run started, so the patch will differ"
        _logger.warning("%s: %s: %s", run.folder, what, "; ".join(_shorten(images)))


def _data_differences(
    run: Run, study: Study, dataset: TargetSet, splits: Sequence[str] | None = None
) -> tuple[list[str], list[str]]:
    """Return the names of the tables that differ, and a sentence for each image that does."""
    environment, found = run.read_json("environment.json"), describe_data(study, dataset)
    recorded = environment.get("data", {})
    compared = [n for n in found if n != "photographs" and (n in recorded or SEAL in environment)]
    tables = [n for n in compared if recorded.get(n) != found[n]]
    if "objects" in tables and "classes" in tables:
        tables.remove("classes")  # which the objects name
    images = changed_images(run.folder, dataset, splits)
    is_old = not (run.folder / "data.json").is_file()
    if is_old and recorded.get("photographs") not in (None, found["photographs"]):
        images = ["their names or sizes differ"]
    return tables, images


def source_differences(run: Run, study: Study) -> list[str]:
    """Return a sentence for each source file that numbers depend on and that differs from the record."""
    recorded = run.read_json("environment.json").get("sources")
    if recorded is None:
        return []  # a run of an older version
    return changed_sources(recorded, study, _UNRELATED)


def input_differences(
    run: Run, study: Study, dataset: TargetSet | None, splits: Sequence[str] | None = None
) -> list[str]:
    """Compare everything that a measurement reads with the record of the run.

    Args:
        run: The run.
        study: The study of its config.
        dataset: The data set that the study names; None: it is not compared.
        splits: The splits whose images are read; None: all.

    Returns:
        A sentence for each difference.
    """
    settings = [
        f"{name}: {was} was recorded, {now} is here"
        for name, was, now in changed_settings(run.folder, run.read_json("config.json"))
        if name.partition(".")[0] not in _ELSEWHERE and not is_moved(name, was, now)
    ]
    tables, images = ([], []) if dataset is None else _data_differences(run, study, dataset, splits)
    paths = {"placements": study.data.placements, "objects": study.data.objects}
    changed = [f"data.{n}: {paths.get(n, 'the list')} is not the recorded one" for n in tables]
    sources = source_differences(run, study)
    return [*record_damage(run), *settings, *changed, *images, *sources]


def record_damage(run: Run) -> list[str]:
    """Return a sentence for each part of the record that is not as it was written."""
    said = []
    environment = (run.folder / "environment.json").read_bytes()
    if is_edited(environment, "files"):
        said.append("environment.json is not as it was written")
    facts = parse_json(environment)
    for part, names in _PARTS.items() if SEAL in facts else ():
        lacking = [name for name in names if not (facts.get(part) or {}).get(name)]
        said += [f"environment.json lacks {part}.{name}, which every run records" for name in lacking]
    found = (file_damage(run.folder, name, recorded) for name, recorded in facts.get("files", {}).items())
    return [*said, *(sentence for sentence in found if sentence is not None)]


def unproven_inputs(run: Run) -> list[str]:
    """Return a sentence for each claim about the inputs of the training that no file can prove."""
    said = ["the training: `fpatch replay RUN --step N --verify` reruns an update"]
    if count := count_unhashed(run.folder):
        said.append(f"the content of {count} images: their sizes and times alone are recorded")
    return said


def warn_of_inputs(
    run: Run,
    study: Study,
    dataset: TargetSet | None = None,
    splits: Sequence[str] | None = None,
    table: str | None = None,
    *,
    own_data: bool = False,
) -> list[str]:
    """Warn about every difference between the inputs of a command and the record of the run.

    Args:
        run: The run.
        study: The study of its config.
        dataset: The data set that the study names; None: it is opened, if that is possible.
        splits: The splits whose images are read; None: all.
        table: A table that is read.
        own_data: The command reads other data than those of the run, which are not compared.

    Returns:
        A sentence for each difference.
    """
    said = []
    if table is not None:
        said += table_damage(run.folder, table)
        said += find_other_name(table, load_manifest(run.folder, table))
    with suppress(RunError):  # a broken checkpoint is an error where it is read
        said += find_damage(run)
    try:
        compared = None if own_data else dataset or study.data.open()
        said += input_differences(run, study, compared, splits)
    except (OSError, ValueError) as error:
        said += [*record_damage(run), f"the data cannot be read: {error}", *source_differences(run, study)]
    for what in _shorten(said):
        _logger.warning("%s: not as when the run started: %s", run.folder, what)
    return said


def _shorten(sentences: Sequence[str]) -> list[str]:
    images = [s for s in sentences if s.startswith("image ")]
    others = [s for s in sentences if not s.startswith("image ")]
    more = len(images) - _SAID
    return [*others, *images[:_SAID], *([f"and {more} more images"] if more > 0 else [])]
