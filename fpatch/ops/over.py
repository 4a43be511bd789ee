"""The operator "over" for placements in regions of an image, with its backward.

References:
    Porter and Duff (1984), Compositing digital images, the operator "over".
"""

from typing import Any

import torch
from torch import Tensor

from fpatch.core.tree import flatten_rows


def composite(scene: Tensor, color: Tensor, alpha: Tensor, index: Tensor) -> Tensor:
    """Draw k regions over a scene in index order: `scene * (1 - alpha) + color`.

    Args:
        scene: [b, 3, h*w].
        color: Premultiplied color, [b, k, 3, n].
        alpha: [b, k, 1, n]; it has no gradient.
        index: The pixel of the scene under each point, [b, k, n] into h*w.

    Returns:
        The image [b, 3, h*w], with first derivatives in the scene and the color.

    Example:
        >>> import torch
        >>> from fpatch.ops.over import composite
        >>> color, alpha = torch.full((1, 1, 3, 1), 0.25), torch.full((1, 1, 1, 1), 0.5)
        >>> composite(torch.ones(1, 3, 2), color, alpha, torch.tensor([[[1]]]))[0, 0]
        tensor([1.0000, 0.7500])
    """
    image: Any = _Over.apply(scene, color, alpha, index)
    return image


class _Over(torch.autograd.Function):
    """The scene under k regions, in index order; the backward attenuates in the opposite order.

    Shapes: scene [b, 3, h*w], color [b, k, 3, n], alpha [b, k, 1, n], index [b, k, n] into h*w.
    """

    @staticmethod
    def forward(scene: Tensor, color: Tensor, alpha: Tensor, index: Tensor) -> Tensor:
        image = scene.clone()
        for j in range(index.shape[1]):
            where = index[:, j, None].expand(-1, 3, -1)
            below, a = image.gather(2, where), alpha[:, j]
            # a pixel outside the patch keeps its bits, even under a patch of NaN
            image.scatter_(2, where, torch.where(a == 0, below, below * (1 - a) + color[:, j]))
        return image

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[2:])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        below, color = _Under.apply(*grads, *ctx.saved_tensors)  # type: ignore[misc]
        return below if ctx.needs_input_grad[0] else None, color, None, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        return flatten_rows(_Over.apply, info.batch_size, in_dims, *inputs), 0


class _Under(torch.autograd.Function):
    """The gradients of `_Over` in the scene and in the colors.

    Shapes: grad [b, 3, h*w], alpha [b, k, 1, n], index [b, k, n].
    """

    @staticmethod
    def forward(grad: Tensor, alpha: Tensor, index: Tensor) -> tuple[Tensor, Tensor]:
        grad, colors = grad.clone(), []
        for j in reversed(range(index.shape[1])):
            where = index[:, j, None].expand(-1, 3, -1)
            above, a = grad.gather(2, where), alpha[:, j]
            colors.append(torch.where(a == 0, torch.zeros_like(above), above))
            grad.scatter_(2, where, torch.where(a == 0, above, above * (1 - a)))
        return grad, torch.stack(colors[::-1], dim=1)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, ...], output: tuple[Tensor, Tensor]) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> Any:
        raise NotImplementedError("an implant has first derivatives only; a second derivative is undefined")

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Any, tuple[int, int]]:
        return flatten_rows(_Under.apply, info.batch_size, in_dims, *inputs), (0, 0)
