"""Compile an objective: camera, victim and losses."""

from collections.abc import Callable
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import optree
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from fpatch.core.inner_autograd import Inner, run_inner
from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import ALL
from fpatch.optim.objective import Loss, Objective

COMPILE_MODES = ("default", "reduce-overhead", "max-autotune", "max-autotune-no-cudagraphs")
"""The modes of `torch.compile`."""


class _Part(NamedTuple):
    """Consecutive nodes of one form, with the names that they read and that later parts or the loss need.

    Attributes:
        nodes: The nodes.
        reads: The names that they read.
        wants: The names that they write for later parts or the loss.
        if_there: Those of `wants` that are written only where the batch holds them already.
        form: How the nodes run: eager, compiled, or compiled on the channels of an image.
    """

    nodes: Pipeline
    reads: tuple[str, ...]
    wants: tuple[str, ...]
    if_there: frozenset[str]
    form: Literal["eager", "compiled", "pixelwise"]


def compiled(
    objective: Objective,
    mode: str = "default",
    backend: str = "inductor",
    transform: Literal["func", "autograd"] = "autograd",
) -> Callable[[Params, Sample, Batch], Loss]:
    """Compile the nodes of an objective that follow the implants: camera, victim and losses.

    Earlier nodes run eagerly: no gradient of a whole image passes them, and the corners decide how much an
    implant computes. A stage with the trait `compile=False` runs eagerly too. Values differ from those of
    `objective` by rounding.

    Args:
        objective: The objective to minimize.
        mode: The mode of `torch.compile`, one of `COMPILE_MODES`; "reduce-overhead" records CUDA graphs.
        backend: The backend of `torch.compile`; "inductor" needs a C++ compiler on a CPU.
        transform: The method of differentiation. Under "func", the compiled parts are differentiated by plain
            autograd inside of `torch.func.grad`, which cannot enter compiled code.

    Returns:
        `(patch_params, sample, batch) -> Loss`, for `value_and_grad` with that transform. The first call
        compiles for up to two minutes, and so does the first call with another number of rows.
    """
    for n in objective.pipeline.values():
        n.stage.load()
    options: Any = {"mode": None if mode == "default" else mode, "backend": backend, "dynamic": False}
    enter = _by_inner_autograd if transform == "func" else lambda apply: apply
    parts = [
        (p, p.nodes.apply if p.form == "eager" else enter(torch.compile(_form(p), **options)))
        for p in _cut(objective.pipeline, (*objective.wanted, *objective.tellers))
    ]

    def loss(patch_params: Params, sample: Sample, batch: Batch) -> Loss:
        values, weights = objective.split_weights(patch_params, sample, batch)
        for part, apply in parts:
            drawn = {path: sample[path] for path in part.nodes if path in sample}
            given = {name: values[name] for name in values if name in part.reads or ALL in part.reads}
            want = tuple(name for name in part.wants if name in values or name not in part.if_there)
            values |= apply(patch_params, drawn, given, want=want)
        # the next call, e.g. of another micro-batch, overwrites the results of a CUDA graph
        wanted = {n: values[n] for n in (*objective.wanted, *objective.tellers) if n in values}
        return objective.weigh_values(optree.tree_map(Tensor.clone, wanted), weights)  # type: ignore

    return loss


def _cut(pipeline: Pipeline, more: tuple[str, ...] = ()) -> list[_Part]:
    """Cut a pipeline into parts of one form each, which write the terms and more names."""
    traits = [n.stage.definition.traits for n in pipeline.values()]
    last = max((i for i, t in enumerate(traits) if t.eager or t.geometric), default=-1)
    forms = [
        "eager" if i <= last or not t.compile else "pixelwise" if t.pixelwise else "compiled"
        for i, t in enumerate(traits)
    ]
    order = zip(pipeline, forms, strict=True)
    runs = [(form, [path for path, _ in run]) for form, run in groupby(order, key=itemgetter(1))]
    parts: list[_Part] = []
    wanted = {*pipeline.terms, *more}
    for form, paths in reversed(runs):
        nodes = pipeline.upto(paths[-1]).since(paths[0])
        written: dict[str, bool] = {}  # whether the name is written only where the batch holds it
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
    """The function that is compiled for a part."""
    return _by_channels(part.nodes) if part.form == "pixelwise" else part.nodes.apply


def _by_channels(nodes: Pipeline) -> Callable[..., Values]:
    """Apply pixelwise stages to the channels of an image, and recompute them in the backward.

    The compiler makes one loop forward and one backward. With whole images it would join and split the
    channels between two color matrices, and compute the stages before a matrix once for each product.
    Recomputing is faster than writing and reading the intermediate values, except for fields of noise.
    """
    keep = partial(create_selective_checkpoint_contexts, [torch.ops.fpatch.quantiles.default])

    def apply(patch_params: Params, sample: Sample, batch: Batch, want: tuple[str, ...]) -> Values:
        def by_channels(images: dict[str, Tensor]) -> dict[str, Tensor]:
            channels = {n: tuple(c[:, None] for c in image.unbind(1)) for n, image in images.items()}
            written = nodes.apply(patch_params, sample, channels)
            # inductor joins tensors [b, 1, h, w] number by number, into another layout of memory
            return {name: torch.stack([c[:, 0] for c in written[name]], dim=1) for name in want}

        settings: Any = {"use_reentrant": False, "preserve_rng_state": False, "context_fn": keep}
        return checkpoint(by_channels, dict(batch), **settings)

    return apply


def _by_inner_autograd(apply: Callable[..., Values]) -> Callable[..., Values]:
    """Differentiate a compiled part by plain autograd, inside of `torch.func.grad`."""

    def part(patch_params: Params, sample: Sample, batch: Batch, want: tuple[str, ...]) -> Values:
        inputs, form = optree.tree_flatten((dict(patch_params), sample, dict(batch)))  # type: ignore[arg-type]
        structure: list[Any] = []

        def flat(*inside: Tensor) -> list[Tensor]:
            values = apply(*optree.tree_unflatten(form, inside), want=want)
            leaves, tree = optree.tree_flatten(values)  # type: ignore[arg-type]
            structure[:] = [tree]
            return leaves

        inner = Inner(flat, tuple(x.requires_grad for x in inputs), pulls_once=True)
        outputs = run_inner(inner, *inputs)
        return optree.tree_unflatten(structure[0], outputs)  # type: ignore[return-value]

    return part
