"""Defenses of a study's victim: nodes of the group `defense` before it, or another stage in its place."""

from collections.abc import Mapping
from typing import Any

from fpatch.core.checks import check_kind
from fpatch.core.names import check_name
from fpatch.core.registry import lookup
from fpatch.graph.build import build
from fpatch.graph.declarations import RESERVED
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import Definition

SETTING = "defense"
"""The setting that names a defense, and the group of its nodes: {"jpeg": {"stage": "compose.jpeg"}}."""
PLAIN = "infer.classifier"
"""The victim that a certified one stands for."""


def take_defense(settings: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """Separate a defense, whole or by dotted names, from other settings; None: none is set.

    Example:
        >>> from fpatch.study.defense import take_defense
        >>> take_defense({"seed": 1, "defense.few.stage": "defend.bit_depth", "defense.few.num_bits": 2})
        ({'seed': 1}, {'few': {'stage': 'defend.bit_depth', 'num_bits': 2}})
    """
    others = {n: value for n, value in settings.items() if n.partition(".")[0] != SETTING}
    if len(others) == len(settings):
        return others, None
    whole = settings.get(SETTING, {})
    check_kind(SETTING, whole, Mapping, 'give nodes by name, {"jpeg": {"stage": "compose.jpeg"}}')
    defense: dict[str, Any] = dict(whole)
    for name in settings:  # their order is that of the stages
        if name in others or name == SETTING:
            continue
        _, path, *rest = name.split(".")
        if not rest:
            defense[path] = settings[name]
            continue
        defense[path] = dict(defense.get(path, {})) | {".".join(rest): settings[name]}
    return others, {name: _in_order(node) for name, node in defense.items()}


def _in_order(node: Any) -> Any:
    """The stage of a node first, as a study has it."""
    return {"stage": node["stage"], **node} if isinstance(node, Mapping) and "stage" in node else node


def put_defense(nodes: Mapping[str, Any], before: Pipeline, defense: Mapping[str, Any]) -> dict[str, Any]:
    """Return the config of a pipeline with another defense, which replaces the one that it has.

    Filters become the nodes `defense/<name>`, where such nodes stood, or else before the first victim. They
    are alive in all phases unless they say otherwise, so that a patch is trained through them. A victim, such
    as `defend.double_masking`, takes the place and the model of every classifier.

    Args:
        nodes: The config of the pipeline, by path.
        before: The pipeline.
        defense: Nodes by name as in a study; none: the victim is not defended.

    Raises:
        ValueError: If a node is no defense, or the pipeline has no victim for it.

    Example:
        >>> from fpatch import defend, infer, pipeline
        >>> from fpatch.study.defense import put_defense
        >>> import torch
        >>> p = pipeline({"victim": infer.classifier(torch.nn.Flatten().eval())})
        >>> put_defense({"victim": {"stage": "infer.classifier"}}, p, {"few": {"stage": "defend.bit_depth"}})
        {'defense/few': {'stage': 'defend.bit_depth'}, 'victim': {'stage': 'infer.classifier'}}
    """
    filters, victims = _sort(defense)
    paths = [path for path, n in before.items() if n.stage.definition.role == "victim"]
    if not paths:
        raise ValueError(f"{SETTING}: the pipeline has no victim to defend; add one such as infer.detector")
    own = [path for path in nodes if path.startswith(f"{SETTING}/")]
    place, image = min([*own, paths[0]], key=list(nodes).index), before[paths[0]].reads["image"]
    wiring = {} if image == "image" else {"reads": {"image": image}, "writes": {"image": image}}
    made: dict[str, Any] = {}
    for path, node in nodes.items():
        if path == place:
            made |= {f"{SETTING}/{name}": {**n, **wiring} for name, n in filters.items()}
        if path not in own:
            made[path] = _replace_victim(path, node, victims) if path in paths else node
    return made


def _sort(defense: Mapping[str, Any]) -> tuple[dict[str, Any], list[Mapping[str, Any]]]:
    """Separate the filters of a defense from the victims."""
    filters, victims = {}, []
    for name, node in defense.items():
        where = f"{SETTING}.{name}"
        check_name(where, name)
        if not isinstance(node, Mapping) or not isinstance(node.get("stage"), str):
            raise ValueError(f'{where} must be a node of a pipeline, got {node!r:.80}; give its "stage"')
        family = node["stage"].partition(".")[0]
        role = "stage" if ":" in node["stage"] else lookup(node["stage"], Definition, where).role
        if role == "victim" and family == "defend":
            victims.append(node)
        elif role == "stage" and _changes_images(name, node):
            filters[name] = dict(node)
        else:
            raise ValueError(
                f"{where}: {node['stage']} is no defense; take a stage that turns an image into an image, "
                "such as defend.median or compose.jpeg, or defend.double_masking"
            )
    if len(victims) > 1:
        raise ValueError(f"{SETTING}: only one victim can stand in the place of another, got {len(victims)}")
    return filters, victims


def _changes_images(name: str, node: Mapping[str, Any]) -> bool:
    """Return whether a node reads and writes `image`; a network does by its settings."""
    n = build({f"{SETTING}/{name}": dict(node)})[f"{SETTING}/{name}"]
    return "image" in n.reads.values() and "image" in n.writes.values()


def _replace_victim(path: str, node: Any, victims: list[Mapping[str, Any]]) -> Any:
    """Return a victim with the stage of a defense, or without one."""
    is_defended = str(node["stage"]).startswith("defend.")
    if not victims and not is_defended:
        return node
    if not is_defended and node["stage"] != PLAIN:
        raise ValueError(
            f"{SETTING}: {victims[0]['stage']} defends classifiers, but {path!r} is {node['stage']}; take a "
            "filter such as defend.median"
        )
    kept = {name: value for name, value in node.items() if name in (*RESERVED, "model")}
    return kept | (dict(victims[0]) if victims else {"stage": PLAIN})
