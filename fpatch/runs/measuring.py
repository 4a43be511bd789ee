"""The settings of a measurement that are not those of the run: completed, checked and recorded."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from fpatch.core.files import file_digest
from fpatch.core.inputs import expand_home
from fpatch.data import TargetSet
from fpatch.runs.places import is_place, relative_settings
from fpatch.runs.record import describe_data
from fpatch.study.config import measure_otherwise
from fpatch.study.defense import SETTING, take_defense
from fpatch.study.study import Study

_OF_DATA = ("data.placements", "data.objects", "data.root", "data.classes")


class Measured(NamedTuple):
    """A study with the settings of a measurement.

    Attributes:
        study: The study with these settings.
        settings: The settings as a table records them; paths start at the run folder.
        files: The digests of the files that settings name, by setting.
        own_data: True if other tables, images or classes are read than those of the run.
    """

    study: Study
    settings: dict[str, Any]
    files: dict[str, str]
    own_data: bool

    def describe(self, dataset: TargetSet) -> dict[str, str]:
        """Return the digests of all that is read in place of the inputs of the run."""
        return self.files | (describe_data(self.study, dataset) if self.own_data else {})


def measured_study(
    study: Study,
    settings: Mapping[str, Any] | None,
    folder: Path,
    resources: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
) -> Measured:
    """Return the study of a run with other settings of its measurement.

    Args:
        study: The study of the run.
        settings: Values by dotted name, as for `evaluate_run`; paths start at the working directory.
        folder: The run folder.
        resources: Live objects by "path/setting" of the pipeline.
        data_root: The folder of the images of `data.placements`, if that is among the settings.

    Raises:
        ValueError: If a setting is wrong, or the patch was trained with it.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.runs.measuring import measured_study
        >>> folder = Path(tempfile.mkdtemp())
        >>> found = measured_study(tiny_study(folder), {"evaluate.num_draws": 4}, folder / "runs/lamp")
        >>> found.study.evaluate.num_draws, found.settings, found.own_data
        (4, {'evaluate.num_draws': 4}, False)
    """
    given, defense = take_defense(settings or {})
    given |= {} if defense is None else {SETTING: defense}  # one name of the table, however it is given
    if not given:
        return Measured(study, {}, {}, False)
    if "data.placements" in given:  # whose images do not lie where those of the run do
        given.setdefault("data.root", None if data_root is None else str(data_root))
    if "data.objects" in given and study.data.class_names:
        given.setdefault("data.classes", list(study.data.class_names))  # labels count the victim's classes
    varied = measure_otherwise(study, given, resources)
    own_data = any(name in given for name in _OF_DATA)
    return Measured(varied, relative_settings(given, folder), _digests(given), own_data)


def recorded_study(varied: Study, settings: Mapping[str, Any]) -> Measured:
    """Return the study of a table, from the settings that it records with absolute paths."""
    own_data = any(name in settings for name in _OF_DATA)
    return Measured(varied, dict(settings), _digests(settings), own_data)


def _flat_defense(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings with those of the nodes of a defense by dotted names."""
    flat = {name: value for name, value in settings.items() if name != SETTING}
    for name, node in settings.get(SETTING, {}).items():
        own = node.items() if isinstance(node, Mapping) else ()
        flat |= {f"{SETTING}.{name}.{setting}": value for setting, value in own}
    return flat


def _digests(settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the files that settings name, but for tables, by setting."""
    found = {}
    for name, value in _flat_defense(settings).items():
        path = value.get("weights") if isinstance(value, Mapping) else value
        is_file = is_place(name) or isinstance(value, Mapping)
        if is_file and not name.startswith("data.") and isinstance(path, str):
            found[name] = file_digest(expand_home(name, path))
    return found
