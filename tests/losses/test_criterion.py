"""Criteria of torch.nn by name: every one is a stage or is refused, and rows are those of torch."""

import json
import re
import tomllib
import warnings

import pytest
import torch
from cases import noise
from torch import nn

from fpatch import Objective, build, create, losses, node, pipeline
from fpatch.losses.criterion import _ARGUMENT, _NOT_MAPPED, _REFUSED

B, C = 7, 5
X = 4 * noise("criterion", B, C) - 2
OTHER, THIRD = noise("other", B, C), noise("third", B, C)
CLASSES = torch.arange(B) % C
SIGNS = torch.where(OTHER > 0.5, 1.0, -1.0)
INPUTS = {
    "CrossEntropyLoss": (X, CLASSES),
    "NLLLoss": (X.log_softmax(1), CLASSES),
    "MultiMarginLoss": (X, CLASSES),
    "MultiLabelMarginLoss": (X, torch.tensor([[3, 0, -1, 1, 2]]).repeat(B, 1)),
    "CosineEmbeddingLoss": (X, OTHER, SIGNS[:, 0]),
    "GaussianNLLLoss": (X, OTHER, THIRD + 0.1),
    "BCELoss": (THIRD, OTHER),
    "KLDivLoss": (X.log_softmax(1), OTHER),
    "MarginRankingLoss": (X, OTHER, SIGNS),
    "HingeEmbeddingLoss": (X, SIGNS),
    "SoftMarginLoss": (X, SIGNS),
    "TripletMarginLoss": (X, OTHER, THIRD),
    "TripletMarginWithDistanceLoss": (X, OTHER, THIRD),
    "MultiLabelSoftMarginLoss": (X, (OTHER > 0.5).float()),
}
EVERY = sorted(n for n in vars(nn) if n.endswith("Loss"))
ACCEPTED = [n for n in EVERY if n not in _REFUSED]


def term(name, *values, **arguments):
    """The term [b] of values in the order of the criterion's call."""
    stage = losses.criterion(name, arguments)
    return stage.apply({}, {}, dict(zip(stage.definition.reads, values, strict=True)))["criterion"]


def test_every_criterion_of_torch_is_known():
    assert len(ACCEPTED) >= 20
    assert set(_REFUSED) & set(EVERY) >= {"CTCLoss"}
    assert {*INPUTS, *_ARGUMENT, *_NOT_MAPPED} <= set(ACCEPTED)


@pytest.mark.parametrize("name", ACCEPTED)
def test_the_mean_of_the_rows_is_the_mean_of_torch(name):
    values = INPUTS.get(name, (X, OTHER))
    found = term(name, *values)
    assert found.shape == (B,)
    with warnings.catch_warnings():  # of KLDivLoss, on its mean
        warnings.simplefilter("ignore")
        expected = getattr(nn, name)()(*values)
    torch.testing.assert_close(found.mean(), expected)
    for row in range(B):
        alone = term(name, *(value[row : row + 1] for value in values))
        torch.testing.assert_close(found[row : row + 1], alone)
    assert len(found.unique()) > B // 2


@pytest.mark.parametrize("name", ACCEPTED)
def test_it_is_mapped_and_compiled_as_it_declares(name):
    values = INPUTS.get(name, (X, OTHER))
    traits = losses.criterion(name).definition.traits
    population = torch.stack([values[0], 0.9 * values[0]])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        try:
            found = torch.func.vmap(lambda x: term(name, x, *values[1:]))(population)
        except UserWarning:
            assert not traits.vmap
        else:
            assert traits.vmap
            torch.testing.assert_close(found, torch.stack([term(name, x, *values[1:]) for x in population]))


def test_elements_are_averaged_over_all_axes_but_the_rows():
    images, others = noise("images", 3, 2, 5, 4), noise("others", 3, 2, 5, 4)
    found = term("SmoothL1Loss", images, others, beta=0.2)
    for row in range(3):
        expected = nn.SmoothL1Loss(beta=0.2)(images[row], others[row])
        torch.testing.assert_close(found[row], expected)
    labels = (4 * noise("labels", 3, 5, 4)).long()
    logits = noise("maps", 3, 4, 5, 4)
    expected = nn.CrossEntropyLoss(reduction="none")(logits, labels).mean((1, 2))
    torch.testing.assert_close(term("CrossEntropyLoss", logits, labels), expected)


def test_weights_of_classes_are_lists():
    weight = [0.5, 1.0, 2.0, 4.0, 1.0]
    found = term("CrossEntropyLoss", X, CLASSES, weight=weight)
    plain = term("CrossEntropyLoss", X, CLASSES)
    torch.testing.assert_close(found, plain * torch.tensor(weight)[CLASSES])
    assert losses.criterion("CrossEntropyLoss", {"weight": torch.tensor(weight)}) == losses.criterion(
        "CrossEntropyLoss", {"weight": weight}
    )
    found = term("BCEWithLogitsLoss", X, (OTHER > 0.5), pos_weight=weight)  # booleans count as 0 and 1
    expected = nn.BCEWithLogitsLoss(reduction="none", pos_weight=torch.tensor(weight))
    torch.testing.assert_close(found, expected(X, (OTHER > 0.5).float()).mean(1))


def test_an_ignored_target_counts_as_zero():
    target = CLASSES.clone()
    target[2] = -100
    found = term("CrossEntropyLoss", X, target)
    assert found[2] == 0
    assert found.mean() * B / (B - 1) == pytest.approx(float(nn.CrossEntropyLoss()(X, target)))


