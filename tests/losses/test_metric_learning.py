"""Losses of pytorch-metric-learning as terms of rows: shares of the library's value, each at its anchor."""

import inspect
import json
import re
import sys

import pytest
import pytorch_metric_learning.losses as library
import torch
from cases import noise
from pytorch_metric_learning.distances import CosineSimilarity, LpDistance
from pytorch_metric_learning.reducers import DoNothingReducer, MeanReducer, PerAnchorReducer
from torch import nn

from fpatch import (
    Objective,
    Optimizer,
    build,
    create,
    graph,
    losses,
    make_optimizer,
    make_state,
    make_step,
    node,
    pipeline,
    random,
)
from fpatch.graph.pipeline import Pipeline
from fpatch.losses.metric_learning import _OF_THE_BATCH, _ORDER, _REFUSED, _TRAINED, _checked

B, D = 9, 6
X = 2 * noise("embeddings", B, D) - 1
TARGETS = {
    "of three each": [0, 1, 2, 0, 1, 2, 0, 1, 2],
    "of all numbers": [0, 0, 0, 1, 1, 2, 2, 3, 4],
    "one class": [3] * 9,
    "one pair": [0, 1, 2, 3, 4, 5, 6, 7, 0],
    "no pair": list(range(9)),
}
NEEDED = {"RankedListLoss": {"margin": 0.5, "Tn": 1.0}}
EVERY = [
    n for n, c in vars(library).items() if inspect.isclass(c) and n.endswith(("Loss", "Losses", "Memory"))
]
ACCEPTED = sorted(n for n in EVERY if n not in _REFUSED)
KWARGS = {"num_classes": 5, "embedding_size": D, "descriptors_dim": D, "l": D, "K": 3}


def make(name, reducer=None):
    """The library's own loss."""
    return getattr(library, name)(**NEEDED.get(name, {}), reducer=reducer)


def terms(name, x, target, **arguments):
    """The terms [b] of a batch."""
    stage = losses.metric_learning(name, NEEDED.get(name, {}) | arguments)
    return stage.apply({}, {}, {"embeddings": x, "target": target})["metric_learning"]


def test_every_loss_of_the_library_is_known():
    assert len(ACCEPTED) >= 15
    assert {"TripletMarginLoss", "ContrastiveLoss", "NTXentLoss", "SupConLoss"} <= set(ACCEPTED)
    for name in ACCEPTED:
        losses.metric_learning(name, NEEDED.get(name, {}))


