"""The time of `torch.func` over that of plain autograd, on the same values in turn.

Whole step: `make_step(transform="func")` over `make_step()`, eager and compiled. Victim alone:
`torch.func.grad` over `torch.autograd.grad` with respect to the images, eager and compiled. Patches: the
gradients of several patches by `torch.func.vmap`, over one batch of all their rows (a population) and over a
loop. Keys: the mean gradient over several draws of the same images, by `torch.func.vmap` over the flat batch.
Weights: the gradient through an ensemble of one architecture, by `torch.func.vmap` over a loop.

    python benchmarks/func.py [--repeats 11] [--device cpu|cuda] [--small]
"""

from collections.abc import Callable
from typing import Any

import optree
import torch
from harness import Options, Record, interleave, read_options
from torch import Tensor
from workloads import Victim, make_batch, make_images, make_pipeline, make_training, make_victim

import fpatch
from fpatch import random
from fpatch.core.tree import take_rows, to_device

Functions = dict[str, Callable[[], object]]

MEMBERS = 4
"""Patches, draws, or networks of an ensemble."""


def of_step(pipeline: fpatch.Pipeline, batch: dict[str, Tensor], compiled: bool) -> Functions:
    """The whole step by both transforms."""
    device = str(batch["scene"].device)
    _, state = make_training(pipeline, device)

    def of(**settings: Any) -> Callable[[], object]:
        step, _ = make_training(pipeline, device, **settings)
        return lambda: step(state, batch)

    if compiled:
        return {"compiled step": of(compile=True), "compiled func step": of(compile=True, transform="func")}
    return {"step": of(), "func step": of(transform="func")}


