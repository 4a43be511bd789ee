"""One update of the patch as a pure function of the state and a batch."""

from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor
from torchopt.base import GradientTransformation

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.core.tree import device_of, is_concrete, to_device
from fpatch.core.types import Batch, Params, Sample
from fpatch.graph.contracts import copy_readable
from fpatch.graph.keys import row_keys
from fpatch.graph.pipeline import Pipeline
from fpatch.optim.compiled import compiled
from fpatch.optim.counted import ROW_WEIGHTS, to_weights
from fpatch.optim.finite import NotFiniteError, find_bad_row
from fpatch.optim.gradient import (
    Gradient,
    accumulate_gradient,
    all_reduced_gradient,
    ascend,
    global_norm,
    sharded_gradient,
    value_and_grad,
)
from fpatch.optim.mistakes import check_objective, check_optimizer, explain_state
from fpatch.optim.networks import check_statistics
from fpatch.optim.objective import Loss, Objective, check_lengths
from fpatch.optim.transforms import Transformation
from fpatch.runtime.parallel import ALONE, Ranks


class TrainState(NamedTuple):
    """The state of a training: everything that the next step needs and that a resume restores.

    Attributes:
        params: The parameters that are trained: of patches by name, of networks as `path/name`.
        opt_state: State of the optimizer.
        step: Updates made so far.
        key: Root key of the run; the draws of update `step` come from `fold_in(fold_in(key, "train"), step)`.
        fixed: The parameters without a gradient, under such names: buffers of networks, which a step returns
            anew, and those that the objective does not train.

    Example:
        >>> import torch, fpatch
        >>> state = fpatch.TrainState({"a": torch.zeros(3, 2, 2)}, None, 0, fpatch.random.key(0))
        >>> state._replace(step=5).step, state.step
        (5, 0)
    """

    params: dict[str, Tensor]
    opt_state: Any
    step: int
    key: Tensor
    fixed: dict[str, Tensor] = {}  # noqa: RUF012 (the default of a NamedTuple, never written to)

    @property
    def all_params(self) -> dict[str, Tensor]:
        """All parameters, as a pipeline takes them."""
        return {**self.fixed, **self.params}


class StepInfo(NamedTuple):
    """The report of a step, over all rows; the next step does not need it.

    Attributes:
        loss: The weighted sum of the mean terms; NaN if no row counts for a term that has a weight.
        terms: Every term, unweighted, [b].
        grad_norm: Euclidean norm, over all parameters, of the gradient that the optimizer received.
        sample: The sample, on the host.
        batch: `image_id` and `draw` of the rows.
        counted: The rows that count in the mean of a term, [b] bool; a term that counts every row is absent.
    """

    loss: Tensor
    terms: dict[str, Tensor]
    grad_norm: Tensor
    sample: Sample
    batch: dict[str, Tensor]
    counted: dict[str, Tensor] = {}  # noqa: RUF012 (the default of a NamedTuple, never written to)


Step = Callable[[TrainState, Batch], tuple[TrainState, StepInfo]]


def make_state(
    objective: Objective,
    optimizer: GradientTransformation,
    key: Tensor,
    device: torch.device | str = "cpu",
) -> TrainState:
    """Make the state before the first step, with parameters drawn from `fold_in(key, "init")`.

    Args:
        objective: The objective; its parameterizations and networks make the parameters.
        optimizer: The optimizer; it makes its own state.
        key: The root key of the run. It stays on the host, where samples are drawn.
        device: The device of the parameters.

    Example:
        >>> import fpatch
        >>> tv = fpatch.losses.total_variation()
        >>> p = fpatch.pipeline({"patch": fpatch.create.pixels({"a": (3, 4, 5)}), "tv": tv})
        >>> optimizer = fpatch.make_optimizer(fpatch.Optimizer(), num_steps=10)
        >>> objective = fpatch.Objective(p, {"total_variation": 1.0})
        >>> state = fpatch.make_state(objective, optimizer, fpatch.random.key(0))
        >>> state.step, state.params["a"].shape
        (0, torch.Size([3, 4, 5]))
    """
    check_objective(objective)
    check_optimizer(optimizer)
    made = to_device(objective.pipeline.init(random.fold_in(key, "init")), device)
    return begin(objective, optimizer, key, made)


