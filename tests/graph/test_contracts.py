"""Batches that are not what their names promise are refused at the first call, with what to do."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from cases import case, classifier, demo, detector, make_batch, make_inputs
from torch import Tensor

from fpatch import compose, data, evaluate, infer, losses, metrics, random
from fpatch.demo.tiny import tiny_study
from fpatch.graph.contracts import CONTRACTS, check_batch, find_uses
from fpatch.graph.node import node
from fpatch.graph.pipeline import pipeline
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.population import make_population_step
from fpatch.optim.step import make_state, make_step

KEY = random.key(2)
TRAIN = demo().at("train")


def change(name: str, how: Callable[[Tensor], Any]) -> Callable[[dict], dict]:
    return lambda batch: {**batch, name: how(batch[name])}


def put(name: str, index: Any, value: float) -> Callable[[dict], dict]:
    def edit(batch: dict) -> dict:
        changed = batch[name].clone()
        changed[index] = value
        return {**batch, name: changed}

    return edit


def to_size(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., :2] + 40, boxes[..., 2:] - boxes[..., :2]], dim=-1)


def swap_corners(boxes: Tensor) -> Tensor:
    return torch.cat([boxes[..., 2:], boxes[..., :2]], dim=-1)


IMAGE = r"batch\['scene'\], which node 'affine' reads, must be float32 \[b = 3, 3, h, w\] in 0..1, got "
QUADS = r"batch\['quads'\], which node 'affine' reads, must be float32 \[b = 3, k.*, 4, 2\] corners .*got "
BOXES = r"batch\['boxes'\], which node 'affine' reads, must be float32 \[b = 3, m.*, 4\] left, top, .*got "

PLANTED = {
    "levels of 8 bits as floats": (
        change("scene", lambda x: x * 255),
        IMAGE + r"values from .* to 25.*; divide by 255",
    ),
    "levels of 16 bits": (
        change("scene", lambda x: x * 65535),
        IMAGE + "values from .* to 65.*; divide by 65535",
    ),
    "bytes": (
        change("scene", lambda x: (x * 255).byte()),
        IMAGE + r"uint8 \[3, 3, 97, 131\]; convert it with .float\(\) / 255",
    ),
    "double precision": (change("scene", Tensor.double), IMAGE + r"float64 .*; convert it with .float\(\)"),
    "half precision": (change("scene", Tensor.half), IMAGE + "float16 .*; convert it"),
    "brain floats": (change("scene", Tensor.bfloat16), IMAGE + "bfloat16 .*; convert it"),
    "channels last": (
        change("scene", lambda x: x.movedim(1, -1)),
        IMAGE + r"float32 \[3, 97, 131, 3\]; channels come first: permute\(0, 3, 1, 2\)",
    ),
    "gray": (
        change("scene", lambda x: x[:, :1]),
        IMAGE + r"float32 \[3, 1, 97, 131\]; repeat gray in three channels: expand",
    ),
    "gray, channels last": (
        change("scene", lambda x: x[:, :1].movedim(1, -1)),
        IMAGE + ".*channels come first",
    ),
    "with transparency": (
        change("scene", lambda x: torch.cat([x, x[:, :1]], 1)),
        IMAGE + r".*leave out the transparency: \[:, :3\]",
    ),
    "two channels": (change("scene", lambda x: x[:, :2]), IMAGE + ".*give 3 in the axis of length 2"),
    "one image without an axis of rows": (
        change("scene", lambda x: x[0]),
        IMAGE + r".*add the axis of rows: \[None\]",
    ),
    "a video": (
        change("scene", lambda x: x[None]),
        IMAGE + r"float32 \[1, 3, 3, 97, 131\]; the frames of a video",
    ),
    "normalized for a network": (
        change("scene", lambda x: (x - 0.45) / 0.22),
        IMAGE + "values from -2.* to 2.*; undo a normalization",
    ),
    "centered": (change("scene", lambda x: 2 * x - 1), IMAGE + "values from -.* to .*; undo a normalization"),
    "one pixel that is no number": (
        put("scene", (1, 2, 50, 49), torch.nan),
        IMAGE + "values that are not finite in row 1",
    ),
    "an infinite pixel": (
        put("scene", (2, 0, 5, 7), torch.inf),
        IMAGE + "values that are not finite in row 2",
    ),
    "an array": (change("scene", Tensor.numpy), IMAGE + "a ndarray; give a tensor"),
    "fewer quads than rows": (
        change("quads", lambda x: x[:2]),
        QUADS + r"float32 \[2, 3, 4, 2\]; give as many rows as the other names",
    ),
    "corners in one row of eight": (
        change("quads", lambda x: x.flatten(2)),
        QUADS + r".*unflatten\(-1, \(4, 2\)\)",
    ),
    "boxes as quads": (change("quads", lambda x: x[:, :, ::2].flatten(2)), QUADS + ".*give 4 axes"),
    "three corners": (change("quads", lambda x: x[:, :, :3]), QUADS + ".*give 4 in the axis of length 3"),
    "corners that are no numbers": (
        put("quads", (1, 0, 2, 0), torch.nan),
        QUADS + r"\[\[.*nan.* in row 1, placement 0; set quad_valid to False",
    ),
    "fewer scenes than rows": (change("scene", lambda x: x[:1]), IMAGE + ".*give as many rows"),
    "whole corners": (change("quads", lambda x: x.nan_to_num().long()), QUADS + "int64 .*; convert it"),
    "another number of valid quads": (
        change("quad_valid", lambda x: x[:, :2]),
        r"'quad_valid'.*bool \[b = 3, k = 3\], got bool \[3, 2\]; give as many placements",
    ),
    "validity as numbers": (
        change("quad_valid", Tensor.float),
        r"'quad_valid'.*must be bool .*got float32 \[3, 3\]; convert it with .bool\(\)",
    ),
    "validity per row": (
        change("box_valid", lambda x: x.any(1)),
        r"'box_valid'.*bool \[b = 3, m = 2\], got bool \[3\]; give 2 axes",
    ),
    "width and height": (
        change("boxes", to_size),
        BOXES + r"\[.*\] in row \d, object 1; add left and top to a width and height",
    ),
    "right before left": (change("boxes", swap_corners), BOXES + ".* in row 0, object 0; add left"),
    "boxes with a score": (
        change("boxes", lambda x: torch.cat([x, x[..., :1]], -1)),
        BOXES + ".*give 4 in the axis of length 5",
    ),
    "one box per row": (change("boxes", lambda x: x[:, 0]), BOXES + ".*give 3 axes"),
    "boxes that are no numbers": (put("boxes", (0, 1, 2), torch.inf), BOXES + ".*inf.* in row 0, object 1"),
    "numbers of images as floats": (
        change("image_id", Tensor.float),
        r"'image_id'\], which every sample reads.*int64 \[b = 3\] .*, got float32 \[3\]; numbers are whole",
    ),
    "numbers of images in a column": (
        change("image_id", lambda x: x[:, None]),
        r"'image_id'.*got int64 \[3, 1\]; give 1 axes",
    ),
    "too few draws": (
        change("draw", lambda x: x[:2]),
        r"'draw'.*int64 \[b = 3\] counts from 0, got int64 \[2\]; give as many rows",
    ),
    "draws below 0": (change("draw", lambda x: x - 1), r"'draw'.*got -1 in row 0; count from 0"),
    "ids of 32 bits": (
        change("image_id", Tensor.int),
        r"'image_id'.*got int32 \[3\]; convert it with .long\(\)",
    ),
    "a negative patch": (
        put("quad_patch", (2, 0), -1),
        r"'quad_patch'\], which node 'implant' reads.*got -1 in row 2; count from 0",
    ),
    "patches as floats": (change("quad_patch", Tensor.float), "'quad_patch'.*got float32"),
}
"""A change of a good batch, and the sentence that it gets."""


@pytest.mark.parametrize("name", PLANTED)
def test_a_batch_that_is_not_what_it_promises_is_refused(name):
    edit, sentence = PLANTED[name]
    batch = edit(make_batch())
    with pytest.raises(ValueError, match=sentence) as caught:
        TRAIN.sample(KEY, batch)
    assert len(str(caught.value)) < 320
    params = TRAIN.init(KEY)
    with pytest.raises(ValueError, match=sentence):
        TRAIN(params, KEY, batch)


LABELED = {
    "a negative label": (
        put("labels", (1, 0), -1),
        r"'labels'\], which node 'hit' reads, must be int64 \[b = 3, m = 2\] .*, got -1 in row 1; count from",
    ),
    "labels as floats": (
        change("labels", Tensor.float),
        r"'labels'.*got float32 \[3, 2\]; numbers are whole: .long\(\)",
    ),
    "more labels than boxes": (
        change("labels", lambda x: torch.cat([x, x], 1)),
        "'labels'.*give as many objects",
    ),
    "labels one by one": (change("labels", lambda x: torch.eye(5)[x]), "'labels'.*give 2 axes"),
}


@pytest.mark.parametrize("name", LABELED)
def test_labels_are_checked_where_they_are_read(name):
    edit, sentence = LABELED[name]
    with pytest.raises(ValueError, match=r"'labels'.*, which node 'vanish' reads, "):
        TRAIN.sample(KEY, edit(make_batch()))
    unlabeled = demo() | {"vanish": losses.vanish(label="any")}
    with pytest.raises(ValueError, match=sentence):
        unlabeled.at("test").sample(KEY, edit(make_batch()))
    unlabeled.at("train").sample(KEY, edit(make_batch()))


@pytest.mark.parametrize(
    ("target", "sentence"),
    [
        (torch.tensor([0, -1, 2]), "'target'.*'loss' reads.*got -1 in row 1; count from 0"),
        (torch.tensor([0.0, 1.0, 2.0]), r"'target'.*must be int64 \[b = 3\].*got float32 \[3\]"),
        (torch.eye(5)[:3], "'target'.*give 1 axes"),
    ],
)
def test_the_class_of_a_row(target, sentence):
    made = pipeline({"victim": infer.classifier(classifier(seed=2)), "loss": losses.misclassify()})
    with pytest.raises(ValueError, match=sentence):
        made.sample(KEY, case(made, target=target).batch)
    metric = metrics.torchmetric(metrics.torchmetrics(name="MeanSquaredError"))
    free = pipeline({"metric": node(metric, reads=["logits", "target"])})
    free.sample(KEY, case(free, target=target).batch)


def test_a_good_batch_passes_with_what_is_absent():
    batch = make_batch()
    batch["labels"][~batch["box_valid"]] = -1
    batch["boxes"][~batch["box_valid"]] = torch.nan
    batch["quad_patch"][~batch["quad_valid"]] = -1
    assert bool(batch["quads"].isnan().any())
    demo().at("test").sample(KEY, batch)
    overshot = {**batch, "scene": batch["scene"] * 1.03 - 0.015}
    demo().at("test").sample(KEY, overshot)


def test_names_go_with_the_wiring():
    """A contract belongs to the name that the stage gives a value, wherever it lies in the batch."""
    made = pipeline({"dim": node(compose.exposure(), reads=["night"], writes=["night"])})
    batch = {"image_id": torch.tensor([1]), "draw": torch.tensor([0])}
    with pytest.raises(ValueError, match=r"batch\['night'\], which node 'dim' reads, must be float32"):
        made.sample(KEY, {**batch, "night": torch.full((1, 3, 8, 8), 9.0)})
    inner = pipeline({"dim": compose.exposure(), "victim": infer.detector(detector(seed=1))})
    assert [use.reader for use in find_uses(inner) if use.name == "image"] == ["node 'dim'"]


def test_what_a_node_writes_is_not_of_the_batch():
    assert "image" not in [use.name for use in find_uses(TRAIN)]
    TRAIN.sample(KEY, {**make_batch(), "image": torch.full((3, 3, 8, 8), 9.0)})


def test_a_function_of_all_values_reads_what_has_a_name():
    def mean(values, params):
        return {"all": values["scene"].mean((1, 2, 3))}

    made = pipeline({"all": mean})
    with pytest.raises(ValueError, match=r"'scene'.*node 'all' reads"):
        made.sample(KEY, make_inputs(scene=torch.full((3, 3, 8, 8), 9.0)))
    made.sample(KEY, make_inputs(target=torch.rand(3)))


def test_under_torch_func_and_on_another_device_only_what_can_be_read_is():
    uses = find_uses(TRAIN)
    batch = make_batch()

    def traced(scene: Tensor) -> Tensor:
        check_batch(uses, {**batch, "scene": scene})
        return scene.sum()

    torch.func.vmap(traced)(torch.full((2, 3, 3, 8, 8), 255.0))
    with pytest.raises(ValueError, match=r"'scene'.*divide by 255"):  # torch.func.grad hides no values
        torch.func.grad(traced)(torch.full((3, 3, 8, 8), 255.0))
    check_batch(uses, {**batch, "scene": torch.empty(3, 3, 8, 8, device="meta")})
    with pytest.raises(ValueError, match=r"'scene'.*channels come first"):
        check_batch(uses, {**batch, "scene": torch.empty(3, 8, 8, 3, device="meta")})


def test_the_table_has_the_standard_names():
    read = {name for n in demo().values() for name in n.reads}
    assert {"scene", "quads", "quad_patch", "quad_valid", "boxes", "box_valid", "labels"} <= read & set(
        CONTRACTS
    )


# -- wherever a batch comes in


class Levels:
    """A data set of the user's own, whose scenes are levels of 0..255."""

    def __init__(self, dataset: data.Dataset) -> None:
        self.own = dataset

    def __getattr__(self, name: str) -> Any:
        return getattr(self.own, name)

    def batch(self, *arguments: Any, **keywords: Any) -> dict[str, Tensor]:
        batch = self.own.batch(*arguments, **keywords)
        return {**batch, "scene": 255 * batch["scene"]}


