"""The training of the demo's detector: its losses, its augmentation, and the same bits from a seed."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from torchvision.ops import generalized_box_iou_loss, sigmoid_focal_loss

from fpatch import random
from fpatch.demo.study import QUICK, open_scenes
from fpatch.demo.training import (
    ALPHA,
    GAMMA,
    assign_cells,
    detection_losses,
    detector_pipeline,
    disturb,
    train_detector,
)
from fpatch.demo.victim import STRIDE_PX, TinyDetector, cell_centers
from fpatch.demo.world.scenes import write_scenes
from fpatch.runtime.execution import with_threads


@pytest.fixture(scope="module")
def scenes(tmp_path_factory):
    folder, size = tmp_path_factory.mktemp("demo") / "scenes", replace(QUICK, sizes_hw=((64, 64),))
    return open_scenes(write_scenes(folder, 7, {"train": 24, "test": 2}, size.sizes_hw, workers=1), size)


def trained(scenes, num_steps, seed=0):
    with with_threads(1):
        return train_detector(scenes.split("train"), seed, num_steps, batch_size=8)


def make_batch(b=4, side=64):
    g = torch.Generator().manual_seed(3)
    low = side * (0.1 + 0.3 * torch.rand(b, 2, 2, generator=g))
    return {
        "scene": torch.rand(b, 3, side, side, generator=g),
        "boxes": torch.cat([low, low + side * (0.3 + 0.3 * torch.rand(b, 2, 2, generator=g))], -1),
        "labels": torch.randint(3, (b, 2), generator=g),
        "box_valid": torch.tensor([[True, True], [True, False], [False, False], [True, True]])[:b],
        "image_id": torch.arange(b),
        "draw": torch.zeros(b, dtype=torch.int64),
    }


def found_by(model, batch):
    found = {f"found_{name}": value for name, value in model(batch["scene"]).items()}
    return {**batch, "image": batch["scene"], **found}


def test_the_losses_equal_a_loop_over_cells():
    """The losses of torchvision, of cells that a loop gives to the smallest object around them."""
    batch = make_batch()
    model = TinyDetector(3, 16, torch.Generator().manual_seed(0)).requires_grad_(False)
    values = found_by(model, batch)
    terms = detection_losses(values, {})
    centers = cell_centers(64, 64)
    for row in range(4):
        target, giou, num = torch.zeros(len(centers), 3), 0.0, 0
        for cell, (x, y) in enumerate(centers.tolist()):
            best = None
            for i, (left, top, right, bottom) in enumerate(batch["boxes"][row].tolist()):
                near = max(abs(x - (left + right) / 2), abs(y - (top + bottom) / 2)) < 1.5 * STRIDE_PX
                area = (right - left) * (bottom - top)
                is_inside = left < x < right and top < y < bottom
                if batch["box_valid"][row, i] and near and is_inside and (best is None or area < best[0]):
                    best = area, i
            if best is not None:
                target[cell, batch["labels"][row, best[1]]], num = 1.0, num + 1
                box = batch["boxes"][row, best[1]]
                giou += float(generalized_box_iou_loss(values["found_boxes"][row, cell], box))
        focal = sigmoid_focal_loss(values["found_logits"][row], target, ALPHA, GAMMA, "sum")
        assert float(terms["focal"][row]) == pytest.approx(float(focal) / max(num, 1), rel=1e-4)
        assert float(terms["overlap"][row]) == pytest.approx(giou / max(num, 1), rel=1e-4)
        assert num or row == 2


def test_absent_objects_teach_nothing():
    batch = make_batch()
    model = TinyDetector(3, 16, torch.Generator().manual_seed(0))
    terms = detection_losses(found_by(model, batch), {})
    alone = {name: batch[name][1:2, :1] for name in ("boxes", "labels", "box_valid")}
    expected = detection_losses(found_by(model, {"scene": batch["scene"][1:2], **alone}), {})
    for name in ("focal", "overlap"):
        torch.testing.assert_close(terms[name][1:2], expected[name])
    (gradient,) = torch.autograd.grad(terms["overlap"][2], model.head.weight)
    assert not gradient.any()


def test_rows_are_independent_of_the_batch():
    recipe = detector_pipeline(TinyDetector(3, 16, torch.Generator().manual_seed(0))).at("train")
    params, batch, key = recipe.init(random.key(0)), make_batch(), random.key(1)
    whole, _ = recipe(params, key, batch)
    part, _ = recipe(params, key, {name: value[1:3] for name, value in batch.items()})
    for name in ("image", "focal", "overlap"):
        torch.testing.assert_close(whole[name][1:3], part[name], rtol=0, atol=1e-6)


def test_the_cover_lies_on_the_object_and_replays():
    batch = make_batch() | {"image": torch.full((4, 3, 64, 64), 0.5)}
    keys = random.split(random.key(5), 4)
    sample = dict(disturb({}, keys, batch)[1]) | {
        "on": torch.tensor([True, True, False, True]),
        "is_noise": torch.tensor([True, False, False, False]),
        "std_frac": torch.zeros(4),
        "start_frac": torch.zeros(4, 2),
        "size_frac": torch.full((4, 2), 0.5),
    }
    image = disturb({}, keys, batch, sample)[0]["image"]
    assert torch.equal(image, disturb({}, keys, batch, sample)[0]["image"])
    assert bool((image[2] == 0.5).all())
    x = torch.arange(64) + 0.5
    for row in (0, 1, 3):
        left, top, right, bottom = batch["boxes"][row, 0].tolist()
        across, down = (x > left) & (x < (left + right) / 2), (x > top) & (x < (top + bottom) / 2)
        inside = down[:, None] & across
        assert bool((image[row][:, ~inside] == 0.5).all())
        colors = image[row][:, inside].unique(dim=1)
        assert colors.shape[1] > 20 if row == 0 else torch.equal(colors[:, 0], sample["color"][row])


def test_training_lowers_the_loss(scenes):
    batch = scenes.split("train").batch(scenes.split("train").image_ids)
    losses = [
        sum(
            float(term.detach().mean())
            for term in detection_losses(found_by(trained(scenes, n), batch), {}).values()
        )
        for n in (1, 30)
    ]
    assert losses[1] < 0.7 * losses[0]


def test_training_is_a_function_of_its_seed(scenes):
    state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    first, again, other = trained(scenes, 3), trained(scenes, 3), trained(scenes, 3, seed=1)
    assert torch.equal(torch.get_rng_state(), state)
    np.testing.assert_array_equal(np.random.get_state()[1], numpy_state)
    for name, weights in first.state_dict().items():
        assert torch.equal(weights, again.state_dict()[name])
    assert any(not torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))
    assert not first.training
    assert not any(weights.requires_grad for weights in first.parameters())


def test_no_cell_without_an_object():
    batch = make_batch()
    owner, found = assign_cells(batch["boxes"], torch.zeros(4, 2, dtype=torch.bool), (64, 64))
    assert not found.any()
    assert owner.shape == (4, 64)