def begin(
    objective: Objective, optimizer: GradientTransformation, key: Tensor, all_params: Params
) -> TrainState:
    """Make the state before the first step from given parameters."""
    params = {name: all_params[name] for name in objective.trained}
    fixed = {name: value for name, value in all_params.items() if name not in params}
    return TrainState(params, optimizer.init(params), 0, key, fixed)


def make_step(
    objective: Objective,
    optimizer: GradientTransformation,
    *,
    transform: Literal["func", "autograd"] = "autograd",
    compile: bool | str = False,
    micro_batch: int | None = None,
    rho: float = 0.0,
    ranks: Ranks = ALONE,
    processes: int = 1,
    local_statistics: bool = False,
) -> Step:
    """Make one update, a pure function `(state, batch) -> (state, info)`.

    It runs on the device of the parameters, where the networks of the pipeline must be too. Samples are drawn
    on the host and copied to that device.

    Args:
        objective: The objective to minimize.
        optimizer: A torchopt transformation; it never writes in place.
        transform: See `fpatch.value_and_grad`.
        compile: True, or a mode of `torch.compile`; see `fpatch.optim.compiled.compiled`.
        micro_batch: Rows whose graph is in memory at a time; None for all. The update is that of the whole
            batch, to float tolerance, because the draws of a row do not depend on other rows.
        rho: The distance of sharpness-aware minimization; 0 for plain descent. A second pass takes the
            gradient on the same samples, at parameters moved along the first gradient by this Euclidean
            distance over all patches. The info reports the loss of the first pass.
        ranks: The processes that step together. Each gives its own rows of the batch, with the `draw` of the
            whole batch. Each gets the state and info of the whole batch, to float tolerance; see
            `fpatch.runtime.parallel`.
        processes: The number of ranks to emulate in one process, bit for bit, for a replay.
        local_statistics: Accept that a network takes statistics over a part of the batch, a micro-batch or
            the rows of a process. The step then differs from that of the whole batch. Buffers pass from one
            micro-batch to the next, and are averaged over processes.

    Raises:
        ValueError: For a setting out of its range, or statistics over a part of the batch without
            `local_statistics`. On a CPU the step raises it (`fpatch.optim.finite.NotFiniteError`) for a loss
            term or a gradient that is not finite, with the row and its sample. On a GPU it does not wait for
            them; `find_bad_row` does.

    References:
        Foret et al. (2021), Sharpness-aware minimization, equations 2 (with p = 2) and 3.

    Example:
        >>> import torch, fpatch
        >>> tv = fpatch.losses.total_variation()
        >>> p = fpatch.pipeline({"patch": fpatch.create.pixels({"a": (3, 4, 4)}), "tv": tv})
        >>> objective = fpatch.Objective(p, {"total_variation": 1.0})
        >>> optimizer = fpatch.make_optimizer(fpatch.Optimizer(), num_steps=10)
        >>> state = fpatch.make_state(objective, optimizer, fpatch.random.key(0))
        >>> batch = {"image_id": torch.tensor([4, 9]), "draw": torch.tensor([0, 1])}
        >>> state, info = fpatch.make_step(objective, optimizer)(state, batch)
        >>> state.step, info.terms["total_variation"].shape
        (1, torch.Size([2]))
    """
    check_objective(objective)
    check_optimizer(optimizer)
    if micro_batch is not None:
        check_number("train.micro_batch", micro_batch, 1)
    check_number("train.rho", rho, 0.0)
    check_statistics(objective.pipeline, local_statistics, bool(micro_batch) or ranks.size * processes > 1)
    gradient = accumulate_gradient(_differentiate(objective, transform, compile), micro_batch)
    gradient = (
        all_reduced_gradient(gradient, ranks) if processes == 1 else sharded_gradient(gradient, processes)
    )
    pipeline = objective.pipeline
    in_parts = bool(micro_batch) or ranks.size > 1 or processes > 1 or not objective.tellers

    def update(state: TrainState, batch: Batch) -> tuple[TrainState, StepInfo]:
        keys = row_keys(random.fold_in(random.fold_in(state.key, "train"), state.step), batch)
        sample = pipeline.sample(keys, batch if state.step else copy_readable(batch))  # checked once on a GPU
        point = {**state.fixed, **lookahead_params(pipeline, optimizer, state)}
        placed = to_device((sample, batch), device_of(point))
        whole = None
        if in_parts:
            counted = objective.counted(point, *placed)
            whole = ranks.join(counted) if counted else {}
            placed = placed[0], {**placed[1], ROW_WEIGHTS: to_weights(counted, whole)}
        grads, loss = gradient(point, *placed)
        if rho:
            grads, _ = gradient(ascend(point, grads, rho), *placed)
        whole = loss.counted if whole is None else whole
        rows = {name: batch[name] for name in ("image_id", "draw")}
        loss = objective.void_uncounted(loss, whole)
        sample, rows = ranks.join((sample, rows))
        return apply_gradient(pipeline, optimizer, state, grads, loss, sample, rows, whole)

    def step(state: TrainState, batch: Batch) -> tuple[TrainState, StepInfo]:
        try:
            after, info = update(state, batch)
        except Exception as error:
            if (found := explain_state(error, state, pipeline, optimizer, batch)) is None:
                raise
            raise ValueError(found) from error
        if is_concrete(info.loss) and (bad := find_bad_row(info)) is not None:
            raise NotFiniteError(f"update {after.step}: {bad}", after, info)
        return after, info

    return step