def of_victim(victim: Victim, image: Tensor, compiled: bool) -> Functions:
    """The gradient of the victim alone by both transforms."""

    def total(x: Tensor) -> Tensor:
        return victim.answer(victim.model, x).sum()

    def plain(function: Callable[[Tensor], Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(function(image), image)

    by_func, detached = torch.func.grad(total), image.detach()
    if not compiled:
        return {"victim": plain(total), "func victim": lambda: by_func(detached)}
    fast = torch.compile(by_func, dynamic=False)
    return {
        "compiled victim": plain(torch.compile(total, dynamic=False)),
        "compiled func victim": lambda: fast(detached),
    }


def of_patches(pipeline: fpatch.Pipeline, batch: dict[str, Tensor]) -> Functions:
    """One step of several patches on the same images, by vmap, as one batch and as a loop."""
    device = str(batch["scene"].device)
    objective = fpatch.Objective(pipeline, {pipeline.terms[0]: 1.0})
    optimizer = fpatch.make_optimizer(fpatch.Optimizer(), 1000)
    states = [fpatch.make_state(objective, optimizer, random.key(i), device) for i in range(MEMBERS)]
    together = fpatch.make_population_step([objective] * MEMBERS, [optimizer] * MEMBERS)
    alone = fpatch.make_step(objective, optimizer)
    gradient = torch.func.vmap(fpatch.value_and_grad(objective, "func"), in_dims=(0, 0, None))

    def by_vmap() -> object:
        keys = [fpatch.row_keys(random.fold_in(random.fold_in(s.key, "train"), 0), batch) for s in states]
        samples = _stack([pipeline.sample(key, batch) for key in keys])
        placed = to_device((samples, batch), device)
        grads, _ = gradient(_stack([s.params for s in states]), *placed)
        moved = []
        for i, s in enumerate(states):
            updates, _ = optimizer.update(take_rows(grads, i), s.opt_state, inplace=False)
            moved.append(pipeline.project({n: p + updates[n] for n, p in s.params.items()}))
        return moved

    return {
        "patches by vmap": by_vmap,
        "patches as one batch": lambda: together(states, [batch] * MEMBERS),
        "patches in a loop": lambda: [alone(state, batch) for state in states],
    }


def of_keys(pipeline: fpatch.Pipeline, batch: dict[str, Tensor]) -> Functions:
    """The mean gradient over draws of the same images, by vmap and as one batch."""
    device = str(batch["scene"].device)
    objective = fpatch.Objective(pipeline, {pipeline.terms[0]: 1.0})
    params = to_device(pipeline.init(random.key(0)), device)
    keys = [random.fold_in(random.key(1), i) for i in range(MEMBERS)]
    samples = [pipeline.sample(fpatch.row_keys(key, batch), batch) for key in keys]
    stacked, here = to_device((_stack(samples), batch), device)
    flat, large = to_device((_cat(samples), _cat([batch] * MEMBERS)), device)
    large["draw"] = torch.arange(MEMBERS, device=large["draw"].device).repeat_interleave(len(batch["draw"]))
    by_key = torch.func.vmap(fpatch.value_and_grad(objective, "func"), in_dims=(None, 0, None))
    plain = fpatch.value_and_grad(objective)

    def by_vmap() -> object:
        grads, _ = by_key(params, stacked, here)
        return {name: grad.mean(0) for name, grad in grads.items()}

    return {"keys by vmap": by_vmap, "keys as one batch": lambda: plain(params, flat, large)}


def of_weights(victim: Victim, image: Tensor) -> Functions:
    """The gradient of the images through networks of one architecture, by vmap and in a loop."""
    with torch.random.fork_rng():
        torch.manual_seed(1)
        tensors = {**dict(victim.model.named_parameters()), **dict(victim.model.named_buffers())}
        many = [
            {n: t + 0.01 * torch.randn_like(t) if t.is_floating_point() else t for n, t in tensors.items()}
            for _ in range(MEMBERS)
        ]
    detached = image.detach()

    def total(weights: dict[str, Tensor], x: Tensor) -> Tensor:
        return victim.answer(lambda y: torch.func.functional_call(victim.model, weights, (y,)), x).sum()  # type: ignore[arg-type]

    stacked, each = _stack(many), torch.func.vmap(total, in_dims=(0, None))
    by_vmap = torch.func.grad(lambda x: each(stacked, x).mean())

    def loop() -> object:
        parts = [torch.autograd.grad(total(weights, image), image)[0] for weights in many]
        return torch.stack(parts).mean(0)

    return {"weights by vmap": lambda: by_vmap(detached), "weights in a loop": loop}


def _stack(trees: list[Any]) -> Any:
    return optree.tree_map(lambda *leaves: torch.stack(leaves), *trees)


def _cat(trees: list[Any]) -> Any:
    return optree.tree_map(lambda *leaves: torch.cat(leaves), *trees)


RATIOS = (
    ("func step", "step"),
    ("compiled func step", "compiled step"),
    ("func victim", "victim"),
    ("compiled func victim", "compiled victim"),
    ("patches by vmap", "patches as one batch"),
    ("patches by vmap", "patches in a loop"),
    ("keys by vmap", "keys as one batch"),
    ("weights by vmap", "weights in a loop"),
)


def measure(name: str, b: int, side: int, options: Options, record: Record) -> None:
    """One victim: a line per comparison, first those that take no compiler, each group in its own rounds."""
    victim = make_victim(name, options.device)
    pipeline = make_pipeline(victim, max(8, side // 4))
    batch = make_batch(b, side, patch_px=side / 4, device=options.device)
    _, state = make_training(pipeline, options.device)
    image = make_images(pipeline, state, batch)
    eager = of_step(pipeline, batch, compiled=False) | of_victim(victim, image, compiled=False)
    groups = [eager | of_patches(pipeline, batch) | of_keys(pipeline, batch) | of_weights(victim, image)]
    if not options.small:  # which takes minutes
        groups.append(of_step(pipeline, batch, compiled=True) | of_victim(victim, image, compiled=True))
    for functions in groups:
        times = interleave(functions, options.repeats, device=options.device)
        for one, over in RATIOS:
            if one in functions:
                milliseconds = {"ms": times.ms(one), "over_ms": times.ms(over)}
                ratio = times.ratio(one, over)
                record.add(f"{name}, {b} x {side}: {one} / {over}", **milliseconds, ratio=ratio)


def main(argv: list[str] | None = None) -> None:
    """Every victim."""
    options = read_options(__doc__, argv, ("cpu", "cuda"))
    if not options.small:
        fpatch.keep_freed_memory()
    record = Record("func", options)
    if options.small:
        workloads = [("tiny", 2, 64)]
    elif options.device == "cuda":
        workloads = [("resnet18", 16, 224)]
    else:
        workloads = [("tiny", 8, 128), ("mobilenet_v3_small", 8, 224)]
    for name, b, side in workloads:
        measure(name, b, side, options, record)


if __name__ == "__main__":
    main()
