"""Matrix products whose bits do not depend on the batch.

In a linear algebra library the order of a sum may depend on the number of matrices and their memory address.
"""

from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor


def multiply_rows(*factors: Float[Tensor, "b *_ _ _"]) -> Float[Tensor, "b *_ _ _"]:
    """Multiply the matrices of each row from left to right.

    The CPU multiplies one row at a time, from aligned copies. A GPU multiplies all rows at once, because a
    launch per row would cost more than the product.

    Args:
        *factors: Matrices, whose axes before the last two broadcast as for `@`.

    Example:
        >>> import torch
        >>> from fpatch.ops.products import multiply_rows
        >>> multiply_rows(2 * torch.eye(2)[None], torch.ones(1, 2, 1))
        tensor([[[2.],
                 [2.]]])
    """
    if factors[0].device.type != "cpu":
        return reduce(torch.matmul, factors)
    rows = zip(*(factor.split(1) for factor in factors), strict=True)
    return torch.cat([reduce(torch.matmul, [factor.clone() for factor in row]) for row in rows])
