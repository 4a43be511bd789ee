"""Elementwise color arithmetic: the bits of a pixel do not depend on its position in a tensor."""

import math
from collections.abc import Callable
from typing import Any, TypeAlias

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch.core.tree import constant, flatten_rows

LN2 = math.log(2.0)
LUMA = (0.299, 0.587, 0.114)
"""The weights of red, green and blue in luma; Rec. ITU-R BT.601-7, section 2.5.1."""

Channels: TypeAlias = tuple[Tensor, ...]
"""The channels of an image, [b, 1, h, w] each, between the pixelwise stages of a compiled step."""


def clip(x: Tensor, low: float = 0.0, high: float = 1.0) -> Tensor:
    """Clamp to [low, high], with gradient 1 at the bounds too; NaN stays NaN.

    `torch.clamp` has gradient 0 at the bounds: a pixel projected onto black or white would never leave it.

    Example:
        >>> import torch
        >>> from fpatch.ops.color import clip
        >>> x = torch.tensor([-0.5, 0.0, 1.0, 2.0], requires_grad=True)
        >>> clip(x).sum().backward()
        >>> clip(x).tolist(), x.grad
        ([0.0, 0.0, 1.0, 1.0], tensor([0., 1., 1., 0.]))
    """
    return _Clip.apply(x, low, high)  # type: ignore[return-value]


class _Clip(torch.autograd.Function):
    """`clip`, with one pass over memory forward and one backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(x: Tensor, low: float, high: float) -> Tensor:
        return x.clamp(low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, float, float], output: Tensor) -> None:
        x, low, high = inputs
        # the gradient of hardtanh is 0 at its bounds, so the bounds lie a little outside
        kind = torch.finfo(x.dtype)
        ctx.bounds = low - max(abs(low) * kind.eps, kind.tiny), high + max(abs(high) * kind.eps, kind.tiny)
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None]:
        return _Unclip.apply(grads[0], ctx.saved_tensors[0], *ctx.bounds), None, None


class _Unclip(torch.autograd.Function):
    """The gradient where x is within the bounds, and 0 elsewhere; it is its own backward."""

    generate_vmap_rule = True

    @staticmethod
    def forward(grad: Tensor, x: Tensor, low: float, high: float) -> Tensor:
        return torch.ops.aten.hardtanh_backward(grad, x, low, high)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, float, float], output: Tensor) -> None:
        ctx.bounds = inputs[2:]
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _Unclip.apply(grads[0], ctx.saved_tensors[0], *ctx.bounds), None, None, None


def luma(image: Float[Tensor, "*batch 3 h w"]) -> Float[Tensor, "*batch 1 h w"]:
    """The luma of each pixel, the weighted sum of its channels.

    Example:
        >>> import torch
        >>> from fpatch.ops.color import luma
        >>> luma(torch.tensor([0.0, 1.0, 0.0]).view(3, 1, 1))
        tensor([[[0.5870]]])
    """
    red, green, blue = image.split(1, dim=-3)
    return LUMA[0] * red + LUMA[1] * green + LUMA[2] * blue


def each_channel(function: Callable[..., Tensor], *images: Tensor | Channels) -> Any:
    """Apply an elementwise function to whole images, or to each channel if the first image is in channels.

    Args:
        function: `(x, ...) -> y`, of one tensor per image.
        *images: [b, 3, h, w], or [b, 3, 1, 1] for one number per channel, or channels.

    Returns:
        An image in the form of the first one.

    Example:
        >>> import torch
        >>> from fpatch.ops.color import each_channel
        >>> each_channel(torch.mul, (torch.ones(1, 1, 1, 1),) * 3, torch.full((1, 3, 1, 1), 0.5))[0]
        tensor([[[[0.5000]]]])
    """
    if isinstance(images[0], Tensor):
        return function(*images)
    split = (x.split(1, dim=1) if isinstance(x, Tensor) else x for x in images)
    return tuple(map(function, *split))


def mix_channels(image: Tensor | Channels, matrix: Float[Tensor, "b 3 3"]) -> Any:
    """Multiply the color of every pixel by a 3x3 matrix per row; differentiable in the image only.

    Returns:
        An image in the form of `image`, whole or in channels.

    Example:
        >>> import torch
        >>> from fpatch.ops.color import mix_channels
        >>> swap = torch.tensor([[[0.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 0.0, 0.0]]])
        >>> mix_channels(torch.tensor([0.1, 0.2, 0.3]).view(1, 3, 1, 1), swap).flatten()
        tensor([0.3000, 0.2000, 0.1000])
    """
    matrix = matrix.detach()
    if isinstance(image, Tensor):
        return _MixChannels.apply(image, matrix)
    rows = matrix[..., None, None, None].unbind(1)
    return tuple(sum(channel * m for channel, m in zip(image, row.unbind(1), strict=True)) for row in rows)


class _MixChannels(torch.autograd.Function):
    """`mix_channels`, one input channel at a time; the backward uses the transposed matrix."""

    @staticmethod
    def forward(image: Tensor, matrix: Tensor) -> Tensor:
        columns = matrix[..., None, None].unbind(2)
        first, *rest = (channel * m for channel, m in zip(image.split(1, dim=1), columns, strict=True))
        return first.add_(rest[0]).add_(rest[1])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[1])

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _MixChannels.apply(grads[0], ctx.saved_tensors[0].mT), None  # type: ignore[return-value]

    @staticmethod
    def vmap(info: Any, in_dims: tuple[int | None, ...], *inputs: Tensor) -> tuple[Tensor, int]:
        return flatten_rows(_MixChannels.apply, info.batch_size, in_dims, *inputs), 0


def saturation_matrix(factor: Float[Tensor, " b"]) -> Float[Tensor, "b 3 3"]:
    """The matrix that scales the distance of a color from the gray of its luma.

    Example:
        >>> import torch
        >>> from fpatch.ops.color import saturation_matrix
        >>> saturation_matrix(torch.tensor([0.0]))[0, 0]
        tensor([0.2990, 0.5870, 0.1140])
    """
    factor = factor[:, None, None]
    return factor * torch.eye(3, device=factor.device) + (1.0 - factor) * constant(LUMA, factor)


TO_YIQ = (LUMA, (0.595716, -0.274453, -0.321263), (0.211456, -0.522591, 0.311135))
"""The matrix from red, green and blue to luma and the two chroma axes of NTSC."""

FROM_YIQ = (
    (1.0000000000000002, 0.9562957197589482, 0.6210244164652613),
    (1.0, -0.2721220993185104, -0.6473805968256952),
    (1.0000000000000002, -1.1069890167364906, 1.7046149983646484),
)
"""The inverse of `TO_YIQ`, written out: a library's last bits depend on the processor."""


