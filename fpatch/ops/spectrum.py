"""The discrete cosine transform of images, which has no seam between opposite sides.

It continues an image by its mirror, so no false edge joins opposite sides, as in a Fourier transform. Index k
of n is the frequency k / n of half a cycle per pixel, the highest frequency of a pixel grid.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch.ops.products import multiply_rows


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
