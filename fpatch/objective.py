"""From the loss terms of a pipeline to one number, and to its gradient in the patch parameters.

Terms are unreduced, one number per row. Here, and nowhere else, rows are averaged and terms weighted.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from fpatch.core.checks import nearest
from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import ALL


class Loss(NamedTuple):
    """The weighted sum of mean terms, and every term unweighted, [b]."""

    value: Tensor
    terms: dict[str, Tensor]


@dataclass(frozen=True)
class Objective:
    """Weights by term, for a pipeline of one phase.

    Attributes:
        pipeline: Of the training phase; its loss nodes write the terms.
        weights: By term name; terms without a weight, or of weight 0, are computed and logged, and count 0.
    """

    pipeline: Pipeline
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        terms = self.pipeline.terms
        if not terms:
            raise ValueError("objective: the pipeline has no loss; add one, e.g. losses.vanish()")
        for name, weight in self.weights.items():
            if name not in terms:
                raise ValueError(f"objective(weights): no loss term {name!r}; {nearest(name, terms)}")
            if not math.isfinite(weight):
                raise ValueError(f"objective(weights): that of {name!r} must be finite, got {weight}")
        if not any(self.weights.values()):
            raise ValueError(f"objective(weights): at least one term must count; terms: {', '.join(terms)}")

    def __call__(self, patch_params: Params, sample: Sample, batch: Batch) -> Loss:
        """The loss on samples already held."""
        return self.weigh(self.pipeline.apply(patch_params, sample, batch, want=self.pipeline.terms))

    def weigh(self, terms: Mapping[str, Any]) -> Loss:
        """The loss of terms already computed, [b] each.

        Raises:
            ValueError: If one is no tensor, is reduced already, or has more axes.
        """
        for name, term in terms.items():
            if not isinstance(term, Tensor) or term.ndim != 1:
                raise ValueError(_not_per_row(name, term))
        value = sum(weight * terms[name].mean() for name, weight in self.weights.items() if weight)
        return Loss(value, dict(terms))  # type: ignore[arg-type]


def check_terms(terms: Mapping[str, Any], num_rows: int) -> None:
    """Refuse terms that are not one finite number per row; run on a test batch before training.

    Raises:
        ValueError: Naming the term.
    """
    for name, term in terms.items():
        if not isinstance(term, Tensor) or tuple(term.shape) != (num_rows,):
            raise ValueError(_not_per_row(name, term, num_rows))
        if not term.is_floating_point():
            raise ValueError(f"loss term {name!r} must be floating point, got {term.dtype}")
        if not bool(torch.isfinite(term).all()):
            row = int((~torch.isfinite(term)).nonzero()[0])
            raise ValueError(f"loss term {name!r} is {float(term[row])} in row {row} of the test batch")


def _not_per_row(name: str, term: Any, num_rows: int | str = "b") -> str:
    got = f"shape {list(term.shape)}" if isinstance(term, Tensor) else f"a {type(term).__name__}"
    return (
        f"loss term {name!r} must be a tensor, unreduced, one number per row [{num_rows}], got {got}; leave "
        "the mean to the objective"
    )


def value_and_grad(
    objective: Callable[[Params, Sample, Batch], Loss], transform: Literal["func", "autograd"] = "autograd"
) -> Callable[[Params, Sample, Batch], tuple[dict[str, Tensor], Loss]]:
    """The gradient of an objective, and its value.

    Args:
        objective: `(patch_params, sample, batch) -> Loss`.
        transform: "autograd" is the quick way in eager mode on a CPU, where `torch.func.grad`, which always
            keeps the graph of the backward, takes up to twice as long; "func" is for vmap and compilation.

    Returns:
        `(patch_params, sample, batch) -> (gradients, Loss)`; nothing that comes out is attached to a graph.
    """
    if transform == "func":
        wrapped = torch.func.grad_and_value(_with_aux(objective), has_aux=True)

        def by_func(patch_params: Params, sample: Sample, batch: Batch) -> tuple[dict[str, Tensor], Loss]:
            grads, (value, terms) = wrapped(dict(patch_params), sample, batch)
            return grads, Loss(value, terms)

        return by_func

    def by_autograd(patch_params: Params, sample: Sample, batch: Batch) -> tuple[dict[str, Tensor], Loss]:
        leaves = {name: value.detach().requires_grad_() for name, value in patch_params.items()}
        loss = objective(leaves, sample, batch)
        if not loss.value.requires_grad:
            raise ValueError("objective: no weighted term depends on the patch; `fpatch doctor` says why")
        found = torch.autograd.grad(loss.value, list(leaves.values()), allow_unused=True)
        grads = {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), found, strict=True)
        }
        return grads, Loss(loss.value.detach(), {name: term.detach() for name, term in loss.terms.items()})

    return by_autograd


COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""Of `torch.compile`."""


class _Part(NamedTuple):
    """Nodes that follow each other, and the names that go in and that later parts, or the loss, ask for.

    Some of these, `if_there`, are written only where they are there already.
    """

    nodes: Pipeline
    reads: tuple[str, ...]
    wants: tuple[str, ...]
    if_there: frozenset[str]
    form: Literal["eager", "compiled", "pixelwise"]


