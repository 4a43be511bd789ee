"""Train many patches in one step: p members of a population with b rows each are one batch of p * b rows.

The rows of a member carry its patch and its draws, and the victim runs once. Nodes that depend on the patch
alone run once per member. A member moves as in a run of its own, to float tolerance.
"""

from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

import optree
import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.core.tree import device_of, take_rows, to_device
from fpatch.core.types import Batch, Params, Sample
from fpatch.graph.contracts import copy_readable
from fpatch.graph.keys import check_uses
from fpatch.graph.parameters import RowParams, next_buffers
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import ALL
from fpatch.optim.counted import rows_in, to_weights
from fpatch.optim.gradient import ascend, value_and_grad
from fpatch.optim.members import Alone, by_member
from fpatch.optim.mistakes import check_optimizer
from fpatch.optim.objective import Loss, Objective, check_lengths
from fpatch.optim.step import StepInfo, TrainState, apply_gradient, lookahead_params

PopulationStep = Callable[
    [Sequence[TrainState], Sequence[Batch]], tuple[tuple[TrainState, ...], tuple[StepInfo, ...]]
]


def make_population_step(
    objectives: Sequence[Objective],
    optimizers: Sequence[GradientTransformation],
    *,
    transform: Literal["func", "autograd"] = "autograd",
    members_at_once: int | None = None,
    rho: float = 0.0,
) -> PopulationStep:
    """Make the update of all members, a pure function `(states, batches) -> (states, infos)`.

    States and infos are those of `fpatch.make_step`, one per member. Between two steps a member can be saved,
    trained alone or replaced. Members may have made different numbers of steps.

    Args:
        objectives: One per member. They share one pipeline, and may differ in weights.
        optimizers: One per member, with settings of its own.
        transform: As in `fpatch.make_step`.
        members_at_once: Members whose graph is in memory at a time; None for all.
        rho: As in `fpatch.make_step`.

    Returns:
        The step, which takes one state and one batch per member; `[batch] * p` for the same images. All
        batches have the same names and shapes.

    Raises:
        ValueError: If there is no member, the numbers of objectives and optimizers differ, objectives have
            different pipelines.

    Example:
        >>> import torch, fpatch
        >>> tv = fpatch.losses.total_variation()
        >>> p = fpatch.pipeline({"patch": fpatch.create.pixels({"a": (3, 4, 4)}), "tv": tv})
        >>> pair = [fpatch.Objective(p, {"total_variation": weight}) for weight in (0.5, 2.0)]
        >>> optimizers = [fpatch.make_optimizer(fpatch.Optimizer(), num_steps=2)] * 2
        >>> states = [fpatch.make_state(pair[0], optimizers[0], fpatch.random.key(seed)) for seed in (0, 1)]
        >>> batch = {"image_id": torch.tensor([0]), "draw": torch.tensor([0])}
        >>> states, infos = fpatch.make_population_step(pair, optimizers)(states, [batch] * 2)
        >>> [state.step for state in states]
        [1, 1]
    """
    if members_at_once is not None:
        check_number("population.members_at_once", members_at_once, 1)
    check_number("population.rho", rho, 0.0)
    for optimizer in optimizers:
        check_optimizer(optimizer)
    _check_members(objectives, optimizers)
    num = len(objectives)
    size = members_at_once or num
    slices = [slice(start, start + size) for start in range(0, num, size)]
    parts = [(some, _make_part(objectives[some], optimizers[some], transform, rho)) for some in slices]

    def step(
        states: Sequence[TrainState], batches: Sequence[Batch]
    ) -> tuple[tuple[TrainState, ...], tuple[StepInfo, ...]]:
        _check_inputs(num, states, batches)
        pairs = [pair for some, part in parts for pair in part(states[some], batches[some])]
        moved, infos = zip(*pairs, strict=True)
        return moved, infos

    return step


def split(pipeline: Pipeline) -> tuple[Pipeline, Pipeline]:
    """Split a pipeline into the nodes that run once per member and those that run once per row.

    Member nodes depend on the parameters alone: stages on patches without a sample, and losses on their
    patches. A stage that replaces a patch already read by a row node is a row node.
    """
    of_members: list[str] = []
    known: set[str] = set()
    used_by_rows: set[str] = set()
    for path, n in pipeline.items():
        d, writes = n.stage.definition, set(n.writes.values())
        reads = set(n.reads.values()) - ({"image_id"} if d.traits.of_patch else set())
        on_patches = d.traits.of_patch or (d.writes == ("patch",) and not d.fields and not d.weights)
        if on_patches and reads <= known and not {*writes, ALL} & used_by_rows:
            of_members.append(path)
            known |= writes
        else:
            known -= writes
            used_by_rows |= reads | writes
    of_rows = [path for path in pipeline if path not in of_members]
    return pipeline.without(*of_rows), pipeline.without(*of_members)


