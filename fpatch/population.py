"""Many patches in one step: p members of a population with b rows each are one batch of p * b rows.

Member i's rows carry its patch and its draws, and the victim is called once. What depends on the patch alone
is computed once per member. To float tolerance a member moves as it would in a run of its own.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence

import optree
import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from fpatch import random
from fpatch.checks import check_number
from fpatch.graph import Pipeline
from fpatch.loop import StepInfo, TrainState, finish, point_of_gradient, take_rows, uphill
from fpatch.objective import Loss, Objective, value_and_grad
from fpatch.stage import Function, row_keys
from fpatch.types import Batch, Params, Sample

PopulationStep = Callable[
    [Sequence[TrainState], Sequence[Batch]], tuple[tuple[TrainState, ...], tuple[StepInfo, ...]]
]


def make_population_step(
    objectives: Sequence[Objective],
    optimizers: Sequence[GradientTransformation],
    *,
    members_at_once: int | None = None,
    rho: float = 0.0,
) -> PopulationStep:
    """One update of every member as a pure function `(states, batches) -> (states, infos)`.

    States and infos are those of `fpatch.make_step`, one per member: a member can be taken out, saved, resumed
    alone, or put back at any time, and members need not have made the same number of steps.

    Args:
        objectives: Of each member; they share one pipeline and may differ in weights.
        optimizers: Of each member, with any settings.
        members_at_once: Members whose graph is held at a time; None for all. On a CPU so many that their rows
            fit its cache are quickest.
        rho: See `fpatch.make_step`.

    Returns:
        The step. It takes one state and one batch per member (`[batch] * p` for the same photographs); batches
        have the same names and shapes.

    Raises:
        ValueError: If there is no member, numbers of members differ, objectives have different pipelines, or
            a node is a plain function.
    """
    check_number("population.rho", rho, 0.0)
    if members_at_once is not None:
        check_number("population.members_at_once", members_at_once, 1)
    pipeline = _check_members(objectives, optimizers)
    size = members_at_once or len(objectives)
    parts = [slice(start, start + size) for start in range(0, len(objectives), size)]
    gradients = [value_and_grad(_together(objectives[part])) for part in parts]

    def step_part(
        index: int, states: Sequence[TrainState], batches: Sequence[Batch]
    ) -> Iterator[tuple[TrainState, StepInfo]]:
        weighing, moving = objectives[parts[index]], optimizers[parts[index]]
        keys = torch.cat([_keys(state, batch) for state, batch in zip(states, batches, strict=True)])
        batch = optree.tree_map(lambda *rows: torch.cat(rows), *batches)
        sample = pipeline.sample(keys, batch)
        points = [point_of_gradient(pipeline, o, s) for o, s in zip(moving, states, strict=True)]

        def gradient(points: Sequence[Params]) -> tuple[list[dict[str, Tensor]], dict[str, Tensor]]:
            grads, loss = gradients[index](_stack(points), sample, batch)
            return [{name: g[i] for name, g in grads.items()} for i in range(len(points))], loss.terms

        grads, terms = gradient(points)
        if rho:
            grads, _ = gradient([uphill(p, g, rho) for p, g in zip(points, grads, strict=True)])
        b = len(keys) // len(states)
        for i, (objective, optimizer, state) in enumerate(zip(weighing, moving, states, strict=True)):
            rows = slice(i * b, (i + 1) * b)
            own = objective.weigh(take_rows(terms, rows))
            yield finish(pipeline, optimizer, state, grads[i], own, take_rows(sample, rows), batches[i])

    def step(
        states: Sequence[TrainState], batches: Sequence[Batch]
    ) -> tuple[tuple[TrainState, ...], tuple[StepInfo, ...]]:
        _check_inputs(len(objectives), states, batches)
        done = [d for i, part in enumerate(parts) for d in step_part(i, states[part], batches[part])]
        moved, infos = zip(*done, strict=True)
        return moved, infos

    return step


def split(pipeline: Pipeline) -> tuple[Pipeline, Pipeline]:
    """The nodes that compute from the parameters alone, for each member, and the others, for each row.

    The first are those on patches that draw nothing, and the losses on patches that come out of them; none of
    them replaces what one of the others reads.
    """
    alone: list[str] = []
    known: set[str] = set()
    used: set[str] = set()
    for path, n in pipeline.items():
        d, reads, writes = n.stage.definition, set(n.reads.values()), set(n.writes.values())
        on_patch = (d.writes == ("patch",) and not d.fields) or d.of_patch
        if on_patch and reads - ({"image_id"} if d.of_patch else set()) <= known and not writes & used:
            alone.append(path)
            known |= writes
        else:
            known -= writes
            used |= reads | writes
    return pipeline.without(*(path for path in pipeline if path not in alone)), pipeline.without(*alone)


def _together(objectives: Sequence[Objective]) -> Callable[[Params, Sample, Batch], Loss]:
    """The sum of the losses of all members, each of which depends on its own parameters alone."""
    num_members, pipeline = len(objectives), objectives[0].pipeline
    of_members, of_rows = split(pipeline)
    names = tuple(dict.fromkeys(name for n in of_members.values() for name in n.writes.values()))

    def together(patch_params: Params, sample: Sample, batch: Batch) -> Loss:
        b = len(batch["image_id"]) // num_members
        members = {"image_id": torch.arange(num_members, device=batch["image_id"].device)}
        made = of_members.apply(patch_params, {}, members, want=names)
        # a patch that is no member's own has no axis of members
        rows = optree.tree_map(lambda x: x if x.ndim == 3 else x.repeat_interleave(b, 0), made)
        params = _RowParams(patch_params, b)
        terms = of_rows.apply(params, sample, {**batch, **rows}, want=pipeline.terms)
        split_terms = {name: term.unflatten(0, (num_members, b)).unbind() for name, term in terms.items()}
        losses = [
            objective.weigh({name: term[i] for name, term in split_terms.items()})
            for i, objective in enumerate(objectives)
        ]
        return Loss(torch.stack([loss.value for loss in losses]).sum(), terms)

    return together


class _RowParams(Mapping[str, Tensor]):
    """Parameters [p, ...] as those of every row, [p * b, ...], copied when they are read."""

    def __init__(self, patch_params: Params, num_rows: int) -> None:
        self._members, self._num_rows = patch_params, num_rows

    def __getitem__(self, name: str) -> Tensor:
        return self._members[name].repeat_interleave(self._num_rows, 0)

    def __iter__(self) -> Iterator[str]:
        return iter(self._members)

    def __len__(self) -> int:
        return len(self._members)


def _keys(state: TrainState, batch: Batch) -> Tensor:
    return row_keys(random.fold_in(random.fold_in(state.key, "train"), state.step), batch)


def _stack(trees: Sequence[Params]) -> dict[str, Tensor]:
    return {name: torch.stack([tree[name] for tree in trees]) for name in trees[0]}


def _check_members(
    objectives: Sequence[Objective], optimizers: Sequence[GradientTransformation]
) -> Pipeline:
    if not objectives or len(objectives) != len(optimizers):
        raise ValueError(
            f"population: one objective and one optimizer per member, got {len(objectives)} and "
            f"{len(optimizers)}; repeat what members share, [optimizer] * {max(len(objectives), 1)}"
        )
    pipeline = objectives[0].pipeline
    for i, objective in enumerate(objectives):
        if objective.pipeline is not pipeline:
            raise ValueError(
                f"population: the objective of member {i} has a pipeline of its own; members may differ in "
                "seed, optimizer and weights: make all objectives of one pipeline"
            )
    for path, n in pipeline.items():
        if isinstance(n.stage.config, Function):
            raise ValueError(
                f"population: node {path!r} is a plain function, which is given one patch and not one per "
                "row; make it a stage with fpatch.define"
            )
    return pipeline


def _check_inputs(num: int, states: Sequence[TrainState], batches: Sequence[Batch]) -> None:
    if len(states) != num or len(batches) != num:
        raise ValueError(
            f"population: {num} members need as many states and batches, got {len(states)} and "
            f"{len(batches)}; for the same photographs give [batch] * {num}"
        )
    shapes = [optree.tree_map(lambda x: tuple(x.shape), batch) for batch in batches]
    for i, other in enumerate(shapes):
        if other != shapes[0]:
            raise ValueError(
                f"population: batches must have the same names and shapes, but that of member {i} has "
                f"{other}, and that of member 0 {shapes[0]}"
            )
