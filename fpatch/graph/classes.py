"""Settings that are a class: their names, and the numbers that take the place of names."""

from collections.abc import Mapping, Sequence
from typing import Any

from fpatch.core.checks import nearest


def named_classes(config: Any, settings: Sequence[str]) -> dict[str, str]:
    """Return the settings that are a class by its name.

    Args:
        config: The config of a stage.
        settings: Its settings that are a class, as `define(classes=...)` declares them.
    """
    given = {setting: getattr(config, setting) for setting in settings}
    return {setting: value for setting, value in given.items() if isinstance(value, str)}


def number_classes(stage: str, named: Mapping[str, str], names: Sequence[str]) -> dict[str, int]:
    """Return the numbers of named classes, by setting.

    Args:
        stage: The name of the stage, for the error.
        named: Names by setting, from `named_classes`.
        names: The names of the victim's classes, in the order in which it counts them.

    Raises:
        ValueError: If a name is none of these; the error names the nearest one.
    """
    for setting, name in named.items():
        if name not in names:
            raise ValueError(f"{stage}({setting}) is {name!r}, which is no class; {nearest(name, names)}")
    return {setting: list(names).index(name) for setting, name in named.items()}


def refuse_names(stage: str, named: Mapping[str, str]) -> None:
    """Refuse to run a stage while a class is only a name.

    Raises:
        ValueError: If a setting is a class by its name.
    """
    for setting, name in named.items():
        raise ValueError(
            f"{stage}({setting}) is {name!r}, the name of a class, and no classes are known here; give the "
            "victim's number, or name the classes: pipeline.with_classes(names)"
        )
