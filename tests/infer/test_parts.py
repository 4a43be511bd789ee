"""Parts of networks: against torchvision's own, and what they refuse."""

import pytest
import torch
from torch import nn
from torchvision import models

import fpatch
from fpatch import graph, infer, random

IMAGES = random.uniform(random.key(1), (2, 3, 64, 64))


@pytest.fixture(scope="module")
def whole():
    return infer.torchvision_model(architecture="resnet18", seed=0, num_classes=7).value


def test_a_backbone_and_its_head_are_the_classifier(whole):
    part = infer.backbone(architecture="resnet18", seed=0, num_classes=7).value
    with torch.no_grad():
        assert torch.equal(whole.model.fc(part(IMAGES)), whole(IMAGES))


@pytest.mark.parametrize("normalize", [True, False])
def test_features_are_those_of_the_layer(normalize):
    arguments = {"architecture": "resnet18", "seed": 0, "normalize": normalize}
    model = infer.torchvision_model(**arguments).value
    seen = []
    network = model.model if normalize else model
    network.layer3.register_forward_hook(lambda module, inputs, answer: seen.append(answer))
    with torch.no_grad():
        model(IMAGES)
        part = infer.backbone(**arguments, layer="layer3").value
        assert torch.equal(part(IMAGES), seen[0])
    assert not any("layer4" in name for name, _ in part.named_parameters())


@pytest.mark.parametrize("architecture", ["mobilenet_v3_small", "squeezenet1_1", "vit_b_32"])
def test_other_architectures_lose_their_heads(architecture):
    side = {"image_size": 64} if architecture == "vit_b_32" else {}
    part = infer.backbone(architecture=architecture, seed=0, normalize=False, **side).value
    with torch.no_grad():
        assert part(IMAGES).ndim == 2


def test_a_normalization_is_that_of_torchvision():
    mean, std = [0.1, 0.2, 0.3], [0.5, 0.6, 0.7]
    from torchvision.transforms.functional import normalize

    found = infer.normalizer(mean=mean, std=std).value(IMAGES)
    torch.testing.assert_close(found, normalize(IMAGES, mean, std))


def test_a_head_has_the_weights_of_its_seed_within_the_bound():
    first, again, other = (infer.head(num_features=400, num_classes=9, seed=s).value for s in (0, 0, 1))
    assert torch.equal(first[1].weight, again[1].weight)
    assert not torch.equal(first[1].weight, other[1].weight)
    largest = float(first[1].weight.detach().abs().max())
    assert 0.045 < largest <= 1 / 400**0.5


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: infer.normalizer(mean=[0.5], std=[0.1, 0.2]), "one number per channel"),
        (lambda: infer.normalizer(mean=[0.5], std=[0.0]), r"normalizer\(std\) must be"),
        (lambda: infer.head(num_features=0, num_classes=2), r"num_features\) must be at least 1"),
        (lambda: infer.head(num_features=2, num_classes=2, dropout=1.5), r"dropout\) must be"),
        (lambda: infer.backbone(architecture="resnet18", seed=0, layer="layr3"), "no layer .*layr3.*layer3"),
        (lambda: infer.backbone(architecture="resnet18"), "its weights come from one source"),
    ],
)
def test_wrong_parts_are_refused(make, words):
    with pytest.raises(ValueError, match=words):
        _ = make().value


class Branching(nn.Module):
    """What torch.fx cannot trace."""

    def forward(self, images):
        return images if float(images.sum()) > 0 else -images


def test_a_network_that_cannot_be_traced_is_named():
    with pytest.raises(ValueError, match=r"torch.fx cannot trace Branching"):
        infer.features_at(Branching(), "0")


@pytest.mark.parametrize("settings", [{}, {"layer": "layer2"}, {"normalize": False}])
def test_a_part_is_whole_in_evaluation_mode(settings):
    """One layer in training mode would keep all others in evaluation mode, when the part is trained."""
    part = infer.backbone(architecture="resnet18", seed=0, **settings).value
    assert [name for name, layer in part.named_modules() if layer.training] == []
    fpatch.pipeline({"frozen": fpatch.node(graph.module(part), reads=["image"], writes=["features"])})


def test_parts_train_in_a_pipeline():
    """A backbone with batch statistics, a frozen normalization and a head, in one step."""
    parts = {
        "normalize": fpatch.node(
            graph.module(infer.normalizer(mean=[0.5] * 3, std=[0.2] * 3)), reads=["image"], writes=["input"]
        ),
        "backbone": fpatch.node(
            graph.module(infer.backbone(architecture="resnet18", seed=0, normalize=False), trainable=True),
            reads=["input"],
            writes=["features"],
        ),
        "head": fpatch.node(
            graph.module(infer.head(num_features=512, num_classes=5, dropout=0.1), trainable=True),
            reads=["features"],
            writes=["logits"],
        ),
        "loss": fpatch.losses.misclassify(target=2),
    }
    p = fpatch.pipeline(parts).at("train")
    objective = fpatch.Objective(p, {"misclassify": 1.0})
    optimizer = fpatch.make_optimizer(fpatch.Optimizer("adam", 0.001), num_steps=3)
    state, step = (
        fpatch.make_state(objective, optimizer, random.key(0)),
        fpatch.make_step(objective, optimizer),
    )
    batch = {"image": IMAGES, "image_id": torch.arange(2), "draw": torch.zeros(2, dtype=torch.int64)}
    batch["target"] = torch.tensor([0, 1])
    losses = []
    for _ in range(3):
        state, info = step(state, batch)
        losses.append(float(info.loss))
    assert losses[-1] < losses[0]
    assert int(state.fixed["backbone/bn1.num_batches_tracked"]) == 3  # they follow the batches
    assert p["backbone"].stage.definition.traits.mixes_rows
    assert len(state.params) == len(list(models.resnet18().parameters()))
