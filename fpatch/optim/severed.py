"""Loss terms whose gradient ends on its way from a victim's answers back to the patch.

The gradient of the whole objective hides this: a smoothness term moves the patch even if a victim detaches.
"""

from collections.abc import Iterator, Mapping
from typing import Any, NamedTuple

import optree
import torch
from torch import Tensor

from fpatch.core.types import Batch, Params
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import ALL
from fpatch.ops.detections import ABSENT
from fpatch.optim.objective import Objective

_NOTHING = 2.0 * torch.tensor(ABSENT, dtype=torch.float64).exp().item()
"""A smaller gradient in an answer is that of a class or row marked as absent."""


class Severed(NamedTuple):
    """A weighted loss term whose gradient does not reach the patch.

    Attributes:
        term: The loss term.
        where: The path of the victim that passes no gradient, or of the node that writes the term.
        what: The observation and the way out.
    """

    term: str
    where: str
    what: str


def terms_of_victims(objective: Objective) -> dict[str, tuple[str, ...]]:
    """Return the weighted terms that read the answer of a victim, with the paths of their victims.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.optim.severed import terms_of_victims
        >>> from fpatch.study.setup import make_objective
        >>> terms_of_victims(make_objective(tiny_study(tempfile.mkdtemp())))
        {'misclassify': ('victim',)}
    """
    behind: dict[str, dict[str, None]] = {}  # a dict keeps the order of the pipeline
    for path, n in objective.pipeline.items():
        reads = list(behind) if ALL in n.reads.values() else list(n.reads.values())
        found = {victim: None for name in reads for victim in behind.get(name, {})}
        if n.stage.definition.role == "victim":
            found[path] = None
        behind.update(dict.fromkeys(n.writes.values(), found))
    weighted = (name for name, weight in objective.weights.items() if weight)
    return {name: tuple(behind[name]) for name in weighted if behind[name]}


def find_severed(
    objective: Objective, trace: Mapping[str, Mapping[str, Any]], leaves: Params, batch: Batch
) -> Iterator[Severed]:
    """Find the weighted terms that pull at a victim's answer, and whose gradient ends before the patch.

    A term that pulls at no answer, such as one of rows without an object, is no finding.

    Args:
        objective: The objective, with the pipeline of training.
        trace: The values that each node wrote in `pipeline.trace(leaves, sample, batch)`, with their graph.
        leaves: The patch parameters, which require a gradient.
        batch: The rows.

    Example:
        >>> import tempfile
        >>> from fpatch import random
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.optim.severed import find_severed
        >>> from fpatch.study.setup import set_up
        >>> parts = set_up(tiny_study(tempfile.mkdtemp()))
        >>> pipeline, batch = parts.objective.pipeline, parts.dataset.batch([0, 1])
        >>> leaves = {name: p.requires_grad_() for name, p in parts.initial.params.items()}
        >>> trace = pipeline.trace(leaves, pipeline.sample(random.key(0), batch), batch)
        >>> list(find_severed(parts.objective, trace, leaves, batch))
        []
    """
    pipeline = objective.pipeline
    ends = _ends_of_victims(pipeline, trace, batch)
    terms = {name: t for written in trace.values() for name, t in written.items() if name in pipeline.terms}
    for name, victims in terms_of_victims(objective).items():
        alone = Objective(pipeline, {name: 1.0}).weigh(terms).value
        lost = [path for path in victims if _ends_at(alone, *ends[path])]
        for path in lost:
            yield Severed(name, path, _WHAT_VICTIM.format(term=name, stage=pipeline[path].stage))
        if not lost and not _is_joined(alone, list(leaves.values())):
            path = next(p for p, n in pipeline.items() if name in n.terms)
            what = _WHAT_TERM if pipeline.parameterizations else _WHAT_TERM_OF_NETWORK
            yield Severed(name, path, what.format(term=name))


_WHAT_VICTIM = (
    "the loss term {term!r} depends on its answer, but no gradient of the term reaches the image: {stage} "
    "detaches its input, runs under no_grad or rounds inside; compute the answer from the image by "
    "differentiable operations"
)
_WHAT_TERM = (
    "the loss term {term!r} reads a victim, but does not depend on the patch by autograd: a stage between "
    "detaches its values, or the victim reads an image without the patch; `fpatch doctor` finds the stage"
)
_WHAT_TERM_OF_NETWORK = (
    "the loss term {term!r} reads a victim, but depends on nothing that is trained by autograd: a stage "
    "between detaches its values, or the victim is no network that is trained"
)


def _ends_of_victims(
    pipeline: Pipeline, trace: Mapping[str, Mapping[str, Any]], batch: Batch
) -> dict[str, tuple[list[Tensor], list[Tensor]]]:
    """Return the differentiable inputs and the answers of each victim, by path."""
    values, ends = dict(batch), {}
    for path, n in pipeline.items():
        if n.stage.definition.role == "victim":
            inputs = [t for t in optree.tree_leaves(n.inputs(values)) if _is_tracked(t)]  # type: ignore[arg-type]
            answers = [t for t in optree.tree_leaves(trace[path]) if isinstance(t, Tensor)]  # type: ignore[arg-type]
            ends[path] = inputs, [t for t in answers if t.is_floating_point()]
        values.update(trace[path])
    return ends


def _is_tracked(value: Any) -> bool:
    return isinstance(value, Tensor) and value.is_floating_point() and value.requires_grad


def _ends_at(term: Tensor, inputs: list[Tensor], answers: list[Tensor]) -> bool:
    """Return whether the gradient of a term is in a victim's answers, and not in its inputs."""
    if not inputs:
        return False
    tracked = [t for t in answers if t.requires_grad]
    if not tracked:
        return True
    if not term.requires_grad:
        return False
    found = torch.autograd.grad(term, tracked, retain_graph=True, allow_unused=True)
    pulled = [(t, g) for t, g in zip(tracked, found, strict=True) if g is not None]
    pulled = [(t, g) for t, g in pulled if bool((g.abs() > _NOTHING).any())]
    if not pulled:
        return False
    answered, pulls = zip(
        *pulled, strict=True
    )  # other victims may read the same image: go back through this one
    passed = torch.autograd.grad(answered, inputs, pulls, retain_graph=True, allow_unused=True)
    return not any(g is not None and bool((g != 0).any()) for g in passed)


def _is_joined(term: Tensor, leaves: list[Tensor]) -> bool:
    """Return whether the graph of a term leads to a patch."""
    if not term.requires_grad:
        return False
    return any(g is not None for g in torch.autograd.grad(term, leaves, retain_graph=True, allow_unused=True))