def test_a_data_set_of_the_users_own_is_checked_in_every_way_it_is_used(tmp_path):
    study = tiny_study(tmp_path)
    scenes: Any = Levels(study.data.open().split("train"))
    train, test = study.pipeline.at("train"), study.pipeline.at("test")
    message = r"'scene'.*in 0..1, got values from .*; divide by 255"
    with pytest.raises(ValueError, match=message):
        evaluate(test, test.init(KEY), scenes, KEY)
    objective = Objective(train, {"misclassify": 1.0})
    optimizer = make_optimizer(Optimizer(), 3)
    state = make_state(objective, optimizer, KEY)
    batch = data.Loader(scenes, KEY, batch_size=2).batch(0)
    with pytest.raises(ValueError, match=message):
        make_step(objective, optimizer)(state, batch)
    with pytest.raises(ValueError, match=message):
        make_population_step([objective], [optimizer])([state], [batch])


def test_a_stage_by_hand_has_one_number_per_row():
    batch = {
        "image": torch.rand(3, 3, 8, 8),
        "image_id": torch.arange(3),
        "draw": torch.zeros(2, dtype=torch.int64),
    }
    with pytest.raises(ValueError, match=r"must have one number per row \[b\], got shapes \[3\] and \[2\]"):
        compose.exposure().sample(KEY, batch)


def test_the_levels_of_images_are_read_once_for_each_shape(monkeypatch):
    reads = []
    plain = torch.Tensor.aminmax

    def counted(self, *args, **settings):
        reads.append(tuple(self.shape))
        return plain(self, *args, **settings)

    monkeypatch.setattr(torch.Tensor, "aminmax", counted)
    dim = pipeline({"dim": compose.exposure()})
    for rows in 2, 2, 3, 2, 3:
        batch = {"image": torch.rand(rows, 3, 8, 9), "image_id": torch.arange(rows)}
        dim.sample(random.key(0), batch | {"draw": torch.zeros(rows, dtype=torch.int64)})
    assert reads == [(2, 3, 8, 9), (3, 3, 8, 9)]
