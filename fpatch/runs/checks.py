"""Compare the record of a run folder with the study, data and execution at hand."""

import hashlib
import json
import logging
from collections.abc import Mapping, Sequence

from fpatch.core.files import file_digest
from fpatch.core.schema import flatten
from fpatch.data import TargetSet
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.study.study import Study

_logger = logging.getLogger(__name__)


_ELSEWHERE = ("name", "device", "log")
"""Settings that no patch depends on; the device is compared as part of the recorded execution."""


def check_study(run: Run, study: Study) -> list[str]:
    """Check that a study would train the patch of the run.

    Returns:
        The differences that change last bits only, a sentence each.

    Raises:
        RunError: If another setting differs; the message gives its recorded and its present value.
    """
    configs = run.read_json("config.json"), json.loads(json.dumps(study.config))
    before, here = (flatten({n: v for n, v in c.items() if n not in _ELSEWHERE}) for c in configs)
    said = []
    for name in {**before, **here}:
        was, now = before.get(name), here.get(name)
        if name not in before and (not now or ".files." in name):
            continue  # an older version lacked the setting, which is off, or digests of files beside weights
        if was != now and name == "train.micro_batch":
            said.append(f"{name}: {was} was recorded, {now} is here")
        elif was != now:
            raise RunError(
                f"{run.folder}: {name} must be {was}, as when the run started, got {now}; give the study of "
                "its config.json, or another folder"
            )
    return said


def warn_if_inexact(run: Run, differences: Sequence[str], processes: int) -> None:
    """Warn about differences that make a resumed run inexact."""
    recorded = run.stretches()
    if set(recorded) != {processes}:
        said = " then ".join(map(str, recorded))
        differences = [*differences, f"processes: {said} was recorded, {processes} is here"]
    for what in differences:
        _logger.warning("the patch will not equal that of an uninterrupted run bit for bit: %s", what)


def data_digests(study: Study, dataset: TargetSet) -> dict[str, str]:
    """Return digests of the data: the bytes of both tables, and the names and sizes of the images."""
    tables = {"placements": study.data.placements, "objects": study.data.objects}
    digests = {name: file_digest(path) for name, path in tables.items() if path is not None}
    sizes = "\n".join(f"{path.name} {path.stat().st_size}" for path in dataset.paths)
    return digests | {"photographs": hashlib.sha256(sizes.encode()).hexdigest()}


def check_data(run: Run, found: Mapping[str, str]) -> None:
    """Check that the tables are those of the run; changed images, which may be repaired, give a warning."""
    recorded = run.read_json("environment.json", "data")["data"]
    changed = [name for name in found if recorded.get(name) != found[name]]
    if changed == ["photographs"]:
        _logger.warning("%s: images have changed since the run started, so the patch will differ", run.folder)
    elif changed:
        raise RunError(
            f"{run.folder}: the {changed[0]} of the data have changed since the run started; restore "
            "them to resume it, or train again"
        )
