"""One loss from those of several victims."""

from dataclasses import dataclass
from typing import Any, Literal

import torch

from fpatch.core.checks import check_choice, check_number
from fpatch.core.tree import constant
from fpatch.core.types import Params, Sample, Values
from fpatch.graph.stage import define, deterministic


@dataclass(frozen=True)
class Ensemble:
    """Whose losses, and how they are joined.

    Attributes:
        terms: Names of the terms, one per victim.
        how: "mean", or "worst": the largest, the loss of the victim that is least fooled, row by row.
        weights: Of the terms, at least 0; None: 1 each. The mean is divided by their sum.

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
            raise ValueError(f"ensemble(terms) must be different names, at least one, got {self.terms}")
        check_choice("ensemble(how)", self.how, ("mean", "worst"))
        if self.weights is None:
            return
        if len(self.weights) != len(self.terms):
            raise ValueError(
                f"ensemble(weights): there are {len(self.terms)} terms, but {len(self.weights)} weights"
            )
        for weight in self.weights:
            check_number("ensemble(weights)", weight, 0.0)
        if not any(self.weights):
            raise ValueError("ensemble(weights): one of them must be above 0")


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
