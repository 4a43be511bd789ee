"""The gradient of an objective: of one batch, of micro-batches, of shards and of all processes."""

from collections.abc import Callable, Sequence
from typing import Literal

import optree
import torch
from torch import Tensor

from fpatch.core.tree import take_rows
from fpatch.core.types import Batch, Params, Sample
from fpatch.optim.objective import Loss, Objective
from fpatch.runtime.parallel import Ranks

Gradient = Callable[[Params, Sample, Batch], tuple[dict[str, Tensor], Loss]]
"""`(params, sample, batch) -> (gradients, Loss)`, both detached from the graph."""

NOT_DIFFERENTIABLE = (
    "objective: no weighted term depends on the patch, or on what else is trained; `fpatch doctor` finds the "
    "cause"
)


def value_and_grad(
    objective: Callable[[Params, Sample, Batch], Loss],
    transform: Literal["func", "autograd"] = "autograd",
    wrt: Sequence[str] | None = None,
) -> Gradient:
    """Differentiate an objective in the parameters.

    Args:
        objective: `(params, sample, batch) -> Loss`.
        transform: "autograd", or "func", `torch.func.grad_and_value`, over which `torch.func.vmap` may run.
            Bits are the same. "func" keeps the graph of the backward, and takes longer.
        wrt: The names of the parameters that get a gradient. None: those that an `Objective` trains, or all
            but whole numbers, such as the counts of networks.

    Returns:
        `(params, sample, batch) -> (gradients, Loss)`, both detached from the graph.

    Raises:
        ValueError: On a call, if no weighted term depends on these parameters.

    Example:
        >>> import torch, fpatch
        >>> from fpatch.optim.objective import Loss
        >>> def objective(patch_params, sample, batch):
        ...     return Loss(patch_params["a"].square().sum(), {})
        >>> grads, loss = fpatch.value_and_grad(objective)({"a": torch.tensor([1.0, 2.0])}, {}, {})
        >>> grads["a"], loss.value
        (tensor([2., 4.]), tensor(5.))
    """
    if wrt is None and isinstance(objective, Objective):
        wrt = objective.trained

    def is_trained(name: str, value: Tensor) -> bool:
        return value.is_floating_point() if wrt is None else name in wrt

    if transform == "func":

        def by_func(params: Params, sample: Sample, batch: Batch) -> tuple[dict[str, Tensor], Loss]:
            trained = {name: value for name, value in params.items() if is_trained(name, value)}

            def function(moved: Params) -> tuple[Tensor, tuple[dict[str, Tensor], ...]]:
                value, *aux = objective({**params, **moved}, sample, batch)
                if not torch.compiler.is_compiling() and not value.requires_grad:
                    raise ValueError(NOT_DIFFERENTIABLE)
                return value, tuple(aux)

            grads, (value, aux) = torch.func.grad_and_value(function, has_aux=True)(trained)
            return grads, Loss(value, *aux)

        return by_func

    def by_autograd(params: Params, sample: Sample, batch: Batch) -> tuple[dict[str, Tensor], Loss]:
        leaves = {n: v.detach().requires_grad_() if is_trained(n, v) else v for n, v in params.items()}
        loss = objective(leaves, sample, batch)
        if not loss.value.requires_grad:
            raise ValueError(NOT_DIFFERENTIABLE)
        trained = [name for name, leaf in leaves.items() if is_trained(name, leaf)]
        found = torch.autograd.grad(loss.value, [leaves[name] for name in trained], allow_unused=True)
        grads = {
            name: torch.zeros_like(leaves[name]) if grad is None else grad
            for name, grad in zip(trained, found, strict=True)
        }
        terms = {name: term.detach() for name, term in loss.terms.items()}
        return grads, loss._replace(value=loss.value.detach(), terms=terms)

    return by_autograd


def accumulate_gradient(gradient: Gradient, micro_batch: int | None) -> Gradient:
    """Compute the gradient and loss from `micro_batch` rows at a time; None: from all at once.

    Buffers of networks pass from one part to the next.
    """
    if micro_batch is None:
        return gradient

    def whole(params: Params, sample: Sample, batch: Batch) -> tuple[dict[str, Tensor], Loss]:
        rows = len(batch["image_id"])
        results: list[tuple[dict[str, Tensor], Loss]] = []
        for part in (slice(start, start + micro_batch) for start in range(0, rows, micro_batch)):
            results.append(gradient(params, take_rows(sample, part), take_rows(batch, part)))
            params = {**params, **results[-1][1].buffers}
        grads, loss = combine(results)
        return grads, loss._replace(buffers=results[-1][1].buffers)

    return whole


def sharded_gradient(gradient: Gradient, processes: int) -> Gradient:
    """Emulate `processes` ranks of `all_reduced_gradient` in one process, bit for bit."""

    def whole(params: Params, sample: Sample, batch: Batch) -> tuple[dict[str, Tensor], Loss]:
        parts = [Ranks(rank, processes).rows(len(batch["image_id"])) for rank in range(processes)]
        return combine([gradient(params, take_rows(sample, part), take_rows(batch, part)) for part in parts])

    return whole


def all_reduced_gradient(gradient: Gradient, ranks: Ranks) -> Gradient:
    """Reduce gradient and loss over all processes, each of which holds its own rows."""
    if ranks.size == 1:
        return gradient

    def whole(params: Params, sample: Sample, batch: Batch) -> tuple[dict[str, Tensor], Loss]:
        grads, loss = gradient(params, sample, batch)
        terms = ranks.gather(loss.terms)
        tensors = (grads, loss.value, loss.buffers)
        sums = ranks.gather(optree.tree_map(lambda x: x[None], tensors))  # type: ignore[arg-type]
        parts = zip([take_rows(part, 0) for part in sums], terms, strict=True)
        return combine([(own, Loss(value, each, buffers=buffers)) for (own, value, buffers), each in parts])

    return whole


def combine(parts: Sequence[tuple[dict[str, Tensor], Loss]]) -> tuple[dict[str, Tensor], Loss]:
    """Combine gradients and losses of parts of the rows, weighted by their rows and summed in order.

    Buffers of networks are averaged likewise; those that count, which are no floats, are of the first part.
    """
    counts = [len(next(iter(loss.terms.values()))) for _, loss in parts]
    shares = [count / sum(counts) for count in counts]
    results = [(share, *part) for share, part in zip(shares, parts, strict=True)]
    zero = torch.zeros(())
    grads = {
        name: sum((share * some[name] for share, some, _ in results), zero.to(first.dtype))
        for name, first in parts[0][0].items()
    }
    value = sum((share * loss.value for share, _, loss in results), zero)
    terms = {name: torch.cat([loss.terms[name] for _, loss in parts]) for name in parts[0][1].terms}
    counted = {name: torch.cat([loss.counted[name] for _, loss in parts]) for name in parts[0][1].counted}
    states = [(share, loss.buffers) for share, _, loss in results]
    buffers = {
        name: sum((share * own[name] for share, own in states), zero.to(first.dtype))
        if first.is_floating_point()
        else first
        for name, first in states[0][1].items()
    }
    return grads, Loss(value, terms, counted, buffers)


def global_norm(grads: Params) -> Tensor:
    """The Euclidean norm over all tensors together."""
    return torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()


def ascend(params: Params, grads: Params, distance: float) -> dict[str, Tensor]:
    """Move parameters by a Euclidean distance along their gradient; a zero gradient moves nothing."""
    length = global_norm(grads)
    scale = distance / torch.where(length > 0, length, 1.0)
    return {**params, **{name: params[name] + scale.to(grad.dtype) * grad for name, grad in grads.items()}}
