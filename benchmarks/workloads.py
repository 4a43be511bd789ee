"""The workloads that several suites time: a batch, a pipeline of everything that a step does, and victims."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torchvision
from torch import Tensor, nn

import fpatch
from fpatch import compose, create, implant, infer, losses, random
from fpatch.core.tree import device_of, to_device
from fpatch.demo.victim import TinyDetector
from fpatch.optim.step import Step, TrainState

NAMES = ("hood", "roof", "door")


@dataclass(frozen=True)
class Victim:
    """A model, untrained, and how it stands in a pipeline.

    Attributes:
        model: In evaluation mode, frozen.
        stage: The adapter, from the model.
        loss: What the patch minimizes.
        answer: From images to what the victim alone is differentiated at.
    """

    model: nn.Module
    stage: Callable[[nn.Module], Any]
    loss: Any
    answer: Callable[[nn.Module, Tensor], Tensor]


def make_victim(name: str, device: str = "cpu") -> Victim:
    """A victim by name: one of torchvision's classifiers, "ssdlite320", "fasterrcnn" or "tiny"."""
    made = _make_victim(name)
    made.model.to(device)
    return made


def _make_victim(name: str) -> Victim:
    with torch.random.fork_rng():
        torch.manual_seed(0)  # the libraries initialize from the global generator
        if name == "tiny":
            model: nn.Module = TinyDetector(generator=torch.Generator().manual_seed(0))
            return Victim(_frozen(model), infer.detector, losses.vanish(), lambda m, x: m(x)["logits"])
        detectors = {"ssdlite320": "ssdlite320_mobilenet_v3_large", "fasterrcnn": "fasterrcnn_resnet50_fpn"}
        if name in detectors:
            model = torchvision.models.get_model(detectors[name], weights=None, weights_backbone=None)
            return Victim(_frozen(model), infer.torchvision_detector, losses.vanish(), _dense_logits)
        model = torchvision.models.get_model(name, weights=None)
        return Victim(_frozen(model), infer.classifier, losses.misclassify(), lambda m, x: m(x))


def _frozen(model: nn.Module) -> nn.Module:
    return model.eval().requires_grad_(False)


def _dense_logits(model: nn.Module, images: Tensor) -> Tensor:
    """Logits of a torchvision detector before suppression, by the same code as in the pipeline."""
    stage = infer.torchvision_detector(model)
    return stage.written({}, {}, {"image": images})["detections"]["dense"]["logits"]


def make_batch(
    b: int, side: int, num_placements: int = 3, patch_px: float = 64.0, device: str = "cpu"
) -> dict[str, Tensor]:
    """Noise images with placements about as large as the patches, all within the frame.

    As a loader gives them: the images on the device, the rest on the host.
    """
    corners = torch.tensor([[0.0, 0.0], [1.0, 0.1], [0.95, 1.0], [-0.05, 0.9]]) * patch_px
    free = side - 1.5 * patch_px
    offsets = [random.uniform(random.fold_in(random.key(3), i), (2,)) for i in range(num_placements)]
    places = torch.stack([corners + 0.2 * patch_px + offset * free for offset in offsets])
    return {
        "scene": random.uniform(random.key(1), (b, 3, side, side)).to(device),
        "image_id": torch.arange(b),
        "draw": torch.zeros(b, dtype=torch.int64),
        "quads": places.expand(b, -1, -1, -1).contiguous(),
        "quad_patch": (torch.arange(num_placements) % len(NAMES)).expand(b, -1).contiguous(),
        "quad_valid": torch.ones(b, num_placements, dtype=torch.bool),
        "boxes": torch.tensor([[[0.1, 0.1, 0.9, 0.9]]]).expand(b, 1, 4) * side,
        "box_valid": torch.ones(b, 1, dtype=torch.bool),
        "labels": torch.zeros(b, 1, dtype=torch.int64),
        "target": torch.zeros(b, dtype=torch.int64),
    }


def make_pipeline(victim: Victim, patch_px: int = 64) -> fpatch.Pipeline:
    """Three one-channel patches, affine, warped, in front of a camera and a victim."""
    return fpatch.pipeline(
        {
            "pixels": create.pixels({name: (1, patch_px, patch_px) for name in NAMES}),
            "stack": create.stack(3),
            "view": compose.affine(),
            "implant": implant.warp(),
            "exposure": compose.exposure(),
            "contrast": compose.contrast(),
            "saturation": compose.saturation(),
            "hue": compose.hue(),
            "noise": compose.read_noise(),
            "victim": victim.stage(victim.model),
            "loss": victim.loss,
        }
    )


def make_training(pipeline: fpatch.Pipeline, device: str = "cpu", **settings: Any) -> tuple[Step, TrainState]:
    """A step and the state before the first one."""
    objective = fpatch.Objective(pipeline, {pipeline.terms[0]: 1.0})
    optimizer = fpatch.make_optimizer(fpatch.Optimizer(), 1000)
    state = fpatch.make_state(objective, optimizer, random.key(0), device)
    return fpatch.make_step(objective, optimizer, **settings), state


def make_images(pipeline: fpatch.Pipeline, state: TrainState, batch: dict[str, Tensor]) -> Tensor:
    """The images that the victim gets in a step, as a leaf."""
    with torch.no_grad():
        sample, batch = to_device((pipeline.sample(random.key(2), batch), batch), device_of(state.params))
        image = pipeline.apply(state.params, sample, batch, want=("image",))["image"]
    return image.detach().requires_grad_()
