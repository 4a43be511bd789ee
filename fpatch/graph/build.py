"""Build a pipeline from its config: ids are looked up in the registry, never evaluated."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any, get_type_hints

from fpatch.core.checks import nearest, shown
from fpatch.core.errors import Errors
from fpatch.core.registry import lookup
from fpatch.core.schema import decode
from fpatch.graph.declarations import RESERVED
from fpatch.graph.functions import find_function
from fpatch.graph.node import Part, node
from fpatch.graph.pipeline import Pipeline, pipeline
from fpatch.graph.stage import Definition, Stage

_NAMES = tuple[str, ...] | dict[str, str]
_WIRING = {"phases": str | tuple[str, ...], "reads": _NAMES, "writes": _NAMES, "stream": str}


def build(config: Mapping[str, Any], resources: Mapping[str, Any] | None = None) -> Pipeline:
    """Build the pipeline of a config, which `Pipeline.config` or a `[pipeline]` table in TOML holds.

    Args:
        config: `{path: {"stage": id, setting: value, ..., "phases", "reads", "writes", "stream"}}`; a table
            without "stage" is a group.
        resources: Live objects by "path/setting", for settings that a config cannot hold.

    Raises:
        ValueError: For an unknown stage or setting (with the nearest), a wrong value, or a missing live
            object.

    Example:
        >>> import fpatch
        >>> p = fpatch.build({"camera": {"dim": {"stage": "compose.exposure", "stops": [-1.0, -1.0]}}})
        >>> p
        camera/dim  compose.exposure(stops=(-1.0, -1.0)): image -> image
        >>> p.config
        {'camera/dim': {'stage': 'compose.exposure', 'stops': [-1.0, -1.0]}}
    """
    if not isinstance(config, Mapping):
        raise ValueError(f"pipeline: expected a table of stages by name, got {shown(config)}")
    made = pipeline(_parts(config, "pipeline", "", resources or {}))
    live = list(_live_settings(config))
    for name in resources or {}:
        path, _, setting = name.rpartition("/")
        if name not in live and path in made and hasattr(made[path].stage.config, setting):
            raise ValueError(f"resources: {name!r} has a value in the config, too; give one of the two")
        if name not in live:
            raise ValueError(f"resources: the config has no live object {name!r}; {nearest(name, live)}")
    return made


def _live_settings(config: Mapping[str, Any], group: str = "") -> Iterator[str]:
    """Yield the settings that are live objects, as "path/setting"."""
    for name, entry in config.items():
        if isinstance(entry, Mapping):
            yield from (
                [f"{group}{name}"] if set(entry) == {"live"} else _live_settings(entry, f"{group}{name}/")
            )


def _parts(
    config: Mapping[str, Any], where: str, group: str, resources: Mapping[str, Any]
) -> dict[str, Part]:
    parts: dict[str, Part] = {}
    errors = Errors()
    for name, entry in config.items():
        with errors.caught():
            parts[name] = _part(entry, f"{where}.{name}", f"{group}{name}", resources)
    errors.raise_all()
    return parts


def _part(entry: Any, where: str, path: str, resources: Mapping[str, Any]) -> Part | dict[str, Part]:
    if not isinstance(entry, Mapping):
        raise ValueError(
            f"{where}: expected a table with a stage, or a group of such tables, got {shown(entry)}"
        )
    if "stage" in entry:
        return _node(entry, where, path, resources)
    if entry and all(isinstance(v, Mapping) for v in entry.values()):
        return _parts(entry, where, f"{path}/", resources)
    raise ValueError(f"{where}: the key 'stage' is required, e.g. stage = \"compose.exposure\"")


def _node(entry: Mapping[str, Any], where: str, path: str, resources: Mapping[str, Any]) -> Part:
    identity = decode(str, entry["stage"], f"{where}.stage")
    try:
        definition = lookup(identity, Definition, f"{where}.stage")
    except ValueError:
        if (function := find_function(identity)) is None:
            raise
        return _function_node(function, entry, where)
    settings = {k: v for k, v in entry.items() if k not in RESERVED}
    given = {}
    for setting, value in list(settings.items()):
        if isinstance(value, Mapping) and set(value) == {"live"}:
            full = f"{path}/{setting}"
            if full not in resources:
                raise ValueError(
                    f"{where}.{setting} is a live object ({value['live']}) that the config cannot hold; "
                    f"give resources={{{full!r}: ...}} ({nearest(full, resources)})"
                )
            given[setting] = resources[full]
            del settings[setting]
    stage = definition.configured(_configure(definition, settings, given, where))
    return _wire(stage, entry, where)


def _wire(stage: Stage | Callable[..., Any], entry: Mapping[str, Any], where: str) -> Part:
    """Make the node of a stage or function with the wiring of its table."""
    wiring = {k: decode(kind, entry[k], f"{where}.{k}") for k, kind in _WIRING.items() if k in entry}
    try:
        return node(stage, **wiring)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _function_node(function: Callable[..., Any], entry: Mapping[str, Any], where: str) -> Part:
    """Make the node of a plain function, which has wiring and no settings."""
    if unknown := [name for name in entry if name not in RESERVED]:
        raise ValueError(
            f"{where}: a plain function has no setting {unknown[0]!r}; define a stage with fpatch.define"
        )
    return _wire(function, entry, where)


def _configure(
    definition: Definition[Any], settings: dict[str, Any], given: Mapping[str, Any], where: str
) -> Any:
    """Make the config from decoded settings and live objects."""
    kind: Any = definition.config
    if not given:
        return decode(kind, settings, where)
    fields = {f.name for f in dataclasses.fields(kind)}
    if unknown := [name for name in settings if name not in fields]:
        raise ValueError(f"{where}: unknown key {unknown[0]!r}; {nearest(unknown[0], fields)}")
    hints = get_type_hints(kind)
    decoded = {name: decode(hints[name], value, f"{where}.{name}") for name, value in settings.items()}
    return kind(**decoded, **given)
