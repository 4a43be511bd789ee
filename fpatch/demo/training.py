"""Train the detector of the demo: the graph, the step and the loop that also train patches.

References:
    Tian et al., FCOS: Fully Convolutional One-Stage Object Detection, ICCV 2019 (cells inside a box regress
    the distances to its four sides). Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation
    5. Rezatofighi et al., Generalized Intersection over Union, CVPR 2019, algorithm 1.
"""

import torch
from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

from fpatch import compose, random
from fpatch.core.progress import Progress, silent
from fpatch.core.types import Batch, Params, Range, Sample, Values
from fpatch.data import Loader
from fpatch.data.target_set import Dataset
from fpatch.demo.victim import STRIDE_PX, TinyDetector, cell_centers
from fpatch.graph.module import module
from fpatch.graph.node import node
from fpatch.graph.pipeline import Pipeline, pipeline
from fpatch.optim.loop import fit
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.step import make_state, make_step
from fpatch.random import fold_in

COVERED_FRAC = 0.5  # share of the rows whose object is partly covered
CENTER_CELLS = 1.5  # reach of an object center, in strides; cells within it find the object
ALPHA, GAMMA = 0.25, 2.0  # of the focal loss


def detector_pipeline(model: TinyDetector) -> Pipeline:
    """Augmentation, the network and its losses, as a graph whose network is trained in the phase `train`.

    Example:
        >>> import torch
        >>> from fpatch.demo.training import detector_pipeline
        >>> from fpatch.demo.victim import TinyDetector
        >>> recipe = detector_pipeline(TinyDetector(generator=torch.Generator().manual_seed(0)))
        >>> list(recipe), recipe.at("train").terms
        (['mirror', 'exposure', 'contrast', 'disturb', 'victim', 'losses'], ('focal', 'overlap'))
    """
    return pipeline(
        {
            "mirror": compose.horizontal_flip(),
            "exposure": node(compose.exposure(stops=Range(-0.6, 0.6)), reads={"image": "scene"}),
            "contrast": compose.contrast(factor=Range(0.8, 1.2)),
            "disturb": node(disturb, reads=["image", "boxes"], writes=["image"]),
            "victim": node(
                module(model, trainable=True),
                reads=["image"],
                writes={"boxes": "found_boxes", "logits": "found_logits"},
            ),
            "losses": node(
                detection_losses,
                reads=["image", "found_boxes", "found_logits", "boxes", "labels", "box_valid"],
                writes=["focal", "overlap"],
            ),
        }
    )


def train_detector(
    scenes: Dataset,
    seed: int,
    num_steps: int,
    batch_size: int = 32,
    learning_rate: float = 6e-3,
    on_progress: Progress = silent,
    task: str = "training the detector",
) -> TinyDetector:
    """Train a detector from scratch.

    All randomness comes from `seed`: two calls with equal arguments, thread count and library versions give
    equal weights.

    Args:
        scenes: The images with their objects.
        seed: Seed of the initial weights, the order of the images and their augmentation.
        num_steps: Number of updates.
        batch_size: Images per update.
        learning_rate: Peak of the one-cycle schedule of AdamW.
        on_progress: Called after each step.
        task: The name of the training, for `on_progress`.

    Returns:
        The detector, in evaluation mode and with frozen weights.
    """
    key = random.key(seed)
    model = TinyDetector(len(scenes.class_names), generator=torch.Generator().manual_seed(seed))
    recipe = detector_pipeline(model.to(memory_format=torch.channels_last)).at("train")
    objective = Objective(recipe, {"focal": 1.0, "overlap": 1.0})
    settings = Optimizer(
        "adamw", learning_rate, "one_cycle", betas=(0.95, 0.999), peak_momentum=0.85, rise_frac=0.2,
        weight_decay=1e-3, clip_norm=10.0,
    )  # fmt: skip
    optimizer = make_optimizer(settings, num_steps)
    state, loader = make_state(objective, optimizer, key), Loader(scenes, fold_in(key, "data"), batch_size)
    for after, info in fit(state, make_step(objective, optimizer), loader, num_steps):
        state = after
        on_progress(task, state.step, num_steps, f"loss {float(info.loss):.3f}")
    model.load_state_dict({name.removeprefix("victim/"): value for name, value in state.params.items()})
    return model.eval().requires_grad_(False)


