"""Small networks of Ultralytics and transformers with seeded weights whose scores differ."""

import pytest
import torch
import torch.nn.functional as F
from cases import noise
from torch import nn

from fpatch import infer
from fpatch.infer.transformers_detector import FAMILIES, prepare
from fpatch.infer.ultralytics_model import process_unchanged


def need_ultralytics(module="ultralytics"):
    """A module of Ultralytics, or the test is skipped; its import changes nothing for other tests."""
    pytest.importorskip("cv2", exc_type=ImportError)
    with process_unchanged():
        return pytest.importorskip(module, exc_type=ImportError)


def picture(height, width):
    """A smooth image of whole levels, as a tensor [1, 3, h, w] and as an array [h, w, 3]."""
    coarse = noise("picture", 1, 3, 7, 9)
    levels = (255 * F.interpolate(coarse, (height, width), mode="bicubic").clamp(0, 1)).round()
    return levels / 255, levels[0].permute(1, 2, 0).byte().numpy()


def make_ultralytics(name, end2end=False):
    """An untrained network of six classes in evaluation mode."""
    model = infer.ultralytics_model(architecture=f"{name}.yaml", num_classes=6, end2end=end2end, seed=3).value
    spread_scores(model)
    return model


def spread_scores(model):
    """Weights at random, class logits of every head around -1 and as far apart as a trained network's."""
    head = model.model[-1]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1)
        for module in model.modules():
            if isinstance(module, nn.Conv2d) and module.weight.requires_grad:
                nn.init.kaiming_normal_(module.weight)
    groups = [head.cv3, *([head.one2one_cv3] if hasattr(head, "one2one_cv3") else [])]
    spread(model, [layers[-1] for group in groups for layers in group], picture(128, 160)[0])


def spread(model, layers, images):
    seen = {}
    hooks = [layer.register_forward_hook(lambda m, _, out: seen.update({m: out})) for layer in layers]
    with torch.no_grad():
        model(images)
        for layer, out in seen.items():
            out = out.movedim(1 if isinstance(layer, nn.Conv2d) else -1, 0).flatten(1)
            factor = 1.5 / out.std(1).clamp(min=1e-6)
            layer.weight.mul_(factor.reshape(-1, *[1] * (layer.weight.ndim - 1)))
            layer.bias.sub_(out.mean(1)).mul_(factor).sub_(1.0)
    for hook in hooks:
        hook.remove()


def make_transformer(kind):
    """An untrained network of seven classes in evaluation mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(4)
        model = make_detr(kind)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                if name.endswith("detection_tokens") or "query_position" in name:
                    parameter.normal_()
                elif name.endswith("weight") and "norm" not in name:
                    parameter.normal_(0, 1.2 / max(1, parameter[0].numel()) ** 0.5)
        layers = [m for n, m in model.named_modules() if "class" in n and isinstance(m, nn.Linear)]
        images = prepare(picture(96, 128)[0], None, FAMILIES[model.config.model_type])
        spread(model, [m for m in layers if m.out_features in (7, 8)], images)
    return model


def resnet(stages):
    from transformers import ResNetConfig

    names = {"out_features": [f"stage{i}" for i in stages]}
    return ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", **names
    )


SMALL = {
    "d_model": 32,
    "encoder_layers": 1,
    "decoder_layers": 1,
    "encoder_attention_heads": 2,
    "decoder_attention_heads": 2,
    "encoder_ffn_dim": 32,
    "decoder_ffn_dim": 32,
    "num_queries": 40,
    "num_labels": 7,
}


def make_detr(kind):
    import transformers

    # without a name, since transformers 4 has one by default
    settings = {"use_timm_backbone": False, "use_pretrained_backbone": False, "backbone": None, **SMALL}
    if kind == "yolos":
        sizes = {"image_size": [96, 128], "num_detection_tokens": 40, "num_labels": 7}
        config = transformers.YolosConfig(
            hidden_size=32, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, **sizes
        )
        model = transformers.YolosForObjectDetection(config)
    elif kind == "detr":
        config = transformers.DetrConfig(backbone_config=resnet([4]), **settings)
        model = transformers.DetrForObjectDetection(config)
    elif kind == "conditional_detr":
        config = transformers.ConditionalDetrConfig(backbone_config=resnet([4]), **settings)
        model = transformers.ConditionalDetrForObjectDetection(config)
    elif kind == "deformable_detr":
        settings["decoder_layers"] = 2
        config = transformers.DeformableDetrConfig(backbone_config=resnet([2, 3, 4]), **settings)
        model = transformers.DeformableDetrForObjectDetection(config)
    else:
        names, labels = {"out_features": ["stage2", "stage3", "stage4"]}, {"num_labels": 7}
        backbone = transformers.RTDetrResNetConfig(
            embedding_size=8, hidden_sizes=[8, 8, 16, 16], depths=[1] * 4, layer_type="basic", **names
        )
        config = transformers.RTDetrConfig(
            backbone_config=backbone, encoder_in_channels=[8, 16, 16], encoder_hidden_dim=32, d_model=32,
            decoder_in_channels=[32] * 3, encoder_ffn_dim=32, decoder_ffn_dim=32, num_queries=40,
            decoder_layers=1, encoder_attention_heads=2, decoder_attention_heads=2, num_denoising=0, **labels,
        )  # fmt: skip
        model = transformers.RTDetrForObjectDetection(config)
    return model.eval()
