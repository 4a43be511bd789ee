"""Any two-dimensional augmentation of kornia, by name.

Each row is drawn alone, by kornia itself, in a fork of torch's generator that is seeded from the row's key.
What it drew is the sample, under kornia's names, and goes back in as `params=`. What is as large as the image
(a field of noise) is drawn again from the logged seed. Rows are applied one by one: kornia shares some
parameters among the rows of a batch, and last bits of its kernels depend on the size of one.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Int64
from torch import Tensor

from fpatch import random
from fpatch.core.checks import nearest
from fpatch.core.types import Batch, Params, Values
from fpatch.graph.stage import define
from fpatch.ops.color import clip
from fpatch.ops.geometry import LABELS, from_whole_centers, move_labels
from fpatch.random import fold_in

REFUSED = {
    **dict.fromkeys(
        ("PatchMix", "RandomCutMixV2", "RandomMixUpV2", "RandomMosaic", "RandomTransplantation"),
        "it mixes rows, and rows must not see each other",
    ),
    "RandomJigsaw": "it shuffles tiles, which no quad or box can follow",
    **dict.fromkeys(
        ("Normalize", "Denormalize"),
        "its result is no picture within 0..1; normalize in the victim",
    ),
    "RandomDissolving": "it needs a diffusion model, which it downloads, and draws while it is applied",
}
"""Augmentations that cannot be stages, and why."""

UNTRACKED = ("RandomElasticTransform", "RandomFisheye", "RandomThinPlateSpline")
"""They bend the image, without a homography that quads and boxes could follow."""

NOT_DIFFERENTIABLE = ("RandomClahe", "RandomEqualize", "RandomPosterize")
"""No gradient comes through them; through `RandomClahe` it does with `slow_and_differentiable=True`."""

LARGE = (
    *("coordinates_factor", "gaussian_noise", "gradient", "mask_pepper", "mask_salt", "noise", "plasma"),
    *("batch_prob", "forward_input_shape"),
)
"""Parameters that are not logged: drawn again from the seed, or known otherwise."""


@dataclass(frozen=True)
class Augmentation:
    """Which one.

    Attributes:
        name: A class of `kornia.augmentation`.
        arguments: Its keyword arguments, `p` among them; lists stand for tuples and tensors.
        size: Height and width of the images; None: those of `scene` (or `image`) in the batch, which a
            pipeline is asked for when it draws.

    Example:
        >>> import torch
        >>> from fpatch import compose, random
        >>> image = torch.full((2, 3, 8, 8), 0.25)
        >>> batch = {"image": image, "image_id": torch.tensor([0, 1]), "draw": torch.tensor([0, 0])}
        >>> stage = compose.augmentation("RandomInvert", {"p": 1.0})
        >>> out, sample = stage({}, random.key(0), batch)
        >>> sample["on"].tolist(), out["image"].unique().tolist()
        ([True, True], [0.75])
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        object.__setattr__(self, "arguments", {name: _frozen(v) for name, v in self.arguments.items()})
        _make(self)


class AugmentationSample(TypedDict):
    """Per row, and beside these whatever kornia draws for it.

    `on` says whether it is applied, `size_px` the height and width that were drawn for.
    """

    on: Bool[Tensor, " b"]
    seed: Int64[Tensor, " b"]
    size_px: Int64[Tensor, "b 2"]


def sample(config: Augmentation, keys: Tensor, batch: Batch) -> AugmentationSample:
    module, chance = _make(config)
    size = _find_size(config, batch)
    seeds = random.bits(fold_in(keys, "parameters"))
    drawn = [_draw(module, seed, size) for seed in seeds.tolist()]
    logged = {name: torch.stack([_log(params[name]) for params in drawn]) for name in _logged(drawn[0])}
    return {  # type: ignore[return-value]
        "on": random.bernoulli(fold_in(keys, "on"), chance),
        "seed": seeds,
        "size_px": torch.tensor([size] * len(keys), device=keys.device),
        **{name: value.to(keys.device) for name, value in logged.items()},
    }


def apply(config: Augmentation, patch_params: Params, sample: AugmentationSample, values: Values) -> Values:
    if torch.compiler.is_compiling():  # not as a decorator, which would import the compiler: a second
        return torch.compiler.disable(_apply)(config, sample, values)  # type: ignore[reportCallIssue]
    return _apply(config, sample, values)


