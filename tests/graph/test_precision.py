"""Victims in less time or memory: the same answers, to what is promised, and the victim untouched."""

import dataclasses

import pytest
import torch
from cases import SHAPES, case, detector
from laws import assert_equal
from torch import Tensor, nn
from typecheck import unchecked

from fpatch import compose, create, implant, infer, losses, random
from fpatch.graph.pipeline import Pipeline, pipeline
from fpatch.optim.gradient import value_and_grad
from fpatch.optim.objective import Objective

KEY = random.key(6)


class Blocks(nn.Module):
    """A classifier with a sequence of blocks that hold much more than they are given."""

    def __init__(self) -> None:
        super().__init__()
        g = torch.Generator().manual_seed(0)
        self.stem = nn.Conv2d(3, 4, 3, stride=2)
        wide = [
            nn.Sequential(nn.Conv2d(4, 32, 3), nn.Tanh(), nn.Conv2d(32, 4, 3), nn.Tanh()) for _ in range(3)
        ]
        self.body = nn.Sequential(*wide)
        self.head = nn.Linear(4, 5)
        for parameter in self.parameters():
            with torch.no_grad():
                parameter.normal_(std=0.2, generator=g)
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.body(self.stem(images)).mean((-2, -1)))


def made(victim: nn.Module) -> Pipeline:
    return pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "stack": create.stack(3),
            "implant": implant.warp(),
            "exposure": compose.exposure(),
            "victim": infer.classifier(victim),
            "misclassify": losses.misclassify(),
        }
    )


def gradient(nodes: Pipeline) -> tuple[dict[str, Tensor], Tensor]:
    subject = case(nodes)
    objective = Objective(nodes, {nodes.terms[0]: 1.0})
    grads, loss = value_and_grad(objective)(
        subject.params, subject.subject.sample(KEY, subject.batch), subject.batch
    )
    assert all(g.dtype == torch.float32 for g in grads.values())
    assert any(bool((g != 0).any()) for g in grads.values())
    return grads, loss.value


def state(model: nn.Module) -> list[tuple[int, tuple[int, ...], Tensor]]:
    return [(t.data_ptr(), t.stride(), t.clone()) for t in model.state_dict().values()]


@pytest.mark.parametrize(
    ("settings", "tolerance"),
    [
        ({"recompute": True}, 0.0),
        ({"channels_last": True}, 1e-5),
        ({"precision": "bfloat16"}, 0.1),
        ({"precision": "bfloat16", "channels_last": True, "recompute": True}, 0.1),
    ],
)
def test_the_gradient_is_that_of_the_victim_and_the_victim_is_untouched(settings, tolerance):
    victim = Blocks()
    before = state(victim)
    expected, value = gradient(made(victim))
    grads, loss = gradient(infer.lighter(made(victim), **settings))
    for name, g in expected.items():
        limit = tolerance * float(g.abs().max())
        assert float((grads[name] - g).abs().max()) <= limit
    assert abs(float(loss - value)) <= tolerance
    for (a, b, c), (x, y, z) in zip(before, state(victim), strict=True):
        assert (a, b) == (x, y)
        assert torch.equal(c, z)
    assert all(p.grad is None for p in victim.parameters())


def test_low_precision_is_used():
    expected, _ = gradient(made(Blocks()))
    grads, _ = gradient(infer.lighter(made(Blocks()), precision="bfloat16"))
    assert any(bool((grads[name] != g).any()) for name, g in expected.items())


def test_channels_last_reaches_the_victim():
    seen = []

    class Spy(Blocks):
        def forward(self, images: Tensor) -> Tensor:
            seen.append((images.stride()[1], self.stem.weight.stride()[1]))
            return super().forward(images)

    gradient(infer.lighter(made(Spy()), channels_last=True))
    assert seen == [(1, 1)]


def test_recomputing_keeps_less():
    def kept(nodes: Pipeline) -> int:
        sizes: dict[int, int] = {}

        def pack(x: Tensor) -> Tensor:
            sizes[x.untyped_storage().data_ptr()] = x.untyped_storage().nbytes()
            return x

        subject = case(nodes)
        params = {name: p.clone().requires_grad_() for name, p in subject.params.items()}
        sample = nodes.sample(KEY, subject.batch)
        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            nodes.apply(params, sample, subject.batch)
        return sum(sizes.values())

    assert kept(infer.lighter(made(Blocks()), recompute=True)) < 0.5 * kept(made(Blocks()))


def test_without_settings_the_pipeline_is_the_same():
    nodes = made(Blocks())
    assert infer.lighter(nodes) is nodes


def test_an_unknown_precision_is_refused():
    with unchecked(), pytest.raises(ValueError, match="precision: there is no 'bf16'; "):
        infer.lighter(made(Blocks()), precision="bf16")


def test_every_victim_of_an_ensemble_is_lightened():
    nodes = pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "stack": create.stack(3),
            "implant": implant.warp(),
            "victims": infer.ensemble(
                {"a": infer.detector(detector(seed=1)), "b": infer.detector(detector(seed=2))},
                {"vanish": losses.vanish()},
            ),
            "vanish": losses.ensemble(("victims/a/vanish", "victims/b/vanish")),
        }
    )
    found = infer.lighter(nodes, channels_last=True)
    changed = [path for path in nodes if nodes[path] != found[path]]
    assert changed == ["victims/a/victim", "victims/b/victim"]
    subject = case(nodes)
    sample = nodes.sample(KEY, subject.batch)
    a, b = (n.apply(subject.params, sample, subject.batch, want=("ensemble",)) for n in (nodes, found))
    assert_equal(a, b, 1e-5)


def test_a_victim_of_a_name_only_is_made_first():
    resource = dataclasses.replace(detector(seed=1))
    nodes = pipeline({"victim": infer.detector(resource)})
    assert isinstance(infer.lighter(nodes, channels_last=True)["victim"].stage.config.model, nn.Module)


def test_images_may_lie_in_any_order():
    nodes = infer.lighter(pipeline({"victim": infer.classifier(Blocks())}), precision="bfloat16")
    image = random.uniform(random.key(1), (2, 40, 40, 3)).permute(0, 3, 1, 2)[..., 4:-4, 4:-4]
    assert nodes.apply({}, {}, {"image": image})["logits"].shape == (2, 5)