@pytest.mark.parametrize("target", TARGETS)
@pytest.mark.parametrize("name", ACCEPTED)
def test_the_mean_of_the_rows_is_the_value_of_the_library(name, target):
    """The gradient too; with the reducer that is the loss's own."""
    labels = torch.tensor(TARGETS[target])
    x = X.clone().requires_grad_()
    found, expected = terms(name, x, labels), make(name)(x, labels)
    assert found.shape == (B,)
    if bool(expected.isnan()):  # the library's mean of no loss
        assert (name, target) == ("NCALoss", "no pair")
        assert not found.any()
        return
    torch.testing.assert_close(found.mean(), expected, rtol=1e-5, atol=1e-6)
    gradients = [torch.autograd.grad(v, x, allow_unused=True)[0] for v in (found.mean(), expected)]
    theirs = torch.zeros_like(x) if gradients[1] is None else gradients[1]
    torch.testing.assert_close(gradients[0], theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_order_of_the_rows_does_not_matter(name):
    order = torch.tensor([4, 2, 8, 0, 1, 7, 3, 6, 5])
    labels = torch.tensor(TARGETS["of all numbers"])
    found = terms(name, X[order], labels[order])
    torch.testing.assert_close(found, terms(name, X, labels)[order], rtol=1e-4, atol=1e-4)


def triplets(x, labels, margin):
    """Every triplet by loops, in float64: Schroff et al. (2015), equation 2, with distances unsquared."""
    x = torch.nn.functional.normalize(x.double(), dim=1)
    for a in range(len(x)):
        for p in range(len(x)):
            for n in range(len(x)):
                if a != p and labels[a] == labels[p] and labels[a] != labels[n]:
                    away = (x[a] - x[n]).square().sum().sqrt()
                    yield a, max(0.0, float((x[a] - x[p]).square().sum().sqrt() - away + margin))


@pytest.mark.parametrize("margin", [0.05, 0.5])
def test_a_triplet_loss_by_hand(margin):
    labels = torch.tensor(TARGETS["of all numbers"])
    found = list(triplets(X, labels, margin))
    above = sum(value > 0 for _, value in found)
    assert 0 < above < len(found)
    expected = [B * sum(value for a, value in found if a == row) / above for row in range(B)]
    torch.testing.assert_close(terms("TripletMarginLoss", X, labels, margin=margin), torch.tensor(expected))
    assert expected[-2:] == [0.0, 0.0]  # classes of one row are no anchors


def test_a_contrastive_loss_by_hand():
    """Hadsell, Chopra and LeCun (2006), with distances unsquared; each kind is averaged where above 0."""
    labels = TARGETS["of all numbers"]
    x = torch.nn.functional.normalize(X.double(), dim=1)
    expected = torch.zeros(B, dtype=torch.float64)
    for same in (True, False):
        pairs = {}
        for a in range(B):
            for other in range(B):
                if a != other and (labels[a] == labels[other]) == same:
                    distance = float((x[a] - x[other]).norm())
                    pairs[a, other] = max(0.0, distance - 1.2 if same else 1.1 - distance)
        number = sum(value > 0 for value in pairs.values())
        assert 0 < number < len(pairs)
        for (a, _), value in pairs.items():
            expected[a] += B * value / number
    found = terms("ContrastiveLoss", X, torch.tensor(labels), pos_margin=1.2, neg_margin=1.1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-6)


def test_rows_of_pairs_are_those_of_the_library_by_anchor():
    """With equal numbers of pairs, a row has the mean over its pairs, as `PerAnchorReducer` makes it."""

    class Rows(MeanReducer):
        def element_reduction(self, losses, *_):
            return losses

    labels = torch.tensor(TARGETS["of three each"])
    expected = make("NTXentLoss", PerAnchorReducer(Rows()))(X, labels)
    torch.testing.assert_close(terms("NTXentLoss", X, labels), expected)


def test_distances_by_name():
    labels = torch.tensor(TARGETS["of three each"])
    for given, distance in (
        ("CosineSimilarity", CosineSimilarity()),
        (
            {"name": "LpDistance", "p": 1, "normalize_embeddings": False},
            LpDistance(p=1, normalize_embeddings=False),
        ),
    ):
        expected = library.TripletMarginLoss(margin=0.3, distance=distance)(X, labels)
        found = terms("TripletMarginLoss", X, labels, margin=0.3, distance=given)
        torch.testing.assert_close(found.mean(), expected)


def test_half_and_double_precision():
    labels = torch.tensor(TARGETS["of three each"])
    assert terms("TripletMarginLoss", X.half(), labels).dtype == torch.float32
    double = terms("TripletMarginLoss", X.double(), labels)
    expected = make("TripletMarginLoss")(X.double(), labels)
    torch.testing.assert_close(double.mean(), expected, rtol=1e-14, atol=0)


def classes_with(reason):
    return [name for name, why in _REFUSED.items() if why == reason and hasattr(library, name)]


@pytest.mark.parametrize("name", [n for n in _REFUSED if hasattr(library, n)])
def test_what_has_no_rows_is_refused_with_the_reason(name):
    with pytest.raises(
        ValueError, match=re.escape(f"metric_learning({name!r}) is refused: {_REFUSED[name]}")
    ):
        losses.metric_learning(name)


@pytest.mark.parametrize("name", classes_with(_TRAINED))
@pytest.mark.filterwarnings("ignore:__array_wrap__ must accept:DeprecationWarning")
def test_refused_losses_have_trained_weights(name):
    kind = getattr(library, name)
    taken = {p for base in kind.__mro__[:-1] for p in inspect.signature(base.__init__).parameters}
    given = {n: value for n, value in KWARGS.items() if n in taken}
    assert list(kind(**given).parameters())


@pytest.mark.parametrize("name", classes_with(_OF_THE_BATCH))
@pytest.mark.filterwarnings("ignore:Using a non-tuple sequence")
def test_refused_losses_are_of_the_batch(name):
    labels = torch.tensor(TARGETS["of three each"])
    parts = make(name, DoNothingReducer())(X, labels)
    assert {part["reduction_type"] for part in parts.values()} == {"already_reduced"}


@pytest.mark.parametrize("name", classes_with(_ORDER))
def test_refused_losses_depend_on_the_order(name):
    order = torch.tensor([4, 2, 8, 0, 1, 7, 3, 6, 5])
    labels = torch.tensor(TARGETS["of three each"])
    difference = make(name)(X[order], labels[order]) - make(name)(X, labels)
    assert abs(float(difference)) > 1e-3


REFUSALS = [
    ("TripletLoss", {}, "the library has no loss 'TripletLoss'; did you mean"),
    ("TripletMarginLoss", {"margn": 0.1}, "there is no argument 'margn'; did you mean 'margin'?"),
    ("TripletMarginLoss", {"reducer": "mean"}, "reducer is an object of the library; leave it out"),
    ("TripletMarginLoss", {"embedding_regularizer": 1}, "embedding_regularizer is an object of the library"),
    ("TripletMarginLoss", {"margin": [0.1]}, "margin must be a number, a bool or a string, got [0.1]"),
    ("TripletMarginLoss", {"triplets_per_anchor": 10}, "triplets_per_anchor must be 'all'; others are drawn"),
    (
        "TripletMarginLoss",
        {"distance": "Cosine"},
        "distance must be a name, got 'Cosine'; known: Cosine",
    ),
    ("TripletMarginLoss", {"distance": {"p": 1}}, "distance must be a name, got None; known: "),
    (
        "TripletMarginLoss",
        {"distance": {"name": "LpDistance", "q": 1}},
        "metric_learning('TripletMarginLoss'): LpDistance: there is no argument 'q'; known: ",
    ),
    ("CircleLoss", {"distance": "LpDistance"}, "metric_learning('CircleLoss'): CircleLoss requires the dist"),
    ("RankedListLoss", {}, "metric_learning('RankedListLoss'): RankedListLoss.__init__() missing 2 required"),
    ("MarginLoss", {"learn_beta": True}, "metric_learning('MarginLoss') is refused: it has trained weights"),
]


@pytest.mark.parametrize(
    ("name", "arguments", "message"), [r for r in REFUSALS if hasattr(library, r[0]) or r[0] == "TripletLoss"]
)
def test_a_wrong_setting_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        losses.metric_learning(name, arguments)


@pytest.mark.parametrize(
    ("x", "target"),
    [
        (X[0], torch.tensor(TARGETS["one class"])),
        (X, torch.tensor(TARGETS["one class"])[:4]),
        (X, torch.zeros(9)),
        ({"a": X}, torch.zeros(9)),
    ],
)
def test_wrong_values_are_refused(x, target):
    with pytest.raises(
        ValueError, match=r"takes embeddings \[b, d\] and the class of each row as target int64"
    ):
        terms("TripletMarginLoss", x, target)


def test_without_the_package_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "pytorch_metric_learning", None)
    with pytest.raises(
        ImportError, match=r"needs pytorch-metric-learning: pip install 'fpatch\[embeddings\]'"
    ):
        losses.metric_learning("TripletMarginLoss")