def test_half_precision_is_widened():
    found = term("MSELoss", X.half(), OTHER.bfloat16())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, term("MSELoss", X.half().float(), OTHER.bfloat16().float()))


def test_a_study_names_it():
    text = """
    [pipeline.pixels]
    stage = "create.pixels"
    shapes = {a = [3, 4, 5]}
    [pipeline.depth]
    stage = "losses.criterion"
    name = "HuberLoss"
    arguments = {delta = 0.5}
    reads = {input = "image", target = "scene"}
    writes = {criterion = "depth"}
    [pipeline.label]
    stage = "losses.criterion"
    name = "CrossEntropyLoss"
    arguments = {weight = [1.0, 2.0]}
    reads = {input = "logits"}
    """
    whole = build(tomllib.loads(text)["pipeline"])
    assert whole.terms == ("depth", "criterion")
    assert build(json.loads(json.dumps(whole.config))).config == whole.config
    objective = Objective(whole, {"depth": 2.0, "criterion": 1.0})
    batch = {
        "image_id": torch.arange(2),
        "draw": torch.zeros(2, dtype=torch.int64),
        "image": noise("image", 2, 3, 4, 4),
        "scene": noise("scene", 2, 3, 4, 4),
        "logits": noise("logits", 2, 2),
        "target": torch.tensor([0, 1]),
    }
    loss = objective({"a": torch.zeros(3, 4, 5)}, {}, batch)
    depth = nn.HuberLoss(delta=0.5)(batch["image"], batch["scene"])
    label = nn.CrossEntropyLoss(reduction="none")(batch["logits"], batch["target"])
    torch.testing.assert_close(loss.value, 2 * depth + (label * torch.tensor([1.0, 2.0])).mean())


REFUSALS = [
    ("CrossEntropy", {}, "torch.nn has no criterion 'CrossEntropy'; did you mean 'CrossEntropyLoss'?"),
    ("CTCLoss", {}, "criterion('CTCLoss') is refused: its rows are the second axis of log_probs"),
    ("LinearCrossEntropyLoss", {}, "is refused: it has trained weights"),
    ("AdaptiveLogSoftmaxWithLoss", {}, "is refused: it has trained weights"),
    ("L1Loss", {"reduction": "sum"}, "reduction = 'sum' reduces rows; leave the mean to the objective"),
    ("L1Loss", {"size_average": True}, "size_average = True reduces rows"),
    ("HuberLoss", {"detla": 1.0}, "there is no argument 'detla'; did you mean 'delta'?"),
    ("MultiMarginLoss", {"p": 3}, "criterion('MultiMarginLoss'): only p == 1 and p == 2 supported"),
    ("CrossEntropyLoss", {"weight": "heavy"}, "criterion('CrossEntropyLoss'): "),
    (
        "TripletMarginWithDistanceLoss",
        {"distance_function": torch.cdist},
        "distance_function must be a number, a bool, a string or a list, got",
    ),
]


@pytest.mark.parametrize(("name", "arguments", "message"), REFUSALS)
def test_a_wrong_setting_is_refused(name, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        losses.criterion(name, arguments)


BAD = [
    ("MSELoss", (X[:, :1], X[:, 0]), {}, "'target' must have the shape of 'input', [7, 1], got [7]; a broad"),
    ("MSELoss", (X, {"a": X}), {}, "'target' must be a tensor [b, ...], got a mapping of 'a'"),
    ("L1Loss", (X, torch.tensor(1.0)), {}, "'target' must be a tensor [b, ...], got float32 []"),
    ("CrossEntropyLoss", (X, CLASSES + 1), {}, "refuses input float32 [7, 5], target int64 [7]: Target 5 is"),
    ("CrossEntropyLoss", (X, CLASSES[:3]), {}, "refuses input float32 [7, 5], target int64 [3]: "),
    ("CrossEntropyLoss", (X, CLASSES), {"weight": [1.0, 2.0]}, "weight tensor should be defined"),
    ("CrossEntropyLoss", (X, CLASSES), {"weight": []}, "weight tensor should be defined"),
    ("CrossEntropyLoss", (X[:, 0], OTHER[:, 0]), {}, "has no number per row for input float32 [7], target"),
    ("TripletMarginLoss", (X[:, 0], X[:, 1], X[:, 2]), {}, "has no number per row for anchor float32 [7]"),
    ("BCELoss", (X, OTHER), {}, "all elements of input should be between 0 and 1"),
    (
        "BCELoss",
        (THIRD[:, 0], OTHER[:, 0]),
        {"weight": [1.0] * B},
        "weight must have fewer axes than 'input'",
    ),
    ("HuberLoss", (X, OTHER), {"delta": -1.0}, "refuses input float32 [7, 5], target float32 [7, 5]: "),
    ("GaussianNLLLoss", (X, OTHER, -THIRD), {}, "var has negative entry/entries"),
]


@pytest.mark.parametrize(("name", "values", "arguments", "message"), BAD)
def test_wrong_values_are_refused(name, values, arguments, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        term(name, *values, **arguments)


def test_a_wrong_number_of_reads_names_the_arguments():
    with pytest.raises(ValueError, match=r"reads 3 names, \['anchor', 'positive', 'negative'\], but"):
        pipeline(
            {
                "pixels": create.pixels({"a": (3, 4, 4)}),
                "triplet": node(losses.criterion("TripletMarginLoss"), reads=["a", "b"]),
            }
        )
