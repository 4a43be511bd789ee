"""Any two-dimensional augmentation of kornia, by name.

Kornia draws each row alone, in a fork of torch's generator that is seeded from the row's key. Its parameters
are the sample, under kornia's names, and return to it as `params=`. Parameters as large as the image, such as
a field of noise, are drawn again from the logged seed. Rows are applied one by one: kornia shares some
parameters among the rows of a batch, and the last bits of its kernels depend on the size of a batch.
"""

import inspect
from dataclasses import dataclass, field
from typing import Any, TypedDict

import torch
from jaxtyping import Bool, Int64
from torch import Tensor, nn

from fpatch import random
from fpatch.compose._kornia_object import read_arguments
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
        "its result leaves 0..1; normalize in the victim",
    ),
    "RandomDissolving": "it needs a diffusion model, which it downloads, and draws while it is applied",
}
"""Augmentations that cannot be stages, and the reasons."""

UNTRACKED = ("RandomElasticTransform", "RandomFisheye", "RandomThinPlateSpline")
"""Augmentations that bend the image without a homography for quads and boxes."""

NOT_DIFFERENTIABLE = ("RandomClahe", "RandomEqualize", "RandomPosterize")
"""Augmentations without a gradient; `RandomClahe` has one with `slow_and_differentiable=True`."""

LARGE = (
    *("coordinates_factor", "gaussian_noise", "gradient", "mask_pepper", "mask_salt", "noise", "plasma"),
    *("batch_prob", "forward_input_shape"),
)
"""Parameters that are not logged: they are drawn again from the seed, or follow from the sample."""


@dataclass(frozen=True)
class Augmentation:
    """The name and arguments of an augmentation of kornia.

    Attributes:
        name: A class of `kornia.augmentation`; or an object of one, which gives its name and arguments.
        arguments: Its keyword arguments, `p` among them; lists stand for tuples and tensors.
        size: Height and width of the images; None for those of `scene` or `image` in the batch, which
            `Pipeline.sample` then needs.

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

    name: str | nn.Module
    arguments: dict[str, Any] = field(default_factory=dict)
    size: tuple[int, int] | None = None

    @property
    def kind(self) -> str:
        """The name of the class."""
        return str(self.name)

    def __post_init__(self) -> None:
        if not isinstance(self.name, str):
            name, arguments = read_arguments(self.name)
            if self.arguments:
                raise ValueError(f"augmentation: this {name} has its arguments; leave out others")
            object.__setattr__(self, "name", name)
            object.__setattr__(self, "arguments", arguments)
        object.__setattr__(self, "arguments", {name: _frozen(v) for name, v in self.arguments.items()})
        _make(self)


class AugmentationSample(TypedDict):
    """Values per row, beside the parameters that kornia draws.

    `on` marks the rows that are changed; `size_px` holds the height and width of the draw.
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
    name = "scene" if _is_geometric(config.kind) else "image"
    images, size = values[name], tuple(values[name].shape[-2:])
    wrong = [drawn for drawn in map(tuple, sample["size_px"].tolist()) if drawn != size]
    if wrong:
        raise ValueError(
            f"augmentation({config.kind!r}) was drawn for images of {wrong[0]} (height, width), but {name!r} "
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
            f"augmentation({config.kind!r}) changes the size of some rows only; give the size {size} or p=1"
        )
    image = clip(torch.cat(moved)).to(images.device)
    if name == "image" or config.kind in UNTRACKED:
        return {name: image}
    matrix = from_whole_centers(torch.cat(matrices)).to(image)
    return {name: image, **move_labels(values, matrix, (image.shape[-2], image.shape[-1]), sample["on"])}


