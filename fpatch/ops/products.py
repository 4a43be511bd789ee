"""Products of matrices that have the same bits in any batch.

A library of linear algebra may sum otherwise with the number of matrices, and with their place in memory.
"""

from functools import reduce

import torch
from jaxtyping import Float
from torch import Tensor


def multiply_rows(*factors: Float[Tensor, "b *_ _ _"]) -> Float[Tensor, "b *_ _ _"]:
    """The product of each row's matrices, from left to right.

    On the CPU each row is multiplied alone, from copies at an aligned place. On a GPU all are at once, where
    a launch per row costs more than the product.

    Args:
        *factors: Their axes but the last two broadcast, as for `@`.
    """
    if factors[0].device.type != "cpu":
        return reduce(torch.matmul, factors)
    rows = zip(*(factor.split(1) for factor in factors), strict=True)
    return torch.cat([reduce(torch.matmul, [factor.clone() for factor in row]) for row in rows])
