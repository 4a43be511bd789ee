"""Patches as Fourier coefficients, so that a step of the optimizer moves all frequencies alike."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.core.types import Params, Sample, Values
from fpatch.create._shapes import Shapes, check_names, check_shapes, describe_shapes, view_patches
from fpatch.graph.stage import define, deterministic


@dataclass(frozen=True)
class Fourier:
    """Fourier coefficients by patch, each divided by frequency ** decay.

    Parameters are real and imaginary parts, [2, c, h, w // 2 + 1], or [b, 2, ...] for one patch per row. The
    patch is the logistic function of the inverse transform (`norm="ortho"`). Lucid also divides the transform
    by 4 and can decorrelate colors.

    Attributes:
        shapes: `{name: (c, h, w)}`.
        decay: 1 gives the spectrum of natural images, 0 equal weight to all frequencies.
        std: Standard deviation of the initial coefficients, before the division; 0 gives a gray patch.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> params = {"hood": torch.zeros(2, 1, 2, 2)}
        >>> params["hood"][0, 0, 0, 1] = 4.0  # one cycle along x
        >>> patch = create.fourier({"hood": (1, 2, 2)}).apply(params, {}, {})["patch"]["hood"]
        >>> [[round(x, 3) for x in row] for row in patch[0].tolist()]
        [[0.982, 0.018], [0.982, 0.018]]

    References:
        Olah, Mordvintsev and Schubert (2017), Feature visualization, section on preconditioning; Lucid,
        lucid/optvis/param/spatial.py, `fft_image`.
    """

    shapes: Shapes
    decay: float = 1.0
    std: float = 0.01

    def __post_init__(self) -> None:
        check_number("fourier(decay)", self.decay, 0.0, 10.0)
        check_number("fourier(std)", self.std, 0.0, 10.0)
        check_names("fourier(shapes)", self.shapes, "{'hood': (3, 64, 64)}")
        check_shapes("fourier", self.shapes)

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the patches."""
        return tuple(self.shapes)


def init(config: Fourier, key: Tensor) -> dict[str, Tensor]:
    return {
        name: random.gaussian_field(random.fold_in(key, name), (2, c, h, w // 2 + 1)) * config.std
        for name, (c, h, w) in config.shapes.items()
    }


def apply(config: Fourier, patch_params: Params, sample: Sample, values: Values) -> Values:
    def patch(name: str, height: int, width: int) -> Tensor:
        given = patch_params[name]
        scaled = given / _frequencies(height, width, config.decay).to(given, non_blocking=True)
        real, imaginary = scaled.unbind(-4)
        image = torch.fft.irfft2(torch.complex(real, imaginary), s=(height, width), norm="ortho")
        return (torch.tanh(image / 2) + 1) / 2  # the logistic function, with the same bits everywhere

    return {"patch": {name: patch(name, h, w) for name, (_, h, w) in config.shapes.items()}}


def _frequencies(height: int, width: int, decay: float) -> Float[Tensor, "h m"]:
    """Return each frequency, in cycles per pixel and at least 1 / longer side, to the power `decay`."""
    y, x = torch.fft.fftfreq(height, dtype=torch.float64), torch.fft.rfftfreq(width, dtype=torch.float64)
    frequency = (y[:, None].square() + x.square()).sqrt().clamp(min=1 / max(height, width))
    return torch.exp(decay * torch.log(frequency)).float()


def show(config: Fourier, values: Values, control_values: Values) -> Values:
    return view_patches(values["patch"])


def describe(config: Fourier) -> str:
    return f"patches as Fourier coefficients: {describe_shapes(config.shapes)}"


fourier = define(
    "fourier",
    Fourier,
    deterministic,
    apply,
    reads=(),
    writes=("patch",),
    init=init,
    show=show,
    describe=describe,
)