def disturb(
    patch_params: Params, key: Int64[Tensor, "b 2"], batch: Batch, sample: Sample | None = None
) -> tuple[Values, Sample]:
    """Cover a part of the first object in some rows, and add noise to all.

    The cover is of one color or of noise, so that a mere cover does not fool the detector.

    Example:
        >>> import torch
        >>> from fpatch import random
        >>> from fpatch.demo.training import disturb
        >>> image, box = torch.full((2, 3, 16, 16), 0.5), torch.tensor([[[2.0, 2.0, 14.0, 14.0]]])
        >>> batch = {"image": image, "boxes": box.expand(2, 1, 4)}
        >>> out, sample = disturb({}, random.split(random.key(0), 2), batch)
        >>> out["image"].shape, sample["start_frac"].shape
        (torch.Size([2, 3, 16, 16]), torch.Size([2, 2]))
    """
    image, boxes = batch["image"], batch["boxes"]
    sample = _draw_disturbance(key) if sample is None else sample
    low, high = boxes[:, :1, :2], boxes[:, :1, 2:]
    start = low + (high - low) * sample["start_frac"][:, None]
    stop = start + (high - low) * sample["size_frac"][:, None]
    inside = sample["on"][:, None, None]
    for axis, size in enumerate((image.shape[-1], image.shape[-2])):
        center = torch.arange(size, device=image.device) + 0.5
        covered = (center > start[..., axis]) & (center < stop[..., axis])
        inside = inside & (covered[:, None, :] if axis == 0 else covered[:, :, None])
    is_noise, std, color = (
        sample[name].reshape(len(image), -1, 1, 1) for name in ("is_noise", "std_frac", "color")
    )
    field = random.gaussian_field(sample["field"], image.shape[1:])
    cover = torch.where(is_noise, 0.5 + 0.3 * field, color)
    covered_image = torch.where(inside[:, None], cover, image)
    return {"image": (covered_image + std * field).clamp(0, 1)}, sample


def _draw_disturbance(key: Int64[Tensor, "b 2"]) -> Sample:
    """Draw covers, in sides of the box of the object, and noise."""
    return {
        "on": random.bernoulli(fold_in(key, "on"), COVERED_FRAC),
        "start_frac": random.uniform(fold_in(key, "start_frac"), (2,), -0.1, 0.7),
        "size_frac": random.uniform(fold_in(key, "size_frac"), (2,), 0.2, 0.7),
        "is_noise": random.bernoulli(fold_in(key, "is_noise")),
        "color": random.uniform(fold_in(key, "color"), (3,)),
        "std_frac": random.uniform(fold_in(key, "std_frac"), (), 0.0, 0.03),
        "field": fold_in(key, "field"),
    }


def detection_losses(values: Values, patch_params: Params) -> dict[str, Float[Tensor, " b"]]:
    """Return the focal loss of all cells, and the GIoU loss of those at object centers, per such cell.

    Where objects overlap, a cell finds the smaller object.

    Example:
        >>> import torch
        >>> from fpatch.demo.training import detection_losses
        >>> box = torch.tensor([[[0.0, 0.0, 8.0, 8.0]]])  # one cell, which answers its object exactly
        >>> values = {"image": torch.zeros(1, 3, 8, 8), "boxes": box, "labels": torch.tensor([[0]])}
        >>> values |= {"box_valid": torch.tensor([[True]]), "found_boxes": box}
        >>> terms = detection_losses(values | {"found_logits": torch.tensor([[[20.0]]])}, {})
        >>> [round(float(term), 6) for term in terms.values()]
        [0.0, 0.0]
    """
    height, width = values["image"].shape[-2:]
    owner, found = assign_cells(values["boxes"], values["box_valid"], (height, width))
    logits = values["found_logits"]
    target = F.one_hot(values["labels"].gather(1, owner), logits.shape[-1]) * found[..., None]
    entropy = F.binary_cross_entropy_with_logits(logits, target.to(logits.dtype), reduction="none")
    missed = (1 - (-entropy).exp()) ** GAMMA
    focal = torch.where(target == 1, ALPHA, 1 - ALPHA) * missed * entropy
    own = values["boxes"].gather(1, owner[..., None].expand(-1, -1, 4))
    apart = generalized_box_iou_loss(values["found_boxes"], own) * found
    num = found.sum(1).clamp(min=1)
    return {"focal": focal.sum((1, 2)) / num, "overlap": apart.sum(1) / num}


def assign_cells(
    boxes: Float[Tensor, "b m 4"], valid: Tensor, size_hw: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """Return the object that each cell finds, [b, n], and whether it finds one."""
    centers = cell_centers(*size_hw, boxes.device)[:, None]
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    inside = ((centers > low) & (centers < high)).all(-1)
    central = ((centers - (low + high) / 2).abs() < CENTER_CELLS * STRIDE_PX).all(-1)
    area = (high - low).prod(-1)
    area, owner = torch.where(inside & central & valid[:, None], area, torch.inf).min(-1)
    return owner, area < torch.inf