def _apply(config: Augmentation, sample: AugmentationSample, values: Values) -> Values:
    name = "scene" if _is_geometric(config.name) else "image"
    images, size = values[name], tuple(values[name].shape[-2:])
    wrong = [drawn for drawn in map(tuple, sample["size_px"].tolist()) if drawn != size]
    if wrong:
        raise ValueError(
            f"augmentation({config.name!r}) was drawn for images of {wrong[0]} (height, width), but {name!r} "
            f"has {size}; draw again, with size={size} where the batch holds none of that size"
        )
    module, _ = _make(config)
    moved, matrices = [], []
    for row, seed in enumerate(sample["seed"].tolist()):
        params = _draw(module, seed, size)
        for held in _logged(params):
            params[held] = sample[held][row].to(params[held]).reshape(params[held].shape)
        params["batch_prob"] = sample["on"][row : row + 1].to(params["batch_prob"])
        moved.append(module(images[row : row + 1].cpu(), params=params))  # where kornia keeps what it draws
        matrices.append(getattr(module, "transform_matrix", None))
    if len({part.shape for part in moved}) > 1:
        raise ValueError(
            f"augmentation({config.name!r}) changes the size of some rows only; give the size {size} or p=1"
        )
    image = clip(torch.cat(moved)).to(images.device)
    if name == "image" or config.name in UNTRACKED:
        return {name: image}
    matrix = from_whole_centers(torch.cat(matrices)).to(image)
    return {name: image, **move_labels(values, matrix, (image.shape[-2], image.shape[-1]), sample["on"])}


def declare(config: Augmentation) -> dict[str, Any]:
    """What is drawn, read and moved depends on the augmentation."""
    module, _ = _make(config)
    is_geometric = _is_geometric(config.name)
    size = config.size or ((2048, 2048) if is_geometric and config.name not in UNTRACKED else (64, 64))
    declared = {
        "fields": (*AugmentationSample.__annotations__, *_logged(_draw(module, 0, size))),
        "gradient": config.name not in NOT_DIFFERENTIABLE
        or bool(config.arguments.get("slow_and_differentiable")),
    }
    if is_geometric:
        labels = () if config.name in UNTRACKED else LABELS
        declared |= {"reads": ("scene",), "optional": labels, "writes": ("scene", *labels), "geometric": True}
    return declared


def _make(config: Augmentation) -> tuple[Any, float]:
    """The module, made to heed `batch_prob`, and the probability that it is applied to a row."""
    kind, arguments, where = _find(config.name), config.arguments, f"augmentation({config.name!r})"
    if arguments.get("same_on_batch"):
        raise ValueError(f"{where}: same_on_batch=True would tie rows together; leave it out")
    if config.name == "RandomResizedCrop" and not arguments.get("align_corners", True):
        raise ValueError(
            f"{where}: align_corners=False moves pixels elsewhere than its matrix says; use True"
        )
    hints = {name: p.annotation for name, p in inspect.signature(kind).parameters.items()}
    if unknown := [name for name in arguments if name not in hints]:
        raise ValueError(f"{where}: kornia's has no argument {unknown[0]!r}; {nearest(unknown[0], hints)}")
    given = {n: torch.tensor(v) if hints.get(n) is Tensor else v for n, v in arguments.items()}
    try:
        module = kind(**given)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(f"{where}: {error}") from error
    chance = module.p * module.p_batch
    module.p, module.p_batch = 0.5, 1.0  # kornia overlooks `batch_prob` where both are 1
    return module, chance


def _find(name: str) -> type:
    """The class of kornia that a name stands for."""
    from kornia import augmentation as kornia

    if name in REFUSED:
        raise ValueError(f"augmentation({name!r}) is refused: {REFUSED[name]}")
    named = {n: getattr(kornia, n) for n in kornia.__all__ if "Base" not in n and n not in REFUSED}
    base = kornia.AugmentationBase2D
    known = {n: kind for n, kind in named.items() if isinstance(kind, type) and issubclass(kind, base)}
    if name not in known:
        raise ValueError(f"augmentation({name!r}): kornia has no such thing in 2-D; {nearest(name, known)}")
    return known[name]


def _is_geometric(name: str) -> bool:
    from kornia.augmentation import GeometricAugmentationBase2D

    return name in UNTRACKED or issubclass(_find(name), GeometricAugmentationBase2D)


def _find_size(config: Augmentation, batch: Batch) -> tuple[int, int]:
    """Height and width of the images to draw for."""
    if config.size is not None:
        return config.size
    names = ("scene",) if _is_geometric(config.name) else ("image", "scene")
    found = next((batch[name] for name in names if name in batch), None)
    if found is None:
        raise ValueError(
            f"augmentation({config.name!r}) draws for the size of the image, and the batch holds no "
            f"{' and no '.join(map(repr, names))}; give size=(height, width)"
        )
    return found.shape[-2], found.shape[-1]


def _draw(module: Any, seed: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """What kornia draws for one image; torch's generator is put back."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # kornia draws from no other
        return module.forward_parameters(torch.Size((1, 3, *size)))


def _logged(params: dict[str, Tensor]) -> list[str]:
    return [name for name in params if name not in LARGE]


def _log(value: Tensor) -> Tensor:
    """One row of a parameter, in a type that a sample holds."""
    row = value[0] if value.shape[:1] == (1,) else value
    return row if row.dtype == torch.bool else row.float() if row.is_floating_point() else row.long()


def _frozen(value: Any) -> Any:
    """Lists, as a config file has them, as tuples."""
    return tuple(map(_frozen, value)) if isinstance(value, (list, tuple)) else value


augmentation = define(
    "augmentation",
    Augmentation,
    sample,
    apply,  # type: ignore[arg-type]
    reads=("image",),
    optional=("scene",),
    writes=("image",),
    declare=declare,
    vmap=False,
    compile=False,
)
