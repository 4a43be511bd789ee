"""Functions with finite gradients, whose bits do not depend on the position in a tensor."""

import torch
import torch.nn.functional as F
from torch import Tensor


def softplus(x: Tensor) -> Tensor:
    """`log(1 + exp(x))` from logsigmoid; the bits of torch's softplus depend on the position.

    Example:
        >>> import torch
        >>> from fpatch.ops.stable import softplus
        >>> softplus(torch.zeros(1))
        tensor([0.6931])
    """
    return -F.logsigmoid(-x)


def sigmoid(x: Tensor) -> Tensor:
    """`1 / (1 + exp(-x))` from logsigmoid; the bits of torch's sigmoid depend on the position.

    Example:
        >>> import torch
        >>> from fpatch.ops.stable import sigmoid
        >>> sigmoid(torch.zeros(1))
        tensor([0.5000])
    """
    return F.logsigmoid(x).exp()


def root(x: Tensor) -> Tensor:
    """The square root, with gradient 0 at 0, the shortest subgradient of a norm.

    Example:
        >>> import torch
        >>> from fpatch.ops.stable import root
        >>> x = torch.tensor([0.0, 4.0], requires_grad=True)
        >>> root(x).sum().backward()
        >>> x.grad
        tensor([0.0000, 0.2500])
    """
    none = x == 0
    return torch.where(none, 0.0, torch.where(none, 1.0, x).sqrt())


def with_gradient_of(value: Tensor, surrogate: Tensor) -> Tensor:
    """Return the bits of one tensor with the gradient of another: of what has no useful derivative.

    Example:
        >>> import torch
        >>> from fpatch.ops.stable import with_gradient_of
        >>> x = torch.tensor([0.2, 0.7], requires_grad=True)
        >>> rounded = with_gradient_of(x.round(), x)
        >>> rounded.sum().backward()
        >>> rounded.tolist(), x.grad
        ([0.0, 1.0], tensor([1., 1.]))
    """
    return value.detach() + (surrogate - surrogate.detach())
