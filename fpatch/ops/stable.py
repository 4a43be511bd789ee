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
