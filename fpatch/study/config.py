"""Studies from TOML or JSON, and variations of a study."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from fpatch.core.checks import check_kind, nearest
from fpatch.core.errors import Errors, in_file
from fpatch.core.inputs import check_file, parse_toml, read_text
from fpatch.core.resource import Resource
from fpatch.core.schema import decode, encode
from fpatch.graph.build import build
from fpatch.graph.pipeline import Pipeline
from fpatch.optim.optimizer import Optimizer
from fpatch.study.defense import SETTING, put_defense, take_defense
from fpatch.study.settings import DataConfig, EvaluateConfig, LogConfig, ObjectiveConfig, TrainConfig
from fpatch.study.study import Study


def load_study(
    path: str | Path, overrides: Mapping[str, Any] | None = None, resources: Mapping[str, Any] | None = None
) -> Study:
    """Load a study from a TOML file; relative paths in it start at its folder.

    Args:
        path: `[data]`, `[pipeline.NAME]`, `[objective]`, `[optimizer]`, `[train]`, `[evaluate]`, `[log]`.
        overrides: Values by dotted name, `{"optimizer.learning_rate": 0.1, "pipeline.exposure.stops.low":
            -2}`.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a setting is wrong; the message names the file, the setting, the rule and the value.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch import load_study
        >>> path = Path(tempfile.mkdtemp()) / "study.toml"
        >>> _ = path.write_text('''
        ... data = {placements = "placements.csv", size = [48, 64], validation = false}
        ... objective = {weights = {total_variation = 1.0}}
        ... [pipeline]
        ... pixels = {stage = "create.pixels", shapes = {tag = [3, 8, 8]}}
        ... implant = {stage = "implant.warp"}
        ... smooth = {stage = "losses.total_variation"}
        ... ''')
        >>> study = load_study(path, {"train.num_steps": 20})
        >>> study.train.num_steps, study.train.batch_size, list(study.pipeline)
        (20, 16, ['pixels', 'implant', 'smooth'])
    """
    check_kind("load_study(path)", path, (str, Path), "name a study in TOML")
    path = Path(path)
    raw = read_toml(path)
    try:
        study = study_from_config(raw, path.parent.resolve(), resources)
        if overrides:
            study = vary(study, overrides, resources)
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path}: {error}") from error
    except ValueError as error:
        raise ValueError(in_file(path, error)) from error
    return study


def read_toml(path: Path) -> dict[str, Any]:
    """Read a TOML file.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is not TOML.
    """
    if (path / "config.json").is_file():
        raise ValueError(
            f"{path}: it is a run folder, not a study; `fpatch resume` and `fpatch evaluate` take it"
        )
    if (path / "sweep.json").is_file():
        raise ValueError(f"{path}: it is the folder of a sweep, not a study; `fpatch sweep status` takes it")
    check_file(path, "no such config file; check the path", "give the TOML file of a study")
    try:
        return parse_toml(read_text(path))
    except ValueError as error:
        what = str(error).removeprefix(f"{path}: ")
        raise ValueError(f"{path}: not valid TOML: {what}") from error


def study_from_config(
    config: Mapping[str, Any], root: Path, resources: Mapping[str, Any] | None = None
) -> Study:
    """Make the study that a config describes.

    Args:
        config: Tables as in TOML, or `Study.config`.
        root: The folder at which relative paths start.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        ValueError: If settings are wrong; the message names each setting, the rule and the value.
    """
    fields, errors = [f.name for f in dataclasses.fields(Study)], Errors()
    for name in config:
        if name not in fields:
            errors.add(f"unknown section {name!r}; {nearest(name, fields)}")
    for name in ("data", "pipeline", "objective"):
        if name not in config:
            errors.add(f"the section [{name}] is required; add it")
    sections = {
        "name": str, "seed": int, "device": str, "data": DataConfig, "objective": ObjectiveConfig,
        "optimizer": Optimizer, "train": TrainConfig, "evaluate": EvaluateConfig, "log": LogConfig,
    }  # fmt: skip
    decoded: dict[str, Any] = {"name": "study"}
    for name in (name for name in sections if name in config):
        with errors.caught():
            decoded[name] = decode(sections[name], config[name], name)
    try:
        for name in ("data", "evaluate"):
            if name in decoded:
                decoded[name] = decoded[name].pinned(root)
        with errors.caught():
            decoded["pipeline"] = build(_pin(config.get("pipeline", {}), root), resources)
    except OSError:
        errors.raise_all()  # of two kinds, those of the file itself come first
        raise
    errors.raise_all()
    return Study(**decoded)


def of_any_version(config: Mapping[str, Any]) -> dict[str, Any]:
    """Complete recorded settings: a run or sweep without a library had the optimizers of fpatch.

    Args:
        config: The tables of a study as JSON values.

    Example:
        >>> from fpatch.study.config import of_any_version
        >>> of_any_version({"optimizer": {"name": "adam"}})
        {'optimizer': {'name': 'adam', 'library': 'fpatch'}}
        >>> of_any_version({"optimizer": {"name": "adam", "library": "torchopt"}})
        {'optimizer': {'name': 'adam', 'library': 'torchopt'}}
    """
    optimizer = config.get("optimizer")
    if not isinstance(optimizer, Mapping) or "library" in optimizer:
        return dict(config)
    return {**config, "optimizer": {**optimizer, "library": "fpatch"}}


def vary(study: Study, settings: Mapping[str, Any], resources: Mapping[str, Any] | None = None) -> Study:
    """Return a study with some settings changed.

    Args:
        study: The study to vary; it stays as it is.
        settings: Values by dotted name; `.low` and `.high` address a range. `defense` puts nodes before the
            victim, see `fpatch.study.defense`.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        ValueError: If a setting is wrong; the message names the setting, the rule and the value.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.config import vary
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> brighter = vary(study, {"pipeline.exposure.stops.high": 1.0, "train.num_steps": 10})
        >>> brighter.pipeline["exposure"].stage, brighter.train.num_steps
        (compose.exposure(stops=(-0.05, 1.0)), 10)
    """
    check_kind("the settings", settings, Mapping, "give {'train.num_steps': 100}")
    config = study.config | {"pipeline": study.pipeline.given_config}
    settings, defense = take_defense(settings)
    for name, value in settings.items():
        _check_setting(config, name, value)
        assign(config, name, _plain(value))
    for path in {name.split(".")[1] for name in settings if name.startswith("pipeline.")}:
        if not _gives_writes(settings, path):
            _rewire(config["pipeline"], path, study.pipeline, resources)
    if defense is not None:
        config["pipeline"] = put_defense(config["pipeline"], study.pipeline, _plain_tree(defense))
    return study_from_config(config, Path.cwd(), resources)


def _gives_writes(settings: Mapping[str, Any], path: str) -> bool:
    """Return whether settings name what a node writes."""
    whole, writes = settings.get(f"pipeline.{path}"), f"pipeline.{path}.writes"
    given = isinstance(whole, Mapping) and "writes" in whole
    return given or any(name == writes or name.startswith(f"{writes}.") for name in settings)


def _check_setting(config: Mapping[str, Any], name: str, value: Any) -> None:
    """Check that a setting is a dotted name, and does not replace a whole section.

    Raises:
        ValueError: If it does; the message names the setting that is meant.
    """
    parts = str(name).partition(".")
    if parts[1] and parts[0] in config:
        return
    sections = {n: table for n, table in config.items() if isinstance(table, Mapping) and n != "pipeline"}
    meant = [f"{section}.{name}" for section, table in sections.items() if name in table]
    if name not in config and meant:
        raise ValueError(f"--{name}: give the setting with its section: {' or '.join(meant)}")
    if isinstance(config.get(name), Mapping) and isinstance(value, Mapping):
        example = f"{name}.{next(iter(value), 'NAME')}"
        raise ValueError(
            f"--{name}: a whole section replaces its other settings, too; give each by its dotted name, such "
            f"as {example!r}"
        )


def _plain(value: Any) -> Any:
    """Return a setting of Python as TOML would hold it: numbers of numpy and torch, paths and devices."""
    if isinstance(value, np.generic | np.ndarray | Tensor):
        return value.tolist()
    return str(value) if isinstance(value, Path | torch.device) else value


def _plain_tree(value: Any) -> Any:
    """Return nested settings of Python as TOML would hold them."""
    if isinstance(value, Mapping):
        return {name: _plain_tree(part) for name, part in value.items()}
    return [_plain_tree(part) for part in value] if isinstance(value, list | tuple) else _plain(value)


def _rewire(nodes: dict[str, Any], path: str, before: Pipeline, resources: Mapping[str, Any] | None) -> None:
    """Keep what a node writes in its group, in place, where other settings make it write other names."""
    if not isinstance(nodes, Mapping) or not isinstance(nodes.get(path), Mapping):
        return  # the build says what is wrong
    if path not in before or "writes" not in nodes[path] or before[path].stage.definition.declare is None:
        return
    groups = {name.removesuffix(own) for own, name in before[path].writes.items() if name.endswith(own)}
    alone = {name: value for name, value in nodes[path].items() if name not in ("reads", "writes")}
    own = {name: value for name, value in (resources or {}).items() if name.startswith(f"{path}/")}
    writes = build({path: alone}, own)[path].stage.definition.writes
    if set(writes) != set(before[path].writes) and len(groups) == 1:
        nodes[path]["writes"] = {own: f"{min(groups)}{own}" for own in writes}


_OF_TRAINING: dict[str, tuple[str, ...]] = {
    "evaluate": ("every", "best"), "data": ("train", "patches"), "seed": (), "device": (),
}  # fmt: skip
"""The settings of each section that only training reads; none of other sections is of a measurement."""


def measure_otherwise(
    study: Study, settings: Mapping[str, Any], resources: Mapping[str, Any] | None = None
) -> Study:
    """Return a study that trains the same patch, and measures it by other settings.

    Args:
        study: The study to vary; it stays as it is.
        settings: Values by dotted name: of `evaluate`; of `data`, but for the training split and the patches;
            of nodes that do not train the patch, which are metrics, and nodes that are not alive in
            training; `seed`, which draws other samples; `device`; and `defense`.
        resources: Live objects by "path/setting" of the pipeline.

    Raises:
        ValueError: If a setting is wrong, or the patch was trained with it.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.config import measure_otherwise
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> measure_otherwise(study, {"pipeline.hit.goal": "nothing"}).pipeline["hit"].stage
        metrics.class_hit(goal='nothing')
    """
    varied = vary(study, settings, resources)
    for name in settings:
        section, path, *_ = f"{name}.".split(".")
        nodes = [p[path] for p in (study.pipeline, varied.pipeline) if path in p]
        measures = all(n.stage.definition.role == "metric" or not n.alive("train") for n in nodes)
        trains = _OF_TRAINING.get(section)
        if section == SETTING:
            continue
        if not (trains is not None and path not in trains) and not (section == "pipeline" and measures):
            raise ValueError(
                f"--{name}: the patch was trained with this setting; a measurement takes those of [evaluate] "
                "and [data], of metrics, seed, device and defense; or train again"
            )
    return varied


def _pin(config: Any, root: Path) -> Any:
    """Give the resources in a config absolute paths and digests."""
    if isinstance(config, Mapping) and isinstance(config.get("loader"), str):
        return encode(decode(Resource, config, "resource").pinned(root))
    return {n: _pin(v, root) for n, v in config.items()} if isinstance(config, Mapping) else config


def _forget_named(table: Any) -> None:
    """Forget the digests of the files that a resource's arguments name: they are about to change."""
    if isinstance(table, dict) and "loader" in table and table.get("files"):
        named = table.get("arguments", {}).values()
        table["files"] = {name: digest for name, digest in table["files"].items() if name not in named}


