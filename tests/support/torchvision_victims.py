"""Small torchvision detectors with seeded weights whose scores differ."""

import re
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn
from torchvision.models.detection import FCOS, FasterRCNN, RetinaNet, ssdlite320_mobilenet_v3_large
from torchvision.models.detection.anchor_utils import AnchorGenerator, DefaultBoxGenerator
from torchvision.models.detection.backbone_utils import BackboneWithFPN
from torchvision.models.detection.fcos import FCOSHead
from torchvision.models.detection.ssd import SSD

NUM_CLASSES = 4
SIZES = {"min_size": 112, "max_size": 160}
"""Images of another size are resized."""


def make_pyramid() -> nn.Module:
    """Features of 32 channels at strides 8 and 16, and 32 by pooling."""
    layers = [nn.Conv2d(3, 8, 4, 4), nn.Tanh(), nn.Conv2d(8, 12, 2, 2), nn.Tanh(), nn.Conv2d(12, 16, 2, 2)]
    return BackboneWithFPN(nn.Sequential(*layers), {"3": "0", "4": "1"}, [12, 16], 32)


class Strides(nn.Module):
    """Features of two sizes, as SSD asks for."""

    out_channels = (8, 12)

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 8, 8), nn.Conv2d(8, 12, 2, 2)

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        first = self.first(images).tanh()
        return {"0": first, "1": self.second(first).tanh()}


def faster_rcnn() -> nn.Module:
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0),) * 3)
    proposals = {"rpn_anchor_generator": anchors, "rpn_nms_thresh": 0.5, "rpn_post_nms_top_n_test": 128}
    return FasterRCNN(make_pyramid(), NUM_CLASSES, **SIZES, **proposals)


def retinanet() -> nn.Module:
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0),) * 3)
    return RetinaNet(make_pyramid(), NUM_CLASSES, **SIZES, anchor_generator=anchors)


def fcos() -> nn.Module:
    anchors = AnchorGenerator(((8,), (16,), (32,)), ((1.0,),) * 3)
    head = FCOSHead(32, 1, NUM_CLASSES, num_convs=1)
    return FCOS(make_pyramid(), NUM_CLASSES, **SIZES, anchor_generator=anchors, head=head)


def ssd() -> nn.Module:
    boxes = DefaultBoxGenerator([[2], [2, 3]], scales=[0.15, 0.4, 0.8])
    return SSD(Strides(), boxes, (128, 96), NUM_CLASSES)


def ssdlite() -> nn.Module:
    return ssdlite320_mobilenet_v3_large(weights=None, weights_backbone=None, num_classes=NUM_CLASSES)


ARCHITECTURES: dict[str, Callable[[], nn.Module]] = {
    "Faster R-CNN": faster_rcnn,
    "RetinaNet": retinanet,
    "FCOS": fcos,
    "SSD": ssd,
    "SSDlite": ssdlite,
}
LAST = re.compile(r"(cls_score|bbox_pred|cls_logits|bbox_reg|bbox_ctrness|module_list\.\d+(\.1)?)$")
"""What the last layers are called."""


def make_victim(name: str, seed: int = 0) -> nn.Module:
    """A network in evaluation mode, the scores of which are spread over 0..1."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = ARCHITECTURES[name]()
        for module in model.modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                nn.init.normal_(module.weight, std=module.weight[0].numel() ** -0.5)
    model.eval()
    spread(model)
    return model


def spread(model: nn.Module) -> None:
    """Rescale the last layers, so that what they say differs from place to place."""
    images = torch.rand(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    last = {n: m for n, m in model.named_modules() if isinstance(m, nn.Conv2d | nn.Linear) and LAST.search(n)}
    outputs: dict[str, list[Tensor]] = {name: [] for name in last}
    hooks = [m.register_forward_hook(partial(keep, outputs[n])) for n, m in last.items()]
    with torch.no_grad():
        model(list(images))
    for hook in hooks:
        hook.remove()
    for name, module in last.items():
        said = torch.cat([out.movedim(1, 0).flatten(1) for out in outputs[name]], dim=1)
        module.weight.data /= said.std(1).mean()


def keep(found: list[Tensor], module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    found.append(output)
