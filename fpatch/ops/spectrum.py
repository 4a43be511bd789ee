"""The discrete cosine transform of images, which has no seam between opposite sides.

It continues an image by its mirror, so no false edge joins opposite sides, as in a Fourier transform. Index k
of n is the frequency k / n of half a cycle per pixel, the highest frequency of a pixel grid.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch.core.tree import constant
from fpatch.ops.products import multiply_rows

BLOCK_PX = 8
"""The side of the blocks of JPEG."""

_DCT = tuple(
    tuple(
        (math.sqrt(0.125) if u == 0 else 0.5) * math.cos((2 * x + 1) * u * math.pi / 16)
        for x in range(BLOCK_PX)
    )
    for u in range(BLOCK_PX)
)
"""The DCT matrix [frequency, position] of a block, ITU-T T.81 (1992), section A.3.3."""


def dct2(image: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    """Orthonormal DCT-II along the last two axes.

    References:
        Ahmed, Natarajan and Rao (1974), Discrete cosine transform, IEEE Transactions on Computers C-23.

    Example:
        >>> import torch
        >>> from fpatch.ops.spectrum import dct2
        >>> [[round(abs(x), 4) for x in row] for row in dct2(torch.ones(2, 2)).tolist()]
        [[2.0, 0.0], [0.0, 0.0]]
    """
    rows, columns = (_cosines(n, image) for n in image.shape[-2:])
    return _product(rows, image, columns.T)


def idct2(spectrum: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    """The inverse of `dct2`.

    Example:
        >>> import torch
        >>> from fpatch.ops.spectrum import dct2, idct2
        >>> idct2(dct2(torch.eye(3))).allclose(torch.eye(3), atol=1e-6)
        True
    """
    rows, columns = (_cosines(n, spectrum) for n in spectrum.shape[-2:])
    return _product(rows.T, spectrum, columns)


def gaussian_response(height: int, width: int, cutoff_frac: float) -> Float[Tensor, "h w"]:
    """The gain of a Gaussian low-pass filter at every frequency of `dct2`: 1 at zero, 1/2 at the cutoff.

    Args:
        height: The height of the image, in pixels.
        width: The width of the image, in pixels.
        cutoff_frac: The radial cutoff frequency, as a fraction of half a cycle per pixel.

    Example:
        >>> from fpatch.ops.spectrum import gaussian_response
        >>> gain = gaussian_response(4, 4, cutoff_frac=0.5)
        >>> gain[0, 0].item(), gain[0, 2].item()
        (1.0, 0.5)
    """
    y, x = (torch.arange(n, dtype=torch.float64) / n for n in (height, width))
    return torch.exp(-math.log(2) * (y[:, None] ** 2 + x**2) / cutoff_frac**2).float()


def pad_to_blocks(image: Float[Tensor, "*batch h w"], side_px: int = BLOCK_PX) -> Float[Tensor, "*batch y x"]:
    """Repeat the last row and column until the sides are whole blocks.

    Example:
        >>> import torch
        >>> from fpatch.ops.spectrum import pad_to_blocks
        >>> pad_to_blocks(torch.ones(3, 9, 16)).shape
        torch.Size([3, 16, 16])
    """
    for axis in (-2, -1):
        size = image.shape[axis]
        index = torch.arange(size + -size % side_px, device=image.device).clamp(max=size - 1)
        image = image.index_select(axis, index)
    return image


def block_dct(plane: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch y v x u"]:
    """Orthonormal DCT-II of every block of 8 x 8 pixels; sums in fixed order keep a row's bits.

    Args:
        plane: Images of whole blocks.

    Returns:
        Rows y and columns x of blocks, each with its vertical frequency v and its horizontal one u.

    Example:
        >>> import torch
        >>> from fpatch.ops.spectrum import block_dct
        >>> frequencies = block_dct(torch.ones(16, 8))
        >>> frequencies.shape, round(frequencies[1, 0, 0, 0].item(), 4)
        (torch.Size([2, 8, 1, 8]), 8.0)
    """
    blocks = plane.unflatten(-1, (-1, BLOCK_PX)).unflatten(-3, (-1, BLOCK_PX))
    forward = constant(_DCT, plane)
    return _transform(_transform(blocks, forward, -1), forward, -3)


def block_idct(frequencies: Float[Tensor, "*batch y v x u"]) -> Float[Tensor, "*batch h w"]:
    """The inverse of `block_dct`.

    Example:
        >>> import torch
        >>> from fpatch.ops.spectrum import block_dct, block_idct
        >>> block_idct(block_dct(torch.eye(8))).allclose(torch.eye(8), atol=1e-6)
        True
    """
    backward = constant(_DCT, frequencies).T
    return _transform(_transform(frequencies, backward, -3), backward, -1).flatten(-4, -3).flatten(-2, -1)


def _transform(blocks: Tensor, matrix: Float[Tensor, "8 8"], axis: int) -> Tensor:
    """Multiply an axis of 8 by a matrix; a sum in fixed order keeps a row's bits in any batch."""
    columns = matrix.T if axis == -1 else matrix.T[:, :, None, None]
    return sum(part * column for part, column in zip(blocks.split(1, dim=axis), columns, strict=True))  # type: ignore[return-value]


def _cosines(n: int, like: Tensor) -> Float[Tensor, "n n"]:
    """The matrix of the transform: row k is the cosine of k half periods."""
    index = torch.arange(n, dtype=torch.float64)
    matrix = torch.cos(math.pi / n * (index + 0.5) * index[:, None]) * math.sqrt(2 / n)
    matrix[0] = math.sqrt(1 / n)
    return matrix.to(like, non_blocking=True)


def _product(left: Tensor, image: Tensor, right: Tensor) -> Tensor:
    """`left @ image @ right`."""
    images = image.reshape(-1, *image.shape[-2:])
    left, right = (m.expand(len(images), -1, -1) for m in (left, right))
    return multiply_rows(left, images, right).reshape(image.shape)