def _differentiate(
    objective: Objective, transform: Literal["func", "autograd"], compile: bool | str
) -> Gradient:
    """The gradient of an objective, compiled or not."""
    if not compile:
        return value_and_grad(objective, transform, objective.trained)
    made = compiled(objective, "default" if compile is True else compile, transform=transform)
    return value_and_grad(made, transform, objective.trained)


def lookahead_params(
    pipeline: Pipeline, optimizer: GradientTransformation, state: TrainState
) -> dict[str, Tensor]:
    """The parameters at which the optimizer needs the gradient: the current ones, or those ahead."""
    if not isinstance(optimizer, Transformation) or optimizer.look_ahead is None:
        return state.params
    return _project(pipeline, state, optimizer.look_ahead(state.params, state.opt_state))


def _project(pipeline: Pipeline, state: TrainState, params: Params) -> dict[str, Tensor]:
    """Project the trained parameters onto those that every parameterization allows."""
    allowed = pipeline.project({**state.fixed, **params})
    return {name: allowed[name] for name in params}


def apply_gradient(
    pipeline: Pipeline,
    optimizer: GradientTransformation,
    state: TrainState,
    grads: dict[str, Tensor],
    loss: Loss,
    sample: Sample,
    batch: Batch,
    counted: dict[str, Tensor],
) -> tuple[TrainState, StepInfo]:
    """Apply an optimizer's update to the state, and report the step.

    Raises:
        ValueError: If a loss term has not one number per row.
    """
    check_lengths(loss.terms, len(batch["image_id"]))
    more = {"value": loss.value} if isinstance(optimizer, Transformation) else {}
    updates, opt_state = optimizer.update(grads, state.opt_state, params=state.params, inplace=False, **more)
    moved = {name: value + updates[name] for name, value in state.params.items()}
    info = StepInfo(
        loss=loss.value,
        terms=loss.terms,
        grad_norm=global_norm(grads),
        sample=sample,
        batch={"image_id": batch["image_id"], "draw": batch["draw"]},
        counted=counted,
    )
    fixed = {name: loss.buffers.get(name, value) for name, value in state.fixed.items()}
    return TrainState(_project(pipeline, state, moved), opt_state, state.step + 1, state.key, fixed), info
