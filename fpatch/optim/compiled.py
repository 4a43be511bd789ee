"""The same objective with camera, victim and losses compiled."""

from collections.abc import Callable
from functools import partial
from itertools import groupby
from operator import itemgetter
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint, create_selective_checkpoint_contexts

from fpatch.core.types import Batch, Params, Sample, Values
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import ALL
from fpatch.optim.objective import Loss, Objective

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
    traits = [n.stage.definition.traits for n in pipeline.values()]
    last = max((i for i, t in enumerate(traits) if t.eager or t.geometric), default=-1)
    forms = [
        "eager" if i <= last or not t.compile else "pixelwise" if t.pixelwise else "compiled"
        for i, t in enumerate(traits)
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
