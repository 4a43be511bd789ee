"""A small anchor-free detector: a convolutional trunk of stride 8, with scores and a box per cell.

`fpatch.demo.training` trains it.

References:
    Tian et al., FCOS: Fully Convolutional One-Stage Object Detection, ICCV 2019 (cells inside a box regress
    the distances to its four sides).
"""

import math
import os
from pathlib import Path

import torch
from jaxtyping import Float
from safetensors import safe_open
from safetensors.torch import save
from torch import Tensor, nn

STRIDE_PX = 8
GROUPS = 8
PRIOR = 0.01  # the score of each cell before training


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
        centers = cell_centers(height, width, images.device)
        return {
            "boxes": torch.cat([centers - reach[..., :2], centers + reach[..., 2:]], dim=-1),
            "logits": logits,
        }


def save_victim(path: str | Path, model: TinyDetector) -> None:
    """Write the weights as safetensors, atomically.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from fpatch.demo.victim import TinyDetector, load_victim, save_victim
        >>> path = Path(tempfile.mkdtemp()) / "victim.safetensors"
        >>> save_victim(path, TinyDetector(num_classes=2, generator=torch.Generator().manual_seed(0)))
        >>> load_victim(path).num_classes
        2
    """
    path = Path(path)
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    settings = {"num_classes": str(model.num_classes), "width": str(model.width)}
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    draft.write_bytes(save(tensors, metadata=settings))
    os.replace(draft, path)


def load_victim(path: str | Path) -> TinyDetector:
    """Read a detector of `save_victim`, in evaluation mode with frozen parameters.

    Example:
        >>> import tempfile, torch
        >>> from pathlib import Path
        >>> from fpatch.demo.victim import TinyDetector, load_victim, save_victim
        >>> path = Path(tempfile.mkdtemp()) / "victim.safetensors"
        >>> save_victim(path, TinyDetector(width=16, generator=torch.Generator().manual_seed(0)))
        >>> load_victim(path).training, load_victim(path).width
        (False, 16)
    """
    with safe_open(path, framework="pt") as file:
        settings = file.metadata()
        model = TinyDetector(int(settings["num_classes"]), int(settings["width"]))
        model.load_state_dict({name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118
    return model.to(memory_format=torch.channels_last).eval().requires_grad_(False)


def load_trainable(weights: str | None = None, num_classes: int = 1, seed: int = 0) -> TinyDetector:
    """Make a detector that a study trains: with the weights of a file, or else fresh ones from a seed.

    Example:
        >>> from fpatch.demo.victim import load_trainable
        >>> all(p.requires_grad for p in load_trainable(seed=3).parameters())
        True
    """
    if weights is not None:
        return load_victim(weights).requires_grad_()
    made = TinyDetector(num_classes, generator=torch.Generator().manual_seed(seed))
    return made.to(memory_format=torch.channels_last)


def cell_centers(height: int, width: int, device: torch.device | None = None) -> Float[Tensor, "n 2"]:
    """Return the (x, y) center of each cell of an image, row by row, in pixels."""
    y = torch.arange(STRIDE_PX / 2, height, STRIDE_PX, device=device)
    x = torch.arange(STRIDE_PX / 2, width, STRIDE_PX, device=device)
    return torch.stack(torch.meshgrid(x, y, indexing="xy"), dim=-1).reshape(-1, 2)


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