def assign(config: dict[str, Any], name: str, value: Any) -> None:
    """Set a value by dotted name in nested tables, in place; `.low` and `.high` address a range.

    Args:
        config: Tables as in TOML; those on the way to the value must exist.
        name: The dotted name.
        value: The value, as in TOML.

    Raises:
        ValueError: For a table that does not exist, with the nearest name.

    Example:
        >>> from fpatch.study.config import assign
        >>> config = {"pipeline": {"exposure": {"stops": [-1.0, 1.0]}}}
        >>> assign(config, "pipeline.exposure.stops.low", -2.0)
        >>> config
        {'pipeline': {'exposure': {'stops': [-2.0, 1.0]}}}
    """
    target: Any = config
    *parents, last = name.split(".")
    for parent in parents:
        if parent == "arguments":
            _forget_named(target)
        if not isinstance(target, dict) or parent not in target:
            known = target if isinstance(target, dict) else ()
            raise ValueError(f"--{name}: there is no {parent!r}; {nearest(parent, known)}")
        target = target[parent]
    if isinstance(target, list) and len(target) == 2 and last in ("low", "high"):
        target[("low", "high").index(last)] = value
    elif isinstance(target, dict):
        if last == "arguments":
            _forget_named(target)
        target[last] = value
        if last == "weights" and "loader" in target:
            target["sha256"] = None  # the recorded digests are those of the old files
            target.pop("files", None)
    else:
        raise ValueError(f"--{name}: {'.'.join(parents)} is {target!r}, which has no {last!r}")