def declare(config: Augmentation) -> dict[str, Any]:
    """Declare the fields, reads and writes of the chosen augmentation."""
    module, _ = _make(config)
    is_geometric = _is_geometric(config.kind)
    size = config.size or ((2048, 2048) if is_geometric and config.kind not in UNTRACKED else (64, 64))
    declared = {
        "fields": (*AugmentationSample.__annotations__, *_logged(_draw(module, 0, size))),
        "gradient": config.kind not in NOT_DIFFERENTIABLE
        or bool(config.arguments.get("slow_and_differentiable")),
    }
    if is_geometric:
        labels = () if config.kind in UNTRACKED else LABELS
        declared |= {"reads": ("scene",), "optional": labels, "writes": ("scene", *labels), "geometric": True}
    return declared


def _make(config: Augmentation) -> tuple[Any, float]:
    """Make the module, which then obeys `batch_prob`, and return it with its probability for a row."""
    kind, arguments, where = _find(config.kind), config.arguments, f"augmentation({config.kind!r})"
    if arguments.get("same_on_batch"):
        raise ValueError(f"{where}: same_on_batch=True would tie rows together; leave it out")
    if config.kind == "RandomResizedCrop" and not arguments.get("align_corners", True):
        raise ValueError(
            f"{where}: align_corners=False moves pixels elsewhere than its matrix says; use True"
        )
    hints = {name: p.annotation for name, p in inspect.signature(kind).parameters.items()}
    if unknown := [name for name in arguments if name not in hints]:
        raise ValueError(f"{where}: there is no argument {unknown[0]!r}; {nearest(unknown[0], hints)}")
    given = {n: torch.tensor(v) if hints.get(n) is Tensor else v for n, v in arguments.items()}
    try:
        module = kind(**given)
    except (TypeError, ValueError, AssertionError, RuntimeError) as error:
        raise ValueError(f"{where}: {error}") from error
    chance = module.p * module.p_batch
    module.p, module.p_batch = 0.5, 1.0  # kornia overlooks `batch_prob` where both are 1
    return module, chance


def _find(name: str) -> type:
    """Return the class of kornia with this name."""
    from kornia import augmentation as kornia

    if name in REFUSED:
        raise ValueError(f"augmentation({name!r}) is refused: {REFUSED[name]}")
    named = {n: getattr(kornia, n) for n in kornia.__all__ if "Base" not in n and n not in REFUSED}
    base = kornia.AugmentationBase2D
    known = {n: kind for n, kind in named.items() if isinstance(kind, type) and issubclass(kind, base)}
    if name not in known:
        raise ValueError(
            f"augmentation({name!r}): kornia has none of this name in 2-D; {nearest(name, known)}"
        )
    return known[name]


def _is_geometric(name: str) -> bool:
    from kornia.augmentation import GeometricAugmentationBase2D

    return name in UNTRACKED or issubclass(_find(name), GeometricAugmentationBase2D)


def _find_size(config: Augmentation, batch: Batch) -> tuple[int, int]:
    """Return the height and width of the images, for the draw."""
    if config.size is not None:
        return config.size
    names = ("scene",) if _is_geometric(config.kind) else ("image", "scene")
    found = next((batch[name] for name in names if name in batch), None)
    if found is None:
        raise ValueError(
            f"augmentation({config.kind!r}) draws for the size of the image, and the batch holds no "
            f"{' and no '.join(map(repr, names))}; give size=(height, width)"
        )
    return found.shape[-2], found.shape[-1]


def _draw(module: Any, seed: int, size: tuple[int, int]) -> dict[str, Tensor]:
    """Draw kornia's parameters for one image; torch's generator keeps its state."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # kornia draws from no other
        return module.forward_parameters(torch.Size((1, 3, *size)))


def _logged(params: dict[str, Tensor]) -> list[str]:
    return [name for name in params if name not in LARGE]


def _log(value: Tensor) -> Tensor:
    """Convert the parameter of one row to a type that a sample can hold."""
    row = value[0] if value.shape[:1] == (1,) else value
    return row if row.dtype == torch.bool else row.float() if row.is_floating_point() else row.long()


def _frozen(value: Any) -> Any:
    """Convert lists, as in a config file, to tuples."""
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
