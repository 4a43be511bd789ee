"""Plain autograd inside of any transformation of `torch.func`."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from fpatch.core.tree import flatten_rows


@dataclass
class Inner:
    """A function that is differentiated by plain autograd, and the graph of its last call.

    Operators without `torch.func` support, compiled functions and checkpoints work in it.

    Attributes:
        function: Tensors to tensors.
        differentiable: For each input, whether it gets a gradient.
        of_rows: Whether all inputs are rows [b, ...], which `torch.func.vmap` may then join to one batch.
        pulls_once: Whether one backward pass frees the graph, as that of a compiled function must be.
        graph: The inputs and outputs of the last call.

    Example:
        >>> import torch
        >>> from fpatch.core.inner_autograd import Inner, run_inner
        >>> def loss(x):
        ...     inner = Inner(lambda y: (y.square(),), differentiable=(True,))
        ...     return run_inner(inner, x)[0].sum()
        >>> torch.func.grad(loss)(torch.tensor([1.0, 2.0]))
        tensor([2., 4.])
    """

    function: Callable[..., Sequence[Tensor]]
    differentiable: tuple[bool, ...]
    of_rows: bool = False
    pulls_once: bool = False
    graph: tuple[list[Tensor], Sequence[Tensor]] | None = None


def run_inner(inner: Inner, *inputs: Tensor) -> tuple[Tensor, ...]:
    """Run a function with plain autograd, whatever transformation is outside.

    Raises:
        NotImplementedError: For a second derivative, or `torch.func.vmap` without rows.
    """
    return _Forward.apply(inner, *inputs)  # type: ignore[return-value]


class _Forward(torch.autograd.Function):
    """Run a function on detached inputs with plain autograd, and keep its graph for the backward pass."""

    @staticmethod
    def forward(inner: Inner, *inputs: Tensor) -> Any:
        with torch.enable_grad(), _hooks_allowed():
            pairs = zip(inputs, inner.differentiable, strict=True)
            inside = [x.detach().requires_grad_(moves) for x, moves in pairs]
            outputs = inner.function(*inside)
        inner.graph = (inside, outputs)
        return tuple(o.detach() for o in outputs)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        ctx.inner, ctx.graph = inputs[0], inputs[0].graph
        ctx.save_for_backward(*inputs[1:])
        ctx.mark_non_differentiable(*(o for o in output if not o.is_floating_point()))
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor | None) -> tuple[Tensor | None, ...]:
        inside, outputs = ctx.graph
        pairs = [(o, g) for o, g in zip(outputs, grads, strict=True) if g is not None and o.requires_grad]
        if not pairs:
            return (None, *(None for _ in inside))
        outs, gs = zip(*pairs, strict=True)
        leaves = [x for x in inside if x.requires_grad]
        pulled = _Pullback.apply((ctx.inner, leaves, outs), len(inside), *ctx.saved_tensors, *gs)
        found = iter(pulled)  # type: ignore[arg-type]
        return (None, *(next(found) if x.requires_grad else None for x in inside))

    @staticmethod
    def vmap(info: Any, in_dims: tuple[Any, ...], inner: Inner, *inputs: Tensor) -> Any:
        if not inner.of_rows:
            raise NotImplementedError(
                "torch.func.vmap over a compiled part is not supported; compile the function under vmap"
            )
        run = partial(_Forward.apply, inner)
        outputs = flatten_rows(run, info.batch_size, in_dims[1:], *inputs)
        return outputs, tuple(0 for _ in outputs)


class _Pullback(torch.autograd.Function):
    """Pull the gradients of the outputs back to the inputs, through the plain graph.

    The first tensors are the inputs: a second derivative in them is refused, and not taken for zero.
    """

    @staticmethod
    def forward(
        graph: tuple[Inner, list[Tensor], tuple[Tensor, ...]], num_inputs: int, *tensors: Tensor
    ) -> Any:
        inner, leaves, outputs = graph
        grads = tensors[num_inputs:]
        with _hooks_allowed():
            return torch.autograd.grad(
                outputs,
                leaves,
                grads,
                retain_graph=not inner.pulls_once,
                allow_unused=True,
                materialize_grads=True,
            )

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> Any:
        raise NotImplementedError(
            "second derivatives through a victim, or a compiled part, are not supported"
        )

    @staticmethod
    def vmap(
        info: Any, in_dims: tuple[Any, ...], graph: Any, num_inputs: int, *tensors: Tensor
    ) -> tuple[Any, Any]:
        p, rows, first = info.batch_size, len(graph[1][0]), num_inputs + 2

        def pull(*flat: Tensor) -> tuple[Tensor, ...]:
            if len(flat[0]) == rows:  # the members were rows of the inputs too
                return _Pullback.apply(graph, 0, *flat)  # type: ignore[return-value]
            members = zip(*(g.chunk(p) for g in flat), strict=True)
            found = [_Pullback.apply(graph, 0, *gs) for gs in members]
            return tuple(torch.cat(parts) for parts in zip(*found, strict=True))  # type: ignore[arg-type]

        made = flatten_rows(pull, p, in_dims[first:], *tensors[num_inputs:])
        return made, tuple(0 for _ in made)


@contextmanager
def _hooks_allowed() -> Iterator[None]:
    """Allow hooks on saved tensors, as checkpoints need them; `torch.func` forbids them around it."""
    autograd = torch._C._autograd  # type: ignore[attr-defined]
    message = autograd._saved_tensors_hooks_get_disabled_error_message()
    autograd._saved_tensors_hooks_enable()
    try:
        yield
    finally:
        if message is not None:
            autograd._saved_tensors_hooks_disable(message)
