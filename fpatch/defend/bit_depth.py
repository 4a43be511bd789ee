"""Keep a few bits per color channel, which removes faint differences."""

from dataclasses import dataclass

from torch import Tensor

from fpatch.core.checks import check_count
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic
from fpatch.ops.color import each_channel
from fpatch.ops.stable import with_gradient_of


@dataclass(frozen=True)
class BitDepth:
    """The bits that are kept of each channel, 1 to 8.

    Example:
        >>> import torch
        >>> from fpatch import defend
        >>> image = torch.tensor([0.1, 0.3, 0.6]).view(1, 3, 1, 1)
        >>> defend.bit_depth(1).apply({}, {}, {"image": image})["image"].flatten().tolist()
        [0.0, 0.0, 1.0]
    """

    num_bits: int = 3

    def __post_init__(self) -> None:
        check_count("bit_depth(num_bits)", self.num_bits, 1, 8)


def apply(config: BitDepth, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Multiply by 2^i - 1, round to integers, and scale back.

    References:
        Xu, Evans and Qi (2018), Feature squeezing: detecting adversarial examples in deep neural networks,
        NDSS, section III-A.
        Athalye, Carlini and Wagner (2018), Obfuscated gradients give a false sense of security, ICML,
        section 4.1: the straight-through gradient.
    """
    levels = 2**config.num_bits - 1

    def squeeze(x: Tensor) -> Tensor:
        return with_gradient_of((x * levels).round() / levels, x)

    return {"image": each_channel(squeeze, values["image"])}


bit_depth = define(
    "bit_depth",
    BitDepth,
    deterministic,
    apply,
    reads=("image",),
    writes=("image",),
    pixelwise=True,
    surrogate="straight-through",
)
