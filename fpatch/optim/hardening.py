"""Hardening: the training of a victim continues with images that carry patches of a pool.

The patches of a pool are trained to their end against one state of the victim, and do not move while the
victim learns. In a trial, a pool that followed every update of the victim made it weaker, and a fresh patch
for each image hid gradients only.
"""

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Literal

import optree
import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.core.tree import device_of, take_rows, to_device
from fpatch.core.types import Batch
from fpatch.data import Loader
from fpatch.graph.keys import row_keys
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import control
from fpatch.ops.geometry import LABELS
from fpatch.optim.objective import Objective
from fpatch.optim.population import PopulationStep, make_population_step
from fpatch.optim.step import Step, StepInfo, TrainState, make_state
from fpatch.random import fold_in


def train_patches(
    objectives: Sequence[Objective],
    optimizer: GradientTransformation,
    keys: Sequence[Tensor],
    loader: Loader,
    num_steps: int,
    on_step: Callable[[int], None] = lambda step: None,
    *,
    transform: Literal["func", "autograd"] = "autograd",
    rho: float = 0.0,
    alone: Sequence[Step] | None = None,
) -> list[dict[str, Tensor]]:
    """Train patches from scratch, one for each objective and key, on the same images.

    Args:
        objectives: One per patch; they share a pipeline, and may differ in weights.
        optimizer: The optimizer of each.
        keys: The root key of each.
        loader: The batches by step.
        num_steps: Updates of each.
        on_step: Called with the number of updates made by all.
        transform: As in `fpatch.make_step`.
        rho: As in `fpatch.make_step`.
        alone: The step of each, as of `fpatch.make_step`, by which they take their updates one after another;
            None: one step for the rows of all.

    Returns:
        The parameters of each patch.

    Example:
        >>> import tempfile
        >>> import fpatch
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.optim.hardening import train_patches
        >>> from fpatch.study.setup import make_loader, set_up
        >>> study = tiny_study(tempfile.mkdtemp())
        >>> made = set_up(study)
        >>> keys = [fpatch.random.key(seed) for seed in (0, 1)]
        >>> loader = make_loader(study, made)
        >>> found = train_patches([made.objective] * 2, made.optimizer, keys, loader, num_steps=2)
        >>> [params["tag"].shape for params in found]
        [torch.Size([3, 6, 6]), torch.Size([3, 6, 6])]
    """
    states: Sequence[TrainState] = [
        make_state(objective, optimizer, key, loader.device or "cpu")
        for objective, key in zip(objectives, keys, strict=True)
    ]
    if alone is None:
        step = make_population_step(objectives, [optimizer] * len(states), transform=transform, rho=rho)
    else:
        step = _in_turn(alone)
    with closing(loader.batches()) as batches:
        for number in range(num_steps):
            states, _ = step(states, [next(batches)] * len(states))
            on_step(number + 1)
    return [state.all_params for state in states]


def _in_turn(steps: Sequence[Step]) -> PopulationStep:
    """The step of a population whose members are updated one after another."""

    def step(
        states: Sequence[TrainState], batches: Sequence[Batch]
    ) -> tuple[tuple[TrainState, ...], tuple[StepInfo, ...]]:
        moved, infos = zip(
            *(own(s, b) for own, s, b in zip(steps, states, batches, strict=True)), strict=True
        )
        return moved, infos

    return step


@dataclass(frozen=True)
class PatchedLoader:
    """Batches in which a share of the scenes carries patches of a pool.

    The rows of a step, their patches and their placements are a function of the keys and the step alone. All
    rows pass the stages of the attack that make its scene; those without a patch have opacity 0.

    Attributes:
        loader: The batches without patches.
        pipeline: The pipeline of the attack, in the phase of training; its stages up to the last one that
            brings in patches make the scene.
        pool: The patches that its parameterizations would write, stacked [p, ...].
        share: The share of the rows that carry a patch, drawn for each row as its patch is.
        key: The key of the choices and placements.
        carried: False leaves all patches out, and changes nothing else.

    Raises:
        ValueError: If the pipeline brings no patch into an image, or the share is not in 0..1.
    """

    loader: Loader
    pipeline: Pipeline
    pool: Mapping[str, Any]
    share: float
    key: Tensor
    carried: bool = True

    def __post_init__(self) -> None:
        check_number("harden.share", self.share, 0.0, 1.0)
        _ = self._composing

    @cached_property
    def _composing(self) -> Pipeline:
        implants = [path for path, n in self.pipeline.items() if "opacity" in n.stage.definition.fields]
        if not implants:
            raise ValueError(
                "harden: no stage of the attack brings a patch into an image; add one, such as implant.warp"
            )
        return self.pipeline.upto(implants[-1]).without(*self.pipeline.parameterizations)

    def batch(self, step: int) -> dict[str, Any]:
        """The batch of a step, counted from 0."""
        return self._carry(self.loader.batch(step), step)

    def batches(self, start: int = 0) -> Generator[dict[str, Any], None, None]:
        """Iterate over the batches from `start` on, without end."""
        with closing(self.loader.batches(start)) as batches:
            for step, batch in enumerate(batches, start):
                yield self._carry(batch, step)

    def _carry(self, batch: dict[str, Any], step: int) -> dict[str, Any]:
        body = self._composing
        keys = row_keys(fold_in(fold_in(self.key, "pool"), step), batch)
        shown = random.bernoulli(fold_in(keys, "shown"), self.share)
        count = len(optree.tree_leaves(self.pool)[0])  # type: ignore[arg-type]
        member = random.randint(fold_in(keys, "member"), (), 0, count)
        drawn = body.sample(keys, batch)
        on = shown if self.carried else torch.zeros_like(shown)
        sample = optree.tree_map(
            lambda value, off: torch.where(on.view(-1, *[1] * (value.ndim - 1)), value, off),
            drawn,  # type: ignore[arg-type]
            control(drawn),  # type: ignore[arg-type]
        )
        device = device_of(batch)
        patches = take_rows(to_device(self.pool, device), member.to(device))
        with torch.no_grad():
            given = {**to_device(batch, device), **patches}
            values = body.apply({}, to_device(sample, device), given, want=("image", *LABELS))  # type: ignore[arg-type]
        made = {name: values[name].to(batch[name].device) for name in LABELS if name in batch}
        return {**batch, **made, "scene": values["image"]}
