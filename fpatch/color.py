"""Color arithmetic written out elementwise, so that a pixel has the same bits at any place in a tensor."""

import math

import torch
from jaxtyping import Float
from torch import Tensor

LN2 = math.log(2.0)
LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in luma, Rec. ITU-R BT.601-7, section 2.5.1."""


def luma(image: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 1 h w"]:
    """Brightness of each pixel."""
    red, green, blue = image.split(1, dim=-3)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def mix_channels(image: Float[Tensor, "b 3 h w"], matrix: Float[Tensor, "b 3 3"]) -> Float[Tensor, "b 3 h w"]:
    """A 3x3 matrix per row on the color of every pixel."""
    channels, m = image.unbind(1), matrix[..., None, None]
    mixed = [m[:, i, 0] * channels[0] + m[:, i, 1] * channels[1] + m[:, i, 2] * channels[2] for i in range(3)]
    return torch.stack(mixed, dim=1)


def hue_rotation(degrees: Float[Tensor, " b"]) -> Float[Tensor, "b 3 3"]:
    """Rotation of chroma at constant luma, in the YIQ space of NTSC: linear, and smooth at gray.

    References:
        Haeberli (1993), Matrix operations for image processing, section on hue rotation.
    """
    to_yiq = torch.tensor(
        [[0.299, 0.587, 0.114], [0.595716, -0.274453, -0.321263], [0.211456, -0.522591, 0.311135]],
        dtype=torch.float64,
        device=degrees.device,
    )
    # double: float32 sin and cos have other last bits in the vectorized part of a tensor than in its tail
    angle = torch.deg2rad(degrees.double())
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=-1).unflatten(-1, (3, 3))
    left, right = torch.linalg.inv(to_yiq), to_yiq
    # written as sums: a matrix product may reorder them with the number of rows
    half = sum(left[:, j, None] * turn[:, j, None, :] for j in range(3))
    return sum(half[..., j, None] * right[j] for j in range(3)).float()  # type: ignore[union-attr]
