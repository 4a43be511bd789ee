"""The gradient of an objective: of one batch, of micro-batches, of shards and of all processes."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from fpatch.core.tree import take_rows
from fpatch.core.types import Batch, Params, Sample
from fpatch.optim.objective import Loss
from fpatch.runtime.parallel import Ranks

Gradient = Callable[[Params, Sample, Batch], tuple[dict[str, Tensor], Loss]]
"""`(patch_params, sample, batch) -> (gradients, Loss)`, both detached from the graph."""

NOT_DIFFERENTIABLE = "objective: no weighted term depends on the patch; `fpatch doctor` finds the cause"


def value_and_grad(
    objective: Callable[[Params, Sample, Batch], Loss], transform: Literal["func", "autograd"] = "autograd"
) -> Gradient:
    """Differentiate an objective in the patch parameters.

    Args:
        objective: `(patch_params, sample, batch) -> Loss`.
        transform: "autograd" is faster in eager mode on a CPU. "func", `torch.func.grad`, is for vmap and
            compilation; it keeps the graph of the backward, and takes up to twice as long.

    Returns:
        `(patch_params, sample, batch) -> (gradients, Loss)`, both detached from the graph.

    Raises:
        ValueError: On a call with "autograd", if no weighted term depends on the patch.

    Example:
        >>> import torch, fpatch
        >>> from fpatch.optim.objective import Loss
        >>> def objective(patch_params, sample, batch):
        ...     return Loss(patch_params["a"].square().sum(), {})
        >>> grads, loss = fpatch.value_and_grad(objective)({"a": torch.tensor([1.0, 2.0])}, {}, {})
        >>> grads["a"], loss.value
        (tensor([2., 4.]), tensor(5.))
    """
    if transform == "func":
        wrapped = torch.func.grad_and_value(_with_aux(objective), has_aux=True)

        def by_func(patch_params: Params, sample: Sample, batch: Batch) -> tuple[dict[str, Tensor], Loss]:
            grads, (value, (terms, counted)) = wrapped(dict(patch_params), sample, batch)
            return grads, Loss(value, terms, counted)

        return by_func

    def by_autograd(patch_params: Params, sample: Sample, batch: Batch) -> tuple[dict[str, Tensor], Loss]:
        leaves = {name: value.detach().requires_grad_() for name, value in patch_params.items()}
        loss = objective(leaves, sample, batch)
        if not loss.value.requires_grad:
            raise ValueError(NOT_DIFFERENTIABLE)
        found = torch.autograd.grad(loss.value, list(leaves.values()), allow_unused=True)
        grads = {
            name: torch.zeros_like(leaf) if grad is None else grad
            for (name, leaf), grad in zip(leaves.items(), found, strict=True)
        }
        terms = {name: term.detach() for name, term in loss.terms.items()}
        return grads, Loss(loss.value.detach(), terms, loss.counted)

    return by_autograd


def _with_aux(
    objective: Callable[[Params, Sample, Batch], Loss],
) -> Callable[[Params, Sample, Batch], tuple[Tensor, tuple[dict[str, Tensor], dict[str, Tensor]]]]:
    """The objective in the form of `torch.func.grad_and_value(has_aux=True)`."""

    def function(patch_params: Params, sample: Sample, batch: Batch) -> tuple[Tensor, Any]:
        loss = objective(patch_params, sample, batch)
        return loss.value, (loss.terms, loss.counted)

    return function


def accumulate_gradient(gradient: Gradient, micro_batch: int | None) -> Gradient:
    """Compute the gradient and loss from `micro_batch` rows at a time; None: from all at once."""

    def whole(params: Params, sample: Sample, batch: Batch) -> tuple[dict[str, Tensor], Loss]:
        rows = len(batch["image_id"])
        size = micro_batch or rows
        parts = [slice(start, start + size) for start in range(0, rows, size)]
        return combine([gradient(params, take_rows(sample, part), take_rows(batch, part)) for part in parts])

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
        sums = ranks.gather(({name: grad[None] for name, grad in grads.items()}, loss.value[None]))
        return combine([(take_rows(g, 0), Loss(v[0], t)) for (g, v), t in zip(sums, terms, strict=True)])

    return whole


def combine(parts: Sequence[tuple[dict[str, Tensor], Loss]]) -> tuple[dict[str, Tensor], Loss]:
    """Combine gradients and losses of parts of the rows, weighted by their rows and summed in order."""
    counts = [len(next(iter(loss.terms.values()))) for _, loss in parts]
    shares = [count / sum(counts) for count in counts]
    results = [(share, *part) for share, part in zip(shares, parts, strict=True)]
    zero = torch.zeros(())
    grads = {name: sum((share * some[name] for share, some, _ in results), zero) for name in parts[0][0]}
    value = sum((share * loss.value for share, _, loss in results), zero)
    terms = {name: torch.cat([loss.terms[name] for _, loss in parts]) for name in parts[0][1].terms}
    counted = {name: torch.cat([loss.counted[name] for _, loss in parts]) for name in parts[0][1].counted}
    return grads, Loss(value, terms, counted)


def global_norm(grads: Params) -> Tensor:
    """The Euclidean norm over all tensors together."""
    return torch.stack([g.square().sum() for g in grads.values()]).sum().sqrt()


def ascend(params: Params, grads: Params, distance: float) -> dict[str, Tensor]:
    """Move parameters by a Euclidean distance along their gradient; a zero gradient moves nothing."""
    length = global_norm(grads)
    scale = distance / torch.where(length > 0, length, 1.0)
    return {name: value + scale * grads[name] for name, value in params.items()}
