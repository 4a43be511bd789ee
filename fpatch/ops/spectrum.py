"""The discrete cosine transform of images: frequencies without the seam of a Fourier transform.

A cosine transform continues an image by its mirror, so that no false edge joins opposite sides. Index k of n
stands for k / n of the highest frequency that pixels can hold, half a cycle per pixel.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor


def dct2(image: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    """Orthonormal DCT-II along the last two axes.

    References:
        Ahmed, Natarajan and Rao (1974), Discrete cosine transform, IEEE Transactions on Computers C-23.
    """
    rows, columns = (_cosines(n, image) for n in image.shape[-2:])
    return _product(rows, image, columns.T)


def idct2(spectrum: Float[Tensor, "*batch h w"]) -> Float[Tensor, "*batch h w"]:
    """The inverse of `dct2`."""
    rows, columns = (_cosines(n, spectrum) for n in spectrum.shape[-2:])
    return _product(rows.T, spectrum, columns)


def gaussian_response(height: int, width: int, cutoff_frac: float) -> Float[Tensor, "h w"]:
    """Gain of a Gaussian low-pass filter at every frequency of `dct2`: 1 at zero, 1/2 at the cutoff.

    Args:
        height: In pixels.
        width: In pixels.
        cutoff_frac: Radial frequency, as a fraction of half a cycle per pixel.
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
    """`left @ image @ right` in one product per image: a joint one may sum otherwise with their number."""
    images = image.reshape(-1, *image.shape[-2:])
    half = torch.bmm(left.expand(len(images), -1, -1), images)
    return torch.bmm(half, right.expand(len(images), -1, -1)).reshape(image.shape)