def test_arguments_of_base_classes_are_known():
    kind = library.SignalToNoiseRatioContrastiveLoss
    assert _checked("here", kind, {"pos_margin": 0.1}) == {"pos_margin": 0.1}


def embed(patch_params, key, batch):
    """A patch seen in each scene, as an embedding of each row."""
    return {"embeddings": (batch["scene"] * patch_params["a"]).mean(-1).flatten(1)}, {}


def test_it_trains():
    """A patch that makes scenes of one class alike; its settings survive a config."""
    whole = pipeline(
        {
            "pixels": create.pixels({"a": (3, 4, 5)}),
            "embed": node(embed, reads=["scene"], writes=["embeddings"]),
            "loss": losses.metric_learning("ContrastiveLoss", {"distance": {"name": "LpDistance", "p": 2}}),
        }
    )
    config = (
        json.loads(json.dumps(whole["loss"].stage.definition.name)),
        json.loads(json.dumps(whole.config["loss"])),
    )
    assert config[0] == "losses.metric_learning"
    assert build({"loss": config[1]}).config["loss"] == config[1]
    scenes = noise("scene", 6, 3, 4, 5)
    batch = {"image_id": torch.arange(6), "draw": torch.zeros(6, dtype=torch.int64), "scene": scenes}
    batch["target"] = torch.tensor([0, 0, 1, 1, 2, 2])
    objective = Objective(whole, {"metric_learning": 1.0}, batch)
    optimizer = make_optimizer(Optimizer("adam", 0.05, "constant"), num_steps=20)
    state = make_state(objective, optimizer, random.key(0))
    step, values = make_step(objective, optimizer), []
    for _ in range(20):
        state, info = step(state, batch)
        values.append(float(info.loss))
    assert values[-1] < 0.9 * values[0]


def networks() -> Pipeline:
    """A network whose embeddings of one class shall be alike."""
    net = nn.Sequential(nn.Flatten(), nn.Linear(48, D))
    return pipeline(
        {
            "net": node(graph.module(net, trainable=True), reads=["image"], writes=["embeddings"]),
            "loss": losses.metric_learning("TripletMarginLoss", {"margin": 0.5}),
        }
    ).at("train")


def test_it_trains_a_network():
    torch.manual_seed(0)
    batch = {"image_id": torch.arange(6), "draw": torch.zeros(6, dtype=torch.int64)}
    batch |= {"image": noise("image", 6, 3, 4, 4), "target": torch.tensor([0, 1, 0, 1, 2, 2])}
    objective = Objective(networks(), {"metric_learning": 1.0})
    optimizer = make_optimizer(Optimizer("adam", 0.02, "constant"), num_steps=30)
    state = make_state(objective, optimizer, random.key(0))
    step, values = make_step(objective, optimizer), []
    for _ in range(30):
        state, info = step(state, batch)
        values.append(float(info.loss))
    assert values[0] > 0.1
    assert values[-1] < 0.2 * values[0]


def test_a_part_of_the_batch_is_refused():
    """Rows of a micro-batch would lack the neighbors of the others."""
    objective = Objective(networks(), {"metric_learning": 1.0})
    optimizer = make_optimizer(Optimizer(), num_steps=2)
    for settings in ({"micro_batch": 2}, {"processes": 2}):
        with pytest.raises(ValueError, match=r"node 'loss' .* micro-batches or several processes see only"):
            make_step(objective, optimizer, **settings)
