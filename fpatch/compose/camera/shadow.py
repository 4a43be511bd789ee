"""A shadow with a soft edge over one side of the image."""

from dataclasses import dataclass
from typing import TypedDict

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_number, check_range
from fpatch.core.types import Batch, Params, Range, Values
from fpatch.graph.stage import define
from fpatch.random import fold_in


@dataclass(frozen=True)
class Shadow:
    """The half plane that is darkened.

    Attributes:
        strength: Range of the darkening, as a fraction of the displayed values.
        angle_deg: Range of the direction from the center to the shadow: 0 is right, 90 is below.
        offset_frac: Range of the distance of its edge from the center, as a fraction of the shorter side.
        softness_frac: Range of the width of the edge, as a fraction of the shorter side.
        p: Probability that a row is shaded.

    Example:
        >>> import torch
        >>> from fpatch import compose, random
        >>> image = torch.full((1, 3, 4, 4), 0.5)
        >>> batch = {"image": image, "image_id": torch.tensor([0]), "draw": torch.tensor([0])}
        >>> out, sample = compose.shadow(p=1.0)({}, random.key(0), batch)
        >>> sorted(sample), bool((out["image"] <= 0.5).all())
        (['angle_deg', 'offset_frac', 'on', 'softness_frac', 'strength'], True)
    """

    strength: Range = Range(0.2, 0.6)
    angle_deg: Range = Range(-180.0, 180.0)
    offset_frac: Range = Range(-0.3, 0.3)
    softness_frac: Range = Range(0.02, 0.3)
    p: float = 0.5

    def __post_init__(self) -> None:
        check_range("shadow(strength)", self.strength, 0.0, 1.0)
        check_range("shadow(angle_deg)", self.angle_deg, -360.0, 360.0)
        check_range("shadow(offset_frac)", self.offset_frac, -2.0, 2.0)
        check_range("shadow(softness_frac)", self.softness_frac, 1e-3, 4.0)
        check_number("shadow(p)", self.p, 0.0, 1.0)


class ShadowSample(TypedDict):
    """Values per row; `on` marks the shaded rows."""

    on: Bool[Tensor, " b"]
    strength: Float[Tensor, " b"]
    angle_deg: Float[Tensor, " b"]
    offset_frac: Float[Tensor, " b"]
    softness_frac: Float[Tensor, " b"]


def sample(config: Shadow, keys: Tensor, batch: Batch) -> ShadowSample:
    return {
        "on": random.bernoulli(fold_in(keys, "on"), config.p),
        "strength": random.uniform(fold_in(keys, "strength"), (), *config.strength),
        "angle_deg": random.uniform(fold_in(keys, "angle_deg"), (), *config.angle_deg),
        "offset_frac": random.uniform(fold_in(keys, "offset_frac"), (), *config.offset_frac),
        "softness_frac": random.uniform(fold_in(keys, "softness_frac"), (), *config.softness_frac),
    }


def apply(config: Shadow, patch_params: Params, sample: ShadowSample, values: Values) -> Values:
    """Darken by a smoothstep, 3 t^2 - 2 t^3 (Ebert et al., 2003, Texturing and Modeling, chapter 2)."""
    image = values["image"]
    h, w = image.shape[-2:]
    # double: float32 sin and cos have other last bits in the vectorized part of a tensor than in its tail
    angle = torch.deg2rad(sample["angle_deg"].double())
    cos, sin = (f.float()[:, None, None, None] for f in (angle.cos(), angle.sin()))
    x = torch.arange(w, device=image.device) + 0.5 - w / 2
    y = (torch.arange(h, device=image.device) + 0.5 - h / 2)[:, None]
    strength, offset, softness, on = (
        sample[name][:, None, None, None] for name in ("strength", "offset_frac", "softness_frac", "on")
    )
    distance = (x * cos + y * sin) / min(h, w) - offset
    t = (distance / softness + 0.5).clamp(0.0, 1.0)
    return {"image": torch.where(on, image * (1 - strength * (t * t * (3 - 2 * t))), image)}


shadow = define("shadow", Shadow, sample, apply, reads=("image",), writes=("image",))
