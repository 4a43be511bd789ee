"""A small anchor-free detector: a convolutional trunk of stride 8, with scores and a box per cell.

References:
    Tian et al., FCOS: Fully Convolutional One-Stage Object Detection, ICCV 2019 (cells inside a box regress
    the distances to its four sides). Lin et al., Focal Loss for Dense Object Detection, ICCV 2017, equation
    5. Rezatofighi et al., Generalized Intersection over Union, CVPR 2019, algorithm 1.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
from jaxtyping import Bool, Float, Int64, UInt8
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn
from torch.nn import functional as F
from torchvision.ops import generalized_box_iou_loss

STRIDE_PX = 8
GROUPS = 8
HIDDEN_FRAC = 0.5  # share of the training images whose object is partly covered
PRIOR = 0.01  # the score of each cell before training
CENTER_CELLS = 1.5  # reach of an object center, in strides; cells within it find the object

Progress = Callable[[int, int], None]
"""Called with the number of steps done and the number of all."""


class TinyDetector(nn.Module):
    """A dense detector of about 250,000 parameters.

    Rows are independent: normalization is over groups of channels of one row. Training and evaluation do not
    differ, and the weights depend on `generator` alone.

    Args:
        num_classes: Number of scores per cell.
        width: Channels of the trunk, a multiple of 16.
        generator: Draws the initial weights; None leaves them unset, to be loaded.

    Example:
        >>> import torch
        >>> from fpatch.demo.victim import TinyDetector
        >>> model = TinyDetector(num_classes=2, width=16, generator=torch.Generator().manual_seed(0))
        >>> dense = model(torch.zeros(1, 3, 16, 24))  # 2 x 3 cells of 8 x 8 pixels
        >>> dense["boxes"].shape, dense["logits"].shape
        (torch.Size([1, 6, 4]), torch.Size([1, 6, 2]))
    """

    def __init__(self, num_classes: int = 1, width: int = 64, generator: torch.Generator | None = None):
        super().__init__()
        self.num_classes, self.width = num_classes, width
        self.stem = nn.Sequential(
            _conv(3, width // 4, kernel_size=3, stride=2, padding=1),
            nn.ReLU(),
            _unit(width // 4, width // 2, stride=2),
            _unit(width // 2, width, stride=2),
        )
        self.blocks = nn.Sequential(*(_Block(width, dilation) for dilation in (1, 2, 4)))
        self.head = _conv(width, num_classes + 4, kernel_size=1)
        if generator is not None:
            self._initialize(generator)

    @torch.no_grad()
    def _initialize(self, generator: torch.Generator) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, nonlinearity="relu", generator=generator)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
        nn.init.normal_(self.head.weight, std=0.01, generator=generator)
        assert self.head.bias is not None
        self.head.bias[: self.num_classes] = math.log(PRIOR / (1 - PRIOR))

    def forward(self, images: Float[Tensor, "b 3 h w"]) -> dict[str, Tensor]:
        """Find objects in every cell.

        Args:
            images: RGB in 0..1, height and width multiples of 8.

        Returns:
            ``boxes`` ``[b, n, 4]``, xyxy in pixels of `images`, and ``logits`` ``[b, n, c]``, for the n
            cells of 8 x 8 pixels row by row. Differentiable in `images`; nothing is clipped, suppressed or
            sorted.
        """
        height, width = images.shape[-2:]
        if height % STRIDE_PX or width % STRIDE_PX:
            raise ValueError(
                f"images must have sides that are multiples of {STRIDE_PX}, got {height} x {width}"
            )
        cells = self.head(self.blocks(self.stem(4 * images - 2)))
        logits, sides = cells.flatten(2).transpose(1, 2).split([self.num_classes, 4], dim=-1)
        reach = 2 * STRIDE_PX * sides.clamp(-4, 4).exp()
        centers = _cell_centers(height, width, images.device)
        return {
            "boxes": torch.cat([centers - reach[..., :2], centers + reach[..., 2:]], dim=-1),
            "logits": logits,
        }


def train_victim(
    images: UInt8[Tensor, "n 3 h w"],
    boxes: Float[Tensor, "n m 4"],
    labels: Int64[Tensor, "n m"],
    valid: Bool[Tensor, "n m"],
    seed: int,
    steps: int = 400,
    batch: int = 32,
    learning_rate: float = 6e-3,
    num_classes: int = 1,
    progress: Progress | None = None,
) -> TinyDetector:
    """Train a detector from scratch.

    All randomness comes from `seed`: two calls with equal arguments, thread count and library versions give
    equal weights. The global generators keep their state.

    Args:
        images: RGB.
        boxes: Objects, xyxy in pixels, m at least 1.
        labels: Their classes, 0 to `num_classes` - 1.
        valid: Which of the m objects exist.
        seed: Seed of the initial weights, the order of the images and their augmentation.
        steps: Number of updates.
        batch: Images per update, with replacement.
        learning_rate: Peak of the one-cycle schedule of AdamW.
        num_classes: Number of classes.
        progress: Called after each step.

    Returns:
        The detector, in evaluation mode and with frozen parameters.
    """
    generator = torch.Generator().manual_seed(seed)
    model = TinyDetector(num_classes, generator=generator).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), lr=learning_rate, weight_decay=1e-3)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=steps, pct_start=0.2)
    for step in range(steps):
        rows = torch.randint(len(images), (batch,), generator=generator)
        seen, targets = _augment(images[rows].float() / 255, boxes[rows], generator)
        loss = detection_loss(model(seen), targets, labels[rows], valid[rows], (seen.shape[2], seen.shape[3]))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(model.parameters(), 10.0)
        optimizer.step()
        schedule.step()
        if progress is not None:
            progress(step + 1, steps)
    return model.eval().requires_grad_(False)


def detection_loss(
    dense: dict[str, Tensor],
    boxes: Float[Tensor, "b m 4"],
    labels: Int64[Tensor, "b m"],
    valid: Bool[Tensor, "b m"],
    size_hw: tuple[int, int],
    alpha: float = 0.25,
    gamma: float = 2.0,
) -> Float[Tensor, ""]:
    """Return the focal loss of all cells plus the GIoU loss of cells at object centers, per such cell.

    Where objects overlap, a cell finds the smaller object.
    """
    centers = _cell_centers(*size_hw, device=boxes.device)[:, None]
    low, high = boxes[:, None, :, :2], boxes[:, None, :, 2:]
    inside = ((centers > low) & (centers < high)).all(-1)
    central = ((centers - (low + high) / 2).abs() < CENTER_CELLS * STRIDE_PX).all(-1)
    area = (high - low).prod(-1)
    area, owner = torch.where(inside & central & valid[:, None], area, torch.inf).min(-1)
    found = area < torch.inf

    target = F.one_hot(labels.gather(1, owner), dense["logits"].shape[-1]) * found[..., None]
    entropy = F.binary_cross_entropy_with_logits(dense["logits"], target.float(), reduction="none")
    missed = (1 - (-entropy).exp()) ** gamma
    focal = torch.where(target == 1, alpha, 1 - alpha) * missed * entropy
    own = boxes.gather(1, owner[..., None].expand(-1, -1, 4))
    overlap = generalized_box_iou_loss(dense["boxes"][found], own[found], reduction="sum")
    return (focal.sum() + overlap) / found.sum().clamp(min=1)


def save_victim(path: str | Path, model: TinyDetector) -> None:
    """Write the weights as safetensors, atomically."""
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    settings = {"num_classes": str(model.num_classes), "width": str(model.width)}
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    draft.write_bytes(save(tensors, metadata=settings))
    os.replace(draft, path)


def load_victim(path: str | Path) -> TinyDetector:
    """Read a detector of `save_victim`, in evaluation mode with frozen parameters."""
    with safe_open(path, framework="pt") as file:
        settings = file.metadata()
        model = TinyDetector(int(settings["num_classes"]), int(settings["width"]))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def _cell_centers(height: int, width: int, device: torch.device | None = None) -> Float[Tensor, "n 2"]:
    """Return the (x, y) center of each cell of an image, row by row, in pixels."""
    y = torch.arange(STRIDE_PX / 2, height, STRIDE_PX, device=device)
    x = torch.arange(STRIDE_PX / 2, width, STRIDE_PX, device=device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


def _augment(
    images: Float[Tensor, "b 3 h w"], boxes: Float[Tensor, "b m 4"], generator: torch.Generator
) -> tuple[Float[Tensor, "b 3 h w"], Float[Tensor, "b m 4"]]:
    """Mirror, change contrast and light, cover a part of the first object, and add noise, by row.

    The cover is of one color or of noise, so that the detector is not fooled by mere occlusion.
    """
    count, _, height, width = images.shape

    def uniform(*shape: int, low: float = 0.0, high: float = 1.0) -> Tensor:
        return low + (high - low) * torch.rand(count, *shape, generator=generator)

    mirror = uniform(1, 1, 1) < 0.5
    left, top, right, bottom = boxes.unbind(-1)
    mirrored = torch.stack([width - right, top, width - left, bottom], dim=-1)
    images, boxes = torch.where(mirror, images.flip(-1), images), torch.where(mirror[..., 0], mirrored, boxes)

    gain = uniform(1, 1, 1, low=0.8, high=1.2) * uniform(3, 1, 1, low=0.9, high=1.1)
    images = ((images - 0.5) * uniform(1, 1, 1, low=0.8, high=1.2) + 0.5) * gain

    size = boxes[:, 0, 2:] - boxes[:, 0, :2]
    start = boxes[:, 0, :2] + size * uniform(2, low=-0.1, high=0.7)
    left, top = start[:, :, None].unbind(1)
    right, bottom = (start + size * uniform(2, low=0.2, high=0.7))[:, :, None].unbind(1)
    x, y = torch.arange(width) + 0.5, torch.arange(height) + 0.5
    across, down = (x > left) & (x < right), (y > top) & (y < bottom)
    hidden = across[:, None, None, :] & down[:, None, :, None] & (uniform(1, 1, 1) < HIDDEN_FRAC)
    noise = torch.rand(images.shape, generator=generator)
    cover = torch.where(uniform(1, 1, 1) < 0.5, uniform(3, 1, 1), noise)
    images = torch.where(hidden, cover, images) + (noise - 0.5) * uniform(1, 1, 1, high=0.1)
    return images.clamp(0, 1), boxes


class _Block(nn.Module):
    def __init__(self, width: int, dilation: int):
        super().__init__()
        self.body = nn.Sequential(
            _unit(width, width, dilation=dilation), _unit(width, width, dilation=dilation)
        )

    def forward(self, x: Tensor) -> Tensor:
        return x + self.body(x)


def _unit(channels_in: int, channels: int, **settings: int) -> nn.Sequential:
    padding = settings.get("dilation", 1)
    conv = _conv(channels_in, channels, kernel_size=3, padding=padding, bias=False, **settings)
    return nn.Sequential(conv, nn.GroupNorm(GROUPS, channels), nn.ReLU())


def _conv(*args: int, **settings) -> nn.Conv2d:
    """Make a convolution with unset weights, so that no global generator draws them."""
    layer = nn.utils.skip_init(nn.Conv2d, *args, **settings)
    assert isinstance(layer, nn.Conv2d)
    return layer
