"""A step of fpatch against a step of the same attack in the Adversarial Robustness Toolbox (ART), in turn.

    pip install adversarial-robustness-toolbox==1.20.1
    python benchmarks/peer.py [--repeats 11] [--small]

ART is no dependency of fpatch; where it is not installed, fpatch stands alone. Compared was 1.20.1, its
`AdversarialPatchPyTorch`, which has to be called below its public `generate` to time one step.

Equal: resnet18, untrained, seeded, frozen, in evaluation mode; 16 noise images of 224 x 224 pixels in
memory, the same at every step; one square patch of 3 x 224 x 224 pixels, at first gray; drawn anew for every
row and step: a rotation by up to 22.5 degrees, a scale of 0.1 to 1 of the frame (both as ART has them by
default) or of 0.2 to 0.4, anywhere within it; cross entropy to one class, the mean over rows; Adam at 0.05,
pixels clamped to 0..1 after it; threads; no loader on either side.

Not equal: the draws themselves. fpatch averages the texels that a pixel covers, ART takes the nearest one
after an interpolation that changes nothing; the line "without filter" is fpatch interpolating as well, which
is the closest to it. fpatch draws with a key per row and returns what it has drawn, so that a row can be
replayed. ART resamples a patch and a mask of the size of the frame, row by row, and holds the patch in double
precision. ART leaves the victim's parameters as they are: made ready as its examples show, it also computes
the gradient of every weight, "weights too" below; the ratio that counts is the one with a frozen victim.
ART never clears the patch's gradient, so that each update is by the sum of all gradients so far; here it is
cleared before each step, which costs nothing.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypedDict

import numpy as np
import torch
import torch.nn.functional as F
import torchvision
from harness import Options, Record, interleave, read_options
from jaxtyping import Float
from torch import Tensor, nn

import fpatch
from fpatch import create, implant, infer, random
from fpatch.graph.stage import define
from fpatch.ops.geometry import affine_matrix, project_points

NUM_CLASSES = 1000
TARGET = 7
LEARNING_RATE = 0.05
ROTATION_DEG = fpatch.Range(-22.5, 22.5)
SCALES = {"scale 0.1 to 1": fpatch.Range(0.1, 1.0), "scale 0.2 to 0.4": fpatch.Range(0.2, 0.4)}


@dataclass(frozen=True)
class Scatter:
    """Scale and rotate quads about the center of the frame, then shift them, as far as a square stays inside.

    Attributes:
        angle_deg: Rotation, clockwise on the screen.
        scale: Size after over size before; the frame's for a quad as large as the frame.
    """

    angle_deg: fpatch.Range = ROTATION_DEG
    scale: fpatch.Range = SCALES["scale 0.1 to 1"]


class ScatterSample(TypedDict):
    """Per row; the shift is a fraction of the room that is left to either side."""

    angle_deg: Float[Tensor, " b"]
    scale: Float[Tensor, " b"]
    shift_frac: Float[Tensor, "b 2"]


def sample(config: Scatter, keys: Tensor, batch: Any) -> ScatterSample:
    return {
        "angle_deg": random.uniform(random.fold_in(keys, "angle_deg"), (), *config.angle_deg),
        "scale": random.uniform(random.fold_in(keys, "scale"), (), *config.scale),
        "shift_frac": random.uniform(random.fold_in(keys, "shift_frac"), (2,), -1.0, 1.0),
    }


def apply(config: Scatter, patch_params: Any, sample: ScatterSample, values: Any) -> dict[str, Tensor]:
    h, w = values["scene"].shape[-2:]
    room = (1 - sample["scale"])[:, None] * values["quads"].new_tensor([w / 2, h / 2])
    angle, upright = sample["angle_deg"], torch.zeros_like(sample["angle_deg"])
    shift = sample["shift_frac"] * room
    matrix = affine_matrix(angle, upright, sample["scale"], shift, center=(w / 2, h / 2))
    return {"quads": project_points(matrix[:, None], values["quads"])}


scatter = define("scatter", Scatter, sample, apply, reads=("scene", "quads"), writes=("quads",))


def make_victim() -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return torchvision.models.resnet18(weights=None).eval()


def cross_entropy(values: Any, patch_params: Any) -> dict[str, Tensor]:
    """To the target, per row."""
    return {"cross_entropy": F.cross_entropy(values["logits"], values["target"], reduction="none")}


def make_ours(scene: Tensor, scale: fpatch.Range, antialias: bool = True) -> Callable[[], float]:
    """A step of fpatch, which returns its loss."""
    b, side = len(scene), scene.shape[-1]
    pipeline = fpatch.pipeline(
        {
            "pixels": create.pixels({"patch": (3, side, side)}, start=fpatch.Range(0.5, 0.5)),
            "scatter": scatter(scale=scale),
            "implant": implant.warp(antialias=antialias),
            "victim": infer.classifier(make_victim().requires_grad_(False)),
            "cross_entropy": cross_entropy,
        }
    )
    objective = fpatch.Objective(pipeline, {"cross_entropy": 1.0})
    settings = fpatch.Optimizer("adam", learning_rate=LEARNING_RATE, schedule="constant")
    optimizer = fpatch.make_optimizer(settings, 1000)
    step = fpatch.make_step(objective, optimizer)
    states = [fpatch.make_state(objective, optimizer, random.key(0))]
    frame = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]]) * side
    batch = {
        "scene": scene,
        "image_id": torch.arange(b),
        "draw": torch.zeros(b, dtype=torch.int64),
        "quads": frame.expand(b, 1, 4, 2),
        "quad_patch": torch.zeros(b, 1, dtype=torch.int64),
        "quad_valid": torch.ones(b, 1, dtype=torch.bool),
        "target": torch.full((b,), TARGET),
    }

    def call() -> float:
        states[0], info = step(states[0], batch)
        return float(info.loss)

    return call


def make_theirs(scene: Tensor, scale: fpatch.Range, frozen: bool = True) -> Callable[[], float]:
    """A step of ART, which returns its loss.

    Raises:
        ImportError: ART is not installed.
    """
    # it is no dependency, so it may not be there to be checked against
    from art.attacks.evasion import AdversarialPatchPyTorch  # pyright: ignore[reportMissingImports]
    from art.estimators.classification import PyTorchClassifier  # pyright: ignore[reportMissingImports]

    shape = tuple(scene.shape[1:])
    estimator = PyTorchClassifier(
        make_victim().requires_grad_(not frozen),
        nn.CrossEntropyLoss(),
        shape,
        NUM_CLASSES,
        clip_values=(0.0, 1.0),
    )
    attack = AdversarialPatchPyTorch(
        estimator,
        rotation_max=ROTATION_DEG.high,
        scale_min=scale.low,
        scale_max=scale.high,
        learning_rate=LEARNING_RATE,
        batch_size=len(scene),
        patch_shape=shape,
        patch_type="square",
        optimizer="Adam",
        targeted=True,
        verbose=False,
    )
    attack.use_logits = True  # found out by `generate`
    np.random.seed(0)
    target = F.one_hot(torch.full((len(scene),), TARGET), NUM_CLASSES).float()

    def call() -> float:
        attack._patch.grad = None
        return float(attack._train_step(scene, target).detach())

    return call


def measure(workload: str, scene: Tensor, scale: fpatch.Range, options: Options, record: Record) -> None:
    """Steps of both over the victim alone, and over fpatch."""
    image, model = scene.clone().requires_grad_(), make_victim().requires_grad_(False)
    steps: dict[str, Callable[[], object]] = {
        "victim": lambda: torch.autograd.grad(model(image).sum(), image),
        "fpatch": make_ours(scene, scale),
        "fpatch, without filter": make_ours(scene, scale, antialias=False),
    }
    if has_art():
        steps["ART"] = make_theirs(scene, scale)
        steps["ART, weights too"] = make_theirs(scene, scale, frozen=False)
    times = interleave(steps, options.repeats)
    for name in steps:
        record.add(
            f"{workload}, {name}",
            ms=times.ms(name),
            over_victim=times.ratio(name, "victim"),
            over_fpatch=times.ratio(name, "fpatch"),
            over_fpatch_without_filter=times.ratio(name, "fpatch, without filter"),
        )


def follow(name: str, step: Callable[[], float], num_steps: int, record: Record) -> None:
    """The mean loss over the first and over the last sixth of a training."""
    losses = [step() for _ in range(num_steps)]
    part = max(1, num_steps // 6)
    first, last = sum(losses[:part]) / part, sum(losses[-part:]) / part
    record.add(f"loss over {num_steps} steps, {name}", first=first, last=last, fall=first - last)


def has_art() -> bool:
    """Whether ART can be imported."""
    try:
        import art.attacks.evasion  # noqa: F401 # pyright: ignore[reportMissingImports]
    except ImportError:
        return False
    return True


def main(argv: list[str] | None = None) -> None:
    """Times, then losses."""
    options = read_options(__doc__, argv)
    record = Record("peer", options)
    if not has_art():
        print("fpatch alone; for both: pip install adversarial-robustness-toolbox==1.20.1")
    b, side, num_steps = (2, 64, 2) if options.small else (16, 224, 30)
    scene = random.uniform(random.key(1), (b, 3, side, side))
    for workload, scale in SCALES.items():
        measure(workload, scene, scale, options, record)
    default = SCALES["scale 0.1 to 1"]
    follow("fpatch", make_ours(scene, default), num_steps, record)
    if has_art():
        follow("ART", make_theirs(scene, default), num_steps, record)


if __name__ == "__main__":
    main()
