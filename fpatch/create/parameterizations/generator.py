"""Patches from a frozen generator network, whose latents are trained."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn
from torch.func import functional_call

from fpatch import random
from fpatch.core.resource import Resource, resolve
from fpatch.core.tree import is_concrete
from fpatch.core.types import Params, Sample, Values
from fpatch.create._shapes import check_names, view_patches
from fpatch.graph.stage import define, deterministic
from fpatch.ops.color import clip

ROUNDING = 1e-4


@dataclass(frozen=True)
class Generator:
    """A generator network and the latent shape of each patch; latents start standard normal.

    Attributes:
        model: A module in evaluation mode, latents [b, *shape] -> patches [b, c, h, w] in 0..1; or a
            `Resource` of one. Its parameters are frozen and get no gradient.
        latents: `{name: shape}`; parameters have that shape, or [b, *shape] for one patch per row.

    Example:
        >>> import torch
        >>> from fpatch import create
        >>> class Gray(torch.nn.Module):
        ...     def forward(self, latents):
        ...         return latents.sigmoid().view(-1, 1, 1, 1).expand(-1, 3, 8, 8)
        >>> stage = create.generator(Gray().eval(), latents={"hood": (1,)})
        >>> patch = stage.apply({"hood": torch.zeros(1)}, {}, {})["patch"]["hood"]
        >>> patch.shape, patch.unique()
        (torch.Size([3, 8, 8]), tensor([0.5000]))
    """

    model: Resource | nn.Module
    latents: Mapping[str, tuple[int, ...]]

    def __post_init__(self) -> None:
        check_names("generator(latents)", self.latents, "{'hood': (128,)}")
        for name, shape in self.latents.items():
            if not shape or min(shape) < 1:
                raise ValueError(f"generator(latents): {name!r} must be a shape, e.g. (128,), got {shape}")

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the patches."""
        return tuple(self.latents)


def init(config: Generator, key: Tensor) -> dict[str, Tensor]:
    return {
        name: random.gaussian_field(random.fold_in(key, name), tuple(shape))
        for name, shape in config.latents.items()
    }


def apply(config: Generator, patch_params: Params, sample: Sample, values: Values) -> Values:
    model = _check_model(resolve(config.model))
    frozen = {name: parameter.detach() for name, parameter in model.named_parameters()}

    def generated(name: str) -> Tensor:
        latent = patch_params[name]
        has_rows = latent.ndim > len(config.latents[name])
        made = functional_call(model, frozen, (latent if has_rows else latent[None],))
        patch = _check_patch(name, made, len(latent) if has_rows else 1)
        return patch if has_rows else patch[0]

    return {"patch": {name: generated(name) for name in config.names}}


def _check_model(model: Any) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise ValueError(f"generator: the model must be a torch.nn.Module, got {type(model).__name__}")
    training = next((name or "the model" for name, m in model.named_modules() if m.training), None)
    if training is not None:
        raise ValueError(
            f"generator: {training!r} is in training mode, where dropout and batch statistics change the "
            "patch; call model.eval() first"
        )
    return model


def _check_patch(name: str, patch: Any, num_rows: int) -> Tensor:
    if not isinstance(patch, Tensor) or patch.ndim != 4 or len(patch) != num_rows:
        what = list(patch.shape) if isinstance(patch, Tensor) else type(patch).__name__
        raise ValueError(f"generator: the model must return [{num_rows}, c, h, w] for {name!r}, got {what}")
    if is_concrete(patch):
        low, high = (float(v) for v in patch.detach().aminmax())
        if not -ROUNDING <= low <= high <= 1 + ROUNDING:
            raise ValueError(
                f"generator: the patch {name!r} must be within 0..1, got {low:.3g}..{high:.3g}; if the model "
                "ends in a tanh, wrap it to give (x + 1) / 2"
            )
    return clip(patch)


def show(config: Generator, values: Values, control_values: Values) -> Values:
    return view_patches(values["patch"])


def describe(config: Generator) -> str:
    latents = ", ".join(
        f"{name} from {' x '.join(map(str, shape))} numbers" for name, shape in config.latents.items()
    )
    return f"patches by a generator network: {latents}"


generator = define(
    "generator",
    Generator,
    deterministic,
    apply,
    reads=(),
    writes=("patch",),
    init=init,
    show=show,
    describe=describe,
)
