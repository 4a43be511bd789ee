"""Terms whose gradient ends before the patch: found one by one, beside terms that hide it in the sum."""

import pytest
import torch
from torch import Tensor, nn

import fpatch
from fpatch import create, implant, infer, losses, random
from fpatch.graph.node import node
from fpatch.optim.objective import Objective
from fpatch.optim.severed import find_severed, terms_of_victims

BATCH = {
    "scene": torch.full((3, 3, 8, 10), 0.25),
    "image_id": torch.arange(3),
    "draw": torch.zeros(3, dtype=torch.int64),
    "quads": torch.tensor([[[[1.0, 1.0], [7.0, 1.0], [7.0, 6.0], [1.0, 6.0]]]]).expand(3, 1, 4, 2),
    "quad_patch": torch.zeros(3, 1, dtype=torch.int64),
    "quad_valid": torch.ones(3, 1, dtype=torch.bool),
    "target": torch.tensor([0, 1, 0]),
}


class Linear(nn.Module):
    """Two logits of the mean color; `prepare` may break the gradient."""

    def __init__(self, prepare=lambda x: x):
        super().__init__()
        self.prepare = prepare
        self.head = nn.Linear(3, 2)  # its weights require a gradient, and so do the answers
        self.head.weight.data, self.head.bias.data = torch.tensor([[1.0, 0, 0], [0, 1, 0]]), torch.zeros(2)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.prepare(images).mean((2, 3)))


BREAKS = {
    "detach": lambda x: x.detach(),
    "no_grad": lambda x: torch.no_grad()(lambda y: y * 1.0)(x),
    "8 bits": lambda x: (x * 255).round() / 255,
    "data": lambda x: x.data,
}
ENDS = "depends on its answer, but no gradient of the term reaches the image"


def find(stages, weights):
    objective = Objective(fpatch.pipeline(stages), weights)
    key = random.key(0)
    leaves = {name: p.requires_grad_() for name, p in objective.pipeline.init(key).items()}
    trace = objective.pipeline.trace(leaves, objective.pipeline.sample(key, BATCH), BATCH)
    return objective, list(find_severed(objective, trace, leaves, BATCH))


def stages_of(model, loss=None, **nodes):
    made = {"pixels": create.pixels({"tag": (3, 4, 5)}), "smooth": losses.total_variation()}
    made |= nodes | {"implant": implant.warp()}
    return made | {"victim": infer.classifier(model.eval()), "loss": loss or losses.misclassify()}


WEIGHTS = {"misclassify": 1.0, "total_variation": 1.0}


def test_a_sound_term_is_not_severed():
    objective, found = find(stages_of(Linear()), WEIGHTS)
    assert found == []
    assert terms_of_victims(objective) == {"misclassify": ("victim",)}


@pytest.mark.parametrize("how", BREAKS)
def test_a_victim_that_breaks_the_gradient_is_named_beside_smoothness(how):
    _, found = find(stages_of(Linear(BREAKS[how])), WEIGHTS)
    assert [(s.term, s.where) for s in found] == [("misclassify", "victim")]
    assert ENDS in found[0].what


def test_one_of_two_victims_is_named_though_the_patch_learns_from_the_other():
    victims = {
        "sound": infer.classifier(Linear().eval()),
        "broken": infer.classifier(Linear(torch.round).eval()),
    }
    stages = stages_of(Linear())
    del stages["victim"], stages["loss"]
    stages["victims"] = infer.ensemble(victims, {"miss": losses.misclassify()})
    terms = ("victims/sound/misclassify", "victims/broken/misclassify")
    stages["both"] = losses.ensemble(terms, how="mean")
    objective, found = find(stages, {"ensemble": 1.0, "total_variation": 1.0})
    assert terms_of_victims(objective) == {"ensemble": ("victims/sound/victim", "victims/broken/victim")}
    assert [(s.term, s.where) for s in found] == [("ensemble", "victims/broken/victim")]


def test_a_term_that_has_reached_its_goal_is_not_severed():
    """The lead is above the margin in every row: no gradient now, and one in other images."""
    _, found = find(stages_of(Linear(lambda x: -1000 * x), losses.misclassify(target=0, margin=0.0)), WEIGHTS)
    _, also = find(stages_of(Linear(lambda x: -1000 * x), losses.misclassify(target=1, margin=0.0)), WEIGHTS)
    assert found == also == []


def test_a_victim_of_the_clean_image_is_no_way_to_the_patch():
    stages = stages_of(Linear())
    stages["victim"] = node(infer.classifier(Linear().eval()), reads={"image": "scene"})
    (severed,) = find(stages, WEIGHTS)[1]
    assert (severed.term, severed.where) == ("misclassify", "loss")
    assert "does not depend on the patch by autograd" in severed.what


def test_a_term_without_weight_is_not_asked():
    assert find(stages_of(Linear(torch.round)), {"misclassify": 0.0, "total_variation": 1.0})[1] == []
