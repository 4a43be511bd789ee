"""The losses of several victims joined into one."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from fpatch.core.checks import check_choice, check_number
from fpatch.core.tree import constant
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic


@dataclass(frozen=True)
class Ensemble:
    """Settings of `losses.ensemble`: the terms, and the way to join them.

    The stage writes `ensemble` [b].

    Attributes:
        terms: Names of the terms, one per victim.
        how: "mean", or "worst": the largest term of each row, of the victim that is fooled least.
        weights: One per term, at least 0; None: 1 each. The mean is divided by their sum.

    Example:
        >>> import torch
        >>> from fpatch import losses
        >>> values = {"small/vanish": torch.tensor([1.0, 4.0]), "large/vanish": torch.tensor([3.0, 2.0])}
        >>> losses.ensemble(("small/vanish", "large/vanish")).apply({}, {}, values)["ensemble"]
        tensor([2., 3.])
        >>> losses.ensemble(("small/vanish", "large/vanish"), how="worst").apply({}, {}, values)["ensemble"]
        tensor([3., 4.])

    Raises:
        ValueError: If a term is named twice, or a weight is missing, negative, or every weight is 0.

    References:
        Liu et al. (2017), Delving into Transferable Adversarial Examples and Black-box Attacks (several
        victims, weighted). Wang et al. (2021), Adversarial Attack Generation Empowered by Min-Max
        Optimization (the worst of them).
    """

    terms: tuple[str, ...]
    how: Literal["mean", "worst"] = "mean"
    weights: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if not self.terms or len(set(self.terms)) < len(self.terms):
            raise ValueError(f"ensemble(terms) must hold one name at least, and none twice, got {self.terms}")
        check_choice("ensemble(how)", self.how, ("mean", "worst"))
        if self.weights is None:
            return
        if len(self.weights) != len(self.terms):
            raise ValueError(
                f"ensemble(weights) must hold one number per term, {len(self.terms)}, got {len(self.weights)}"
            )
        for weight in self.weights:
            check_number("ensemble(weights)", weight, 0.0)
        if not any(self.weights):
            raise ValueError(f"ensemble(weights) must hold a number above 0, got {self.weights}")


def apply(config: Ensemble, patch_params: Params, sample: Sample, values: Values) -> Values:
    terms = torch.stack([values[name] for name in config.terms], dim=-1)
    weights = constant(config.weights or (1.0,) * len(config.terms), terms)
    weighted = terms * weights
    joined = weighted.amax(-1) if config.how == "worst" else weighted.sum(-1) / weights.sum()
    return {"ensemble": joined}


def declare(config: Ensemble) -> dict[str, Any]:
    return {"reads": config.terms}


ensemble = define(
    "ensemble", Ensemble, deterministic, apply, reads=(), writes=("ensemble",), role="loss", declare=declare
)