def _make_part(
    objectives: Sequence[Objective],
    optimizers: Sequence[GradientTransformation],
    transform: Literal["func", "autograd"],
    rho: float,
) -> Callable[[Sequence[TrainState], Sequence[Batch]], Iterator[tuple[TrainState, StepInfo]]]:
    """The step of the members whose graph is in memory at once."""
    pipeline = objectives[0].pipeline
    gradient_of_sum = value_and_grad(_sum(objectives), transform, wrt=objectives[0].trained)

    def gradient(
        points: Sequence[Params], sample: Sample, batch: Batch
    ) -> tuple[list[dict[str, Tensor]], Loss]:
        grads, loss = gradient_of_sum(_stack(points), sample, batch)
        return [take_rows(grads, i) for i in range(len(points))], loss

    def part(states: Sequence[TrainState], batches: Sequence[Batch]) -> Iterator[tuple[TrainState, StepInfo]]:
        batch = _join_rows(batches)
        checked = batch if all(state.step for state in states) else copy_readable(batch)
        sample = pipeline.sample(_row_keys(states, batch), checked)
        pairs = list(zip(optimizers, states, strict=True))
        points = [{**s.fixed, **lookahead_params(pipeline, o, s)} for o, s in pairs]
        placed = to_device((sample, batch), device_of(points))
        grads, whole = gradient(points, *placed)
        if rho:
            above = [ascend(point, own, rho) for point, own in zip(points, grads, strict=True)]
            grads, _ = gradient(above, *placed)
        b = len(batches[0]["image_id"])
        for i, state in enumerate(states):
            rows = slice(i * b, (i + 1) * b)
            own = take_rows(whole.counted, rows)
            loss = objectives[i].weigh(take_rows(whole.terms, rows), to_weights(own))
            loss = objectives[i].void_uncounted(loss, own)
            loss = loss._replace(buffers=take_rows(whole.buffers, i * b))
            yield apply_gradient(
                pipeline, optimizers[i], state, grads[i], loss, take_rows(sample, rows), batches[i], own
            )

    return part


def _sum(objectives: Sequence[Objective]) -> Callable[[Params, Sample, Batch], Loss]:
    """The sum of the members' losses, each of which depends on its own parameters alone."""
    p, pipeline = len(objectives), objectives[0].pipeline
    of_members, of_rows = split(pipeline)
    first = objectives[0]
    want = (*first.wanted, *first.tellers)
    alone = Alone(pipeline, want)
    of_members = by_member(of_members, alone, p, in_rows=False)
    of_rows = by_member(of_rows, alone, p, in_rows=True)
    names = tuple(dict.fromkeys(name for n in of_members.values() for name in n.writes.values()))

    def loss(patch_params: Params, sample: Sample, batch: Batch) -> Loss:
        b = len(batch["image_id"]) // p
        alone.look(patch_params, sample, batch, p)
        members = {"image_id": torch.arange(p, device=batch["image_id"].device)}
        made = of_members.apply(patch_params, {}, members, want=names)
        params = RowParams(patch_params, b)
        values = of_rows.apply(params, sample, {**batch, **_repeat(made, b)}, want=want)
        terms = {name: values[name] for name in pipeline.terms}
        check_lengths(terms, p * b)
        counted = rows_in(first.sources, values) if first.tellers else first.counted(params, sample, batch)
        weights = to_weights(counted, members=p)
        own, scale = (
            {name: rows.unflatten(0, (p, b)).unbind() for name, rows in tree.items()}
            for tree in (terms, weights)
        )
        losses = [
            o.weigh({n: own[n][i] for n in own}, {n: scale[n][i] for n in scale}).value
            for i, o in enumerate(objectives)
        ]
        return Loss(torch.stack(losses).sum(), terms, counted, next_buffers(of_rows, values))

    return loss


def _stack(points: Sequence[Params]) -> dict[str, Tensor]:
    return {name: torch.stack([point[name] for point in points]) for name in points[0]}


def _repeat(made: Any, num_rows: int) -> Any:
    """Repeat the members' values for each row; a patch [c, h, w] without parameters serves all rows."""
    return optree.tree_map(lambda x: x if x.ndim == 3 else x.repeat_interleave(num_rows, 0), made)


def _join_rows(batches: Any) -> Any:
    return optree.tree_map(lambda *rows: torch.cat(rows), *batches)


def _row_keys(states: Sequence[TrainState], batch: Batch) -> Tensor:
    """The row keys [p * b, 2], equal to those of the members' own steps."""
    roots = torch.stack([state.key for state in states])
    keys = random.fold_in(random.fold_in(roots, "train"), torch.tensor([state.step for state in states]))
    keys = keys.repeat_interleave(len(batch["image_id"]) // len(states), 0)
    return random.fold_in(random.fold_in(keys, batch["image_id"]), batch["draw"])


def _check_members(objectives: Sequence[Objective], optimizers: Sequence[GradientTransformation]) -> None:
    if not objectives or len(objectives) != len(optimizers):
        raise ValueError(
            "population: every member needs an objective and an optimizer, got "
            f"{len(objectives)} and {len(optimizers)}; repeat a shared one, [optimizer] * p"
        )
    pipeline = objectives[0].pipeline
    for i, objective in enumerate(objectives):
        if objective.pipeline is not pipeline:
            raise ValueError(
                f"population: member {i} has another pipeline than member 0; make all objectives with one "
                "pipeline (members differ in seeds, optimizers and weights)"
            )
        if objective.trained != objectives[0].trained:
            raise ValueError(f"population: member {i} trains other parameters than member 0; give one wrt")


def _check_inputs(num: int, states: Sequence[TrainState], batches: Sequence[Batch]) -> None:
    if len(states) != num or len(batches) != num:
        raise ValueError(
            f"population: {num} members need {num} states and {num} batches, got {len(states)} and "
            f"{len(batches)}; for the same images give [batch] * {num}"
        )
    shapes = [{name: list(value.shape) for name, value in batch.items()} for batch in batches]
    for i, batch in enumerate(batches):
        check_uses(batch)
        for name in sorted({*shapes[0], *shapes[i]}):
            first, own = shapes[0].get(name, "no such name"), shapes[i].get(name, "no such name")
            if own != first:
                raise ValueError(
                    f"population: batches must have the same names and shapes, but {name!r} of member {i} "
                    f"is {own}, and that of member 0 {first}; make all with one batch size and image size"
                )