def hue_rotation(degrees: Float[Tensor, " b"]) -> Float[Tensor, "b 3 3"]:
    """The matrix that rotates chroma at constant luma, in the YIQ space of NTSC.

    The rotation is linear, and smooth at gray.

    References:
        Haeberli (1993), Matrix operations for image processing, section on hue rotation.

    Example:
        >>> import torch
        >>> from fpatch.ops.color import hue_rotation
        >>> gray = torch.full((3,), 0.5)
        >>> (hue_rotation(torch.tensor([90.0]))[0] @ gray).allclose(gray)
        True
    """
    # double: the last bits of float32 sin and cos differ between the vectorized part of a tensor and its tail
    angle = torch.deg2rad(degrees.double())
    cos, sin, zero, one = angle.cos(), angle.sin(), torch.zeros_like(angle), torch.ones_like(angle)
    turn = torch.stack([one, zero, zero, zero, cos, -sin, zero, sin, cos], dim=-1).unflatten(-1, (3, 3))
    left, right = constant(FROM_YIQ, angle), constant(TO_YIQ, angle)
    # written as sums: the order of a matrix product may depend on the number of rows
    half = sum(left[:, j, None] * turn[:, j, None, :] for j in range(3))
    return sum(half[..., j, None] * right[j] for j in range(3)).float()  # type: ignore[union-attr]


LUMINANCE = (0.2126, 0.7152, 0.0722)
"""The weights of linear red, green and blue in luminance; IEC 61966-2-1."""


def srgb_to_linear(image: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert stored sRGB values to linear light, both 0..1.

    References:
        IEC 61966-2-1 (1999), section 5.2.

    Example:
        >>> import torch
        >>> from fpatch.ops.color import srgb_to_linear
        >>> [round(x, 4) for x in srgb_to_linear(torch.tensor([0.0, 0.5, 1.0])).tolist()]
        [0.0, 0.214, 1.0]
    """
    # by logarithm, since the bits of a power depend on the position in the tensor
    curve = (2.4 * ((image.clamp(min=0.04) + 0.055) / 1.055).log()).exp()
    return torch.where(image <= 0.04045, image / 12.92, curve)


def linear_to_srgb(light: Float[Tensor, "*shape"]) -> Float[Tensor, "*shape"]:
    """Convert linear light to stored sRGB values: the inverse of `srgb_to_linear`.

    References:
        IEC 61966-2-1 (1999), section 5.2.

    Example:
        >>> import torch
        >>> from fpatch.ops.color import linear_to_srgb
        >>> [round(x, 4) for x in linear_to_srgb(torch.tensor([0.0, 0.214, 1.0])).tolist()]
        [0.0, 0.5, 1.0]
    """
    curve = 1.055 * (light.clamp(min=0.003).log() / 2.4).exp() - 0.055
    return torch.where(light <= 0.0031308, light * 12.92, curve)


def blackbody(kelvin: Float[Tensor, " b"]) -> Float[Tensor, "b 3"]:
    """The linear sRGB color of a black body at luminance 1, for 1667 to 25000 K; never negative.

    References:
        Kim et al. (2002), Design of advanced color temperature control system for HDTV applications, Journal
        of the Korean Physical Society 41(6), 865-871: the Planckian locus as cubic splines.
        IEC 61966-2-1 (1999), section 5.3: XYZ to linear sRGB.

    Example:
        >>> import torch
        >>> from fpatch.ops.color import blackbody
        >>> red, green, blue = blackbody(torch.tensor([2000.0]))[0].tolist()
        >>> red > green > blue
        True
    """
    t = kelvin.double()
    inverse = 1e3 / t
    warm = ((-0.2661239 * inverse - 0.2343589) * inverse + 0.8776956) * inverse + 0.179910
    cool = ((-3.0258469 * inverse + 2.1070379) * inverse + 0.2226347) * inverse + 0.240390
    x = torch.where(t <= 4000, warm, cool)
    red = ((-1.1063814 * x - 1.34811020) * x + 2.18555832) * x - 0.20219683
    white = ((-0.9549476 * x - 1.37418593) * x + 2.09137015) * x - 0.16748867
    blue = ((3.0817580 * x - 5.87338670) * x + 3.75112997) * x - 0.37001483
    y = torch.where(t <= 2222, red, torch.where(t <= 4000, white, blue))
    xyz = x / y, torch.ones_like(y), (1 - x - y) / y
    to_rgb = (3.2406, -1.5372, -0.4986), (-0.9689, 1.8758, 0.0415), (0.0557, -0.2040, 1.0570)
    rgb = [sum(weight * value for weight, value in zip(row, xyz, strict=True)) for row in to_rgb]
    return torch.stack(rgb, dim=-1).clamp(min=0.0).float()  # type: ignore[arg-type]
