"""Perturb the spectrum of a patch, so that it does not depend on the frequencies of one victim."""

from dataclasses import dataclass
from typing import TypedDict

from jaxtyping import Int64
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number
from fpatch.core.types import Batch, Params, Values
from fpatch.create._shapes import to_rows
from fpatch.graph.stage import define
from fpatch.ops.color import clip
from fpatch.ops.patches import map_patches
from fpatch.ops.spectrum import dct2, idct2
from fpatch.random import fold_in


@dataclass(frozen=True)
class Spectrum:
    """The transformation T(x) = IDCT(DCT(x + noise) * mask), clamped; the defaults are the authors'.

    The patch gets an axis of rows.

    Attributes:
        std_frac: Standard deviation of the Gaussian noise, as a fraction of full scale.
        rho: The mask is uniform in [1 - rho, 1 + rho], independent for each frequency and channel.
        only: Patches that it acts on; None: all.

    Example:
        >>> import torch
        >>> from fpatch import create, random
        >>> keys = random.split(random.key(0), 2)
        >>> sample = {"noise_key": keys, "mask_key": keys}
        >>> patch = {"hood": torch.full((3, 4, 4), 0.5)}
        >>> out = create.spectrum().apply({}, sample, {"patch": patch})["patch"]["hood"]
        >>> out.shape, bool((out[0] != out[1]).any())  # each row gets its own perturbation
        (torch.Size([2, 3, 4, 4]), True)

    References:
        Long et al. (2022), Frequency Domain Model Augmentation for Adversarial Attack, section 3.3.
    """

    std_frac: float = 16 / 255
    rho: float = 0.5
    only: tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        check_number("spectrum(std_frac)", self.std_frac, 0.0, 1.0)
        check_number("spectrum(rho)", self.rho, 0.0, 1.0)


class SpectrumSample(TypedDict):
    """Keys of the noise and the mask; those of the i-th patch are `fold_in(key, i)`."""

    noise_key: Int64[Tensor, "b 2"]
    mask_key: Int64[Tensor, "b 2"]


def sample(config: Spectrum, keys: Tensor, batch: Batch) -> SpectrumSample:
    return {"noise_key": fold_in(keys, "noise"), "mask_key": fold_in(keys, "mask")}


def apply(config: Spectrum, patch_params: Params, sample: SpectrumSample, values: Values) -> Values:
    order = list(values["patch"])

    def transformed(name: str, patch: Tensor) -> Tensor:
        shape, i = tuple(patch.shape[-3:]), order.index(name)
        noise = random.gaussian_field(fold_in(sample["noise_key"], i), shape) * config.std_frac
        mask = random.uniform(fold_in(sample["mask_key"], i), shape, 1.0 - config.rho, 1.0 + config.rho)
        return clip(idct2(dct2(to_rows(patch, len(noise)) + noise) * mask))

    return {"patch": map_patches("spectrum", values["patch"], config.only, transformed)}


spectrum = define("spectrum", Spectrum, sample, apply, reads=("patch",), writes=("patch",))
