"""Types and shapes that networks declare on what they take and answer, compared when a pipeline is made.

A network declares them by annotations of jaxtyping on its `forward`, such as `Float[Tensor, "b 512"]`.
"""

from collections.abc import Iterator, Mapping
from inspect import signature
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

from torch import nn

from fpatch.core.resource import Resource
from fpatch.graph.contracts import CONTRACTS, Contract
from fpatch.graph.node import Node


class Form(NamedTuple):
    """A declared type and shape.

    Attributes:
        who: The node, and what it does with the value.
        text: The declaration.
        axes: Numbers and names of the axes; None where their number is open.
        dtypes: The types; empty: any.
    """

    who: str
    text: str
    axes: tuple[str, ...] | None
    dtypes: frozenset[str]


def check_forms(nodes: Mapping[str, Node], phase: str) -> None:
    """Check that what a network reads can be what the last writer, or a contract, declares.

    Raises:
        ValueError: With both nodes and both declarations.
    """
    known = {name: _contract(contract) for name, contract in CONTRACTS.items()}
    for path, n in nodes.items():
        takes, answers = _declared(path, n)
        for name, form in takes.items():
            other = known.get(name)
            if other is not None and (why := _find_conflict(form, other)):
                raise ValueError(
                    f"phase {phase!r}: {form.who} {name!r} as {form.text}, but {other.who} {name!r} as "
                    f"{other.text}: {why}; wire another value, or correct the annotation of forward"
                )
        for name in n.writes.values():
            known.pop(name, None)
        known |= answers


def _find_conflict(one: Form, other: Form) -> str | None:
    """Say why no tensor has both forms; None if one can."""
    if one.dtypes and other.dtypes and not one.dtypes & other.dtypes:
        return "the types differ"
    if one.axes is None or other.axes is None:
        return None
    if len(one.axes) != len(other.axes):
        return "the numbers of axes differ"
    for i, (a, b) in enumerate(zip(one.axes, other.axes, strict=True)):
        if a.isdigit() and b.isdigit() and a != b:
            return f"axis {i} is {a} in one and {b} in the other"
    return None


def _declared(path: str, n: Node) -> tuple[dict[str, Form], dict[str, Form]]:
    """The forms of what a node reads and writes, by the pipeline's names; none for most."""
    config = n.stage.config
    model = getattr(config, "model", None) if n.stage.definition.wire is not None else None
    if isinstance(model, Resource):
        model = vars(model).get("value")  # it is not loaded for this alone
    if not isinstance(model, nn.Module):
        return {}, {}
    try:
        hints = get_type_hints(model.forward)
    except (NameError, TypeError, AttributeError):
        return {}, {}
    answer = hints.pop("return", None)
    names = list(signature(model.forward).parameters)  # with those that have no annotation
    taken = dict(zip(config.inputs, names, strict=False)) | {own: own for own in config.keywords}
    reads = {n.reads[own]: hints[arg] for own, arg in taken.items() if arg in hints}
    parts = (answer,) if len(config.outputs) == 1 else get_args(answer) if get_origin(answer) is tuple else ()
    writes = {n.writes[own]: part for own, part in zip(config.outputs, parts, strict=False)}
    answers = _forms(f"node {path!r} writes", writes)
    widened = {name: form._replace(dtypes=_widen(form.dtypes)) for name, form in answers.items()}
    return _forms(f"node {path!r} reads", reads), widened


def _widen(dtypes: frozenset[str]) -> frozenset[str]:
    """The types in which a node writes values of these: its answers below float32 are brought to it."""
    small = {name for name in dtypes if name.startswith(("float8", "float16", "bfloat16"))}
    return dtypes - small | {"float32"} if small else dtypes


def _contract(contract: Contract) -> Form:
    """The form of a standard name."""
    axes, dtype = tuple(map(str, contract.shape)), str(contract.dtype).partition(".")[2]
    return Form("the batch holds", f"{dtype} [{' '.join(axes)}]", axes, frozenset({dtype}))


def _forms(who: str, annotations: Mapping[str, Any]) -> dict[str, Form]:
    """The forms of annotations that are jaxtyping's."""
    return {name: form for name, hint in annotations.items() for form in _form(who, hint)}


def _form(who: str, hint: Any) -> Iterator[Form]:
    dims, dtypes = getattr(hint, "dim_str", None), getattr(hint, "dtypes", None)
    if isinstance(dims, str):
        axes = tuple("_" if axis.startswith("#") else axis.lstrip("?_") or "_" for axis in dims.split())
        is_open = any(axis.startswith(("...", "*")) for axis in axes)
        known = frozenset(dtypes if isinstance(dtypes, tuple) else ())
        yield Form(who, hint.__name__, None if is_open else axes, known)