def compiled(
    objective: Objective, mode: str = "default", backend: str = "inductor"
) -> Callable[[Params, Sample, Batch], Loss]:
    """The same objective, with what follows the implants compiled: camera, victim and losses.

    What comes before has no frame with a gradient, and an implant computes no more than the patches cover,
    which their corners decide: that runs as it is, and so does a stage that declares `compile=False`. Values
    differ from those of `objective` by rounding.

    Args:
        objective: What is minimized.
        mode: Of `torch.compile`: one of `COMPILE_MODES`; "reduce-overhead" records CUDA graphs.
        backend: Of `torch.compile`; "inductor" needs a C++ compiler on a CPU.

    Returns:
        `(patch_params, sample, batch) -> Loss`, for `value_and_grad` with plain autograd. The first call
        compiles, which takes up to a minute or two, and so does the first with another number of rows.
    """
    for n in objective.pipeline.values():
        n.stage.load()
    options: Any = {"mode": None if mode == "default" else mode, "backend": backend, "dynamic": False}
    parts = [
        (p, p.nodes.apply if p.form == "eager" else torch.compile(_form(p), **options))
        for p in _cut(objective.pipeline)
    ]

    def loss(patch_params: Params, sample: Sample, batch: Batch) -> Loss:
        values = dict(batch)
        for part, apply in parts:
            drawn = {path: sample[path] for path in part.nodes if path in sample}
            given = {name: values[name] for name in values if name in part.reads or ALL in part.reads}
            want = tuple(name for name in part.wants if name in values or name not in part.if_there)
            values |= apply(patch_params, drawn, given, want=want)
        # what a CUDA graph returns is overwritten by the next call, of another micro-batch say
        return objective.weigh({name: values[name].clone() for name in objective.pipeline.terms})

    return loss


def _cut(pipeline: Pipeline) -> list[_Part]:
    """A pipeline in parts: what is compiled together, and what runs as it is."""
    definitions = [n.stage.definition for n in pipeline.values()]
    last = max((i for i, d in enumerate(definitions) if d.eager or d.geometric), default=-1)
    forms = [
        "eager" if i <= last or not d.compile else "pixelwise" if d.pixelwise else "compiled"
        for i, d in enumerate(definitions)
    ]
    order = zip(pipeline, forms, strict=True)
    runs = [(form, [path for path, _ in run]) for form, run in groupby(order, key=itemgetter(1))]
    parts: list[_Part] = []
    wanted = set(pipeline.terms)
    for form, paths in reversed(runs):
        nodes = pipeline.upto(paths[-1]).since(paths[0])
        written: dict[str, bool] = {}  # and whether it is written only where it is there already
        for n in nodes.values():
            for own, name in n.writes.items():
                written[name] = written.get(name, True) and own in n.stage.definition.optional
        reads = {name for n in nodes.values() for name in n.reads.values()}
        wants = sorted(name for name in written if name in wanted or ALL in wanted)
        if_there = frozenset(name for name in wants if written[name])
        parts.append(_Part(nodes, tuple(sorted(reads)), tuple(wants), if_there, form))
        wanted |= reads
    return parts[::-1]


def _form(part: _Part) -> Callable[..., Values]:
    """What is compiled."""
    return _by_channels(part.nodes) if part.form == "pixelwise" else part.nodes.apply


def _by_channels(nodes: Pipeline) -> Callable[..., Values]:
    """`nodes.apply` for pixelwise stages, on the channels of an image, computed again in the backward.

    A compiler makes one loop of it forward, and one backward. It does not see through an image that is put
    together and taken apart between two color matrices: it would compute what precedes a matrix once for each
    product. What the backward needs of every stage takes longer to write and to read than to compute again,
    but for fields of noise.
    """
    keep = partial(create_selective_checkpoint_contexts, [torch.ops.fpatch.quantiles.default])

    def apply(patch_params: Params, sample: Sample, batch: Batch, want: tuple[str, ...]) -> Values:
        def by_channels(images: dict[str, Tensor]) -> dict[str, Tensor]:
            channels = {n: tuple(c[:, None] for c in image.unbind(1)) for n, image in images.items()}
            written = nodes.apply(patch_params, sample, channels)
            # inductor joins tensors [b, 1, h, w] in another layout of memory, by single numbers
            return {name: torch.stack([c[:, 0] for c in written[name]], dim=1) for name in want}

        settings: Any = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": keep}
        return checkpoint(by_channels, dict(batch), **settings)

    return apply


def _with_aux(
    objective: Callable[[Params, Sample, Batch], Loss],
) -> Callable[[Params, Sample, Batch], tuple[Tensor, dict[str, Tensor]]]:
    """The form that `torch.func.grad_and_value(has_aux=True)` asks for."""

    def function(patch_params: Params, sample: Sample, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        return tuple(objective(patch_params, sample, batch))  # type: ignore[return-value]

    return function
