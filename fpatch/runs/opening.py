"""Open a run folder with its study, and recreate its recorded execution."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from fpatch.core.errors import in_file
from fpatch.runs.folder import Run
from fpatch.runs.imports import forbid_imports
from fpatch.runs.locks import RunError
from fpatch.runs.measuring import Measured, recorded_study
from fpatch.runs.places import Places
from fpatch.runtime.device import check_device, describe_device, deterministic_algorithms
from fpatch.runtime.execution import Execution
from fpatch.study.config import of_any_version, study_from_config, vary
from fpatch.study.study import Study


def open_run(
    folder: str | Path,
    resources: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
) -> tuple[Run, Study]:
    """Open a run folder and the study that it was made from; no code in the folder can be imported.

    Args:
        folder: The run folder.
        resources: Live objects by "path/setting" of the pipeline.
        data_root: The folder of the data, if they are not where they were: tables, images and weights are
            looked for in it by the last parts of their recorded paths.
        device: The device to run on, such as "cpu"; None: that of the config.

    Raises:
        RunError: If the folder is no run folder, Python searches it for modules, its config is broken, or
            `data_root` is no folder.
        ValueError: If `device` is none.
    """
    if device is not None:
        check_device("device", device)
    run = Run.open(folder)
    forbid_imports(run.folder)
    data = run.read_json("environment.json").get("data", {})
    recorded = {name: digest for name, digest in data.items() if digest is not None}
    config = places_of(run, data_root).config(run.read_json("config.json"), recorded)
    config |= {} if device is None else {"device": device}
    try:
        return run, study_from_config(of_any_version(config), run.folder, resources)
    except ValueError as error:
        raise RunError(in_file(run.folder / "config.json", error)) from error


def places_of(run: Run, data_root: str | Path | None = None) -> Places:
    """Return the places at which the files of a run are looked for."""
    return Places(run.folder, run.read_json("environment.json").get("folder"), data_root)


def study_of_table(
    run: Run,
    study: Study,
    table: str,
    resources: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
    device: str | None = None,
) -> Measured:
    """Return the study of a run with the settings by which a table was measured, on a given device if any."""
    settings = places_of(run, data_root).settings(run.load_settings(table))
    varied = settings | ({} if device is None else {"device": device})
    return recorded_study(vary(study, varied, resources) if varied else study, settings)


@contextmanager
def recorded_execution(recorded: Execution, study: Study) -> Iterator[list[str]]:
    """Recreate a recorded execution as far as possible; yield the differences, a sentence each."""
    here = describe_device(study.place)
    with recorded.recreated(here) as differences, deterministic_algorithms(study.train.deterministic):
        yield differences
