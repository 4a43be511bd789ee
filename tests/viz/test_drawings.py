"""Drawings show what the values say, and stay out of the way of training."""

import dataclasses
import logging
from typing import Any

import numpy as np
import pytest
import torch
from cases import classifier, demo, drawer, make_batch, make_inputs
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from typecheck import unchecked

from fpatch import compose, create, implant, infer, losses, metrics, node, pipeline, random, train, viz
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.stage_views import view_stages
from fpatch.graph.build import build
from fpatch.optim.gradient import value_and_grad
from fpatch.optim.objective import Objective
from fpatch.study.dry_run import dry_run
from fpatch.viz import style

ORANGE, BLUE = style.rgb(style.FOUND), style.rgb(style.TRUTH)


def draw(stage, **values) -> np.ndarray:
    """The picture of the first row, [h, w, 3]."""
    picture = stage.apply({}, {}, values)["picture"]
    assert picture.dtype == torch.uint8
    return picture[0].permute(1, 2, 0).numpy()


def has(picture: np.ndarray, color) -> np.ndarray:
    return (np.abs(picture.astype(int) - color) < 3).all(-1)


def gray(height: int, width: int, rows: int = 1) -> torch.Tensor:
    return torch.full((rows, 3, height, width), 0.5)


# -- a function of the user


def mark(image, label, gain=1.0, size=2):
    ImageDraw.Draw(image).rectangle((0, 0, size, size), fill=(int(label * gain), 0, 0))
    return image


def test_a_function_is_called_once_per_image_with_its_arguments():
    stage = viz.drawing(mark)
    assert stage.definition.reads == ("image", "label")
    assert stage.definition.optional == ("gain", "size")
    values = {"image": gray(8, 12, 2), "label": torch.tensor([10, 20]), "gain": torch.tensor([1.0, 3.0])}
    pictures = stage.apply({}, {}, values)["picture"]
    assert pictures[:, 0, 1, 1].tolist() == [10, 60]
    assert pictures[:, :, 5, 5].unique().tolist() == [128]


def test_types_by_name_beat_the_type_of_all():
    seen: list[Any] = []

    def look(image, logits, patch):
        seen.append((type(image), type(logits), type(patch["hood"])))
        return np.zeros((4, 6, 3))

    values = {"image": gray(4, 6), "logits": torch.zeros(1, 2), "patch": {"hood": torch.rand(3, 4, 4)}}
    draw(viz.drawing(look), **values)
    draw(viz.drawing(look, by_type="tensor", by_name={"image": "numpy", "patch/hood": "pil"}), **values)
    assert seen == [
        (Image.Image, np.ndarray, np.ndarray),
        (np.ndarray, torch.Tensor, Image.Image),
    ]


def test_a_function_may_ask_for_all_values_and_another_drawing_for_its_picture():
    p = pipeline(
        {
            "all": viz.drawing(lambda **values: Image.new("RGB", (len(values), 4)), inputs=("*",)),
            "again": viz.drawing(lambda picture: picture.resize((8, 8))),
        }
    )
    batch = {"image": gray(4, 6), "logits": torch.zeros(1, 2), "image_id": torch.tensor([0])}
    assert p.upto("all").apply({}, {}, batch)["picture"].shape == (1, 3, 4, 3)
    assert p.apply({}, {}, batch)["picture"].shape == (1, 3, 8, 8)


def test_a_function_may_ask_for_the_phase():
    seen: list[str] = []

    def look(image, phase):
        seen.append(phase)
        return image

    p = pipeline({"look": viz.drawing(look)})
    p.at("test").apply({}, {}, {"image": gray(4, 6, 2)})
    assert seen == ["test", "test"]


def test_a_config_names_a_function_by_its_loader():
    p = pipeline({"answer": viz.drawing(drawer(), ("image", "logits", "target"))})
    assert p.config["answer"]["function"] == {
        "loader": "cases:drawer",
        "weights": None,
        "sha256": None,
        "arguments": {},
    }
    assert build(p.config).config == p.config
    again = build(pipeline({"answer": viz.drawing(mark)}).config, {"answer/function": mark})
    assert again["answer"].stage.definition.reads == ("image", "label")


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        ({"function": "mark"}, "must be a function or a resource of one, got a str"),
        ({"function": drawer()}, r"drawing\(inputs\) must name the arguments"),
        ({"function": lambda: None}, "names no arguments"),
        ({"function": lambda *images: None}, "names no arguments"),
        ({"function": lambda image, /: None}, "takes 'image' by position alone"),
        ({"function": mark, "by_type": "array"}, "by_type"),
        ({"function": mark, "by_name": {"image": "png"}}, r"drawing\(image\) must be 'numpy' or 'pil'"),
        ({"function": mark, "by_name": {"imgae": "pil"}}, "gets no 'imgae'; did you mean 'image'"),
        ({"function": mark, "whole": ("titles",)}, "gets no 'titles'"),
    ],
)
def test_a_function_that_cannot_be_called_is_refused(settings, error):
    with unchecked(), pytest.raises(ValueError, match=error):
        viz.drawing(**settings)


def test_a_drawing_of_another_size_or_kind_is_refused_with_its_row():
    values = {"image": gray(4, 6, 3), "label": torch.tensor([4, 4, 9])}
    grow = viz.drawing(lambda image, label: image.resize((int(label), 4)))
    with pytest.raises(ValueError, match="row 0 is 4 x 4 pixels, and that of row 2 is 9 x 4; draw all rows"):
        grow.apply({}, {}, values)
    with pytest.raises(ValueError, match=r"drawing: the picture of row 0: a drawing must be .* got None"):
        viz.drawing(lambda image: None).apply({}, {}, values)
    with pytest.raises(ZeroDivisionError) as caught:
        viz.drawing(lambda image, label: 1 / int(label - 9)).apply({}, {}, values)
    assert any("row 2" in note for note in caught.value.__notes__)


# -- ready drawings


def test_bars_are_as_long_as_the_probabilities_and_the_true_class_is_blue():
    logits = torch.tensor([[0.0, 2.0, 1.0, -3.0]])
    probabilities = torch.softmax(logits[0], 0).numpy()
    stage = viz.class_bars(("a", "b", "c", "d"), num_classes=2)
    picture = draw(stage, image=gray(20, 32), logits=logits, target=torch.tensor([2]))
    below = picture[18 + 200 :]
    for color, number in ((ORANGE, 1), (BLUE, 2)):
        width = has(below, color).sum(1).max()
        assert width == pytest.approx(1 + 0.36 * 320 * probabilities[number], abs=1.5)
    rest = has(below[36:, 160:276], style.rgb(style.PALE)).sum(1).max()
    assert rest == pytest.approx(1 + 0.36 * 320 * probabilities[[0, 3]].sum(), abs=1.5)
    assert has(below[:18], ORANGE).any()  # the likeliest stands first
    assert has(below[18:36], BLUE).any()
    assert not has(below[:18], BLUE).any()


def test_one_logit_is_a_sigmoid_and_what_is_not_finite_has_no_bars():
    one = draw(viz.class_bars(), image=gray(20, 32), logits=torch.tensor([[1.0]]))
    width = has(one[200:], ORANGE).sum(1).max()
    assert width == pytest.approx(1 + 0.36 * 320 / (1 + np.exp(-1)), abs=1.5)
    none = draw(viz.class_bars(), image=gray(20, 32), logits=torch.tensor([[torch.nan]]))
    assert none.shape == one.shape
    assert not has(none, ORANGE).any()
    assert (none[203:] < 100).any()  # it says so


@pytest.mark.parametrize("target", [-1, 80, 3])
def test_eighty_long_names_fit_and_pictures_have_one_size(target):
    names = tuple(f"a class of a very long name, number {i} of eighty" for i in range(80))
    values = {
        "image": gray(9, 12, 3),
        "logits": torch.linspace(-3, 3, 240).view(3, 80),
        "target": torch.full((3,), target),
    }
    pictures = viz.class_bars(names, width_px=160).apply({}, {}, values)["picture"]
    assert pictures.shape == (3, 3, 18 + 120 + 3 + 6 * 18 + 3, 160)
    names_end, bars_begin = pictures[:, :, 142:, 76:79], round(0.5 * 160)
    assert bool((names_end == 255).all()), f"a name reaches the bars at {bars_begin}"


def final(boxes, scores, labels=None, valid=None) -> dict[str, Any]:
    boxes, scores = torch.tensor([boxes]), torch.tensor([scores])
    labels = torch.zeros(scores.shape, dtype=torch.int64) if labels is None else torch.tensor([labels])
    valid = torch.ones(scores.shape, dtype=torch.bool) if valid is None else torch.tensor([valid])
    return {"final": {"boxes": boxes, "scores": scores, "labels": labels, "valid": valid}}


def bounds(found: np.ndarray) -> list[int]:
    y, x = np.nonzero(found)
    return [x.min(), y.min(), x.max(), y.max()]


def test_boxes_lie_where_the_numbers_say():
    stage = viz.box_overlay(width_px=128, class_names=("a",))
    boxes = [[8.0, 24.0, 40.0, 44.0]]
    found = draw(stage, image=gray(64, 64), detections=final(boxes, [0.9]))
    assert found.shape == (22 + 128, 128, 3)
    left, _, right, bottom = bounds(has(found[60:], ORANGE))
    assert [left, right] == pytest.approx([16, 80], abs=1)
    assert bottom + 60 - 22 == pytest.approx(88, abs=1)
    truth = draw(
        stage,
        image=gray(64, 64),
        detections=final(boxes, [0.2]),
        boxes=torch.tensor([[*boxes, [0.0, 0.0, 64.0, 64.0], [torch.nan] * 4]]),
        box_valid=torch.tensor([[True, False, True]]),
        labels=torch.tensor([[0, 0, 0]]),
    )
    assert not has(truth, ORANGE).any()
    left, _, right, bottom = bounds(has(truth[60:], BLUE))
    assert [left, right, bottom + 38] == pytest.approx([16, 80, 88], abs=1)


def test_the_best_answers_are_drawn_and_answers_that_are_not_finite_are_none():
    boxes, stage = (
        [[2.0, 2.0, 10.0, 10.0], [40.0, 40.0, 60.0, 60.0]],
        viz.box_overlay(num_answers=1, width_px=64),
    )
    drawn = draw(stage, image=gray(64, 64), detections=final(boxes, [0.6, 0.9]))
    assert bounds(has(drawn, ORANGE)[70:]) == pytest.approx([40, 0, 60, 12], abs=1)
    assert not has(drawn, ORANGE)[24:32, :12].any()
    for bad in ([torch.nan, 0.9], [0.9, 0.9]):
        nothing = final([[torch.nan] * 4, boxes[1]], bad, valid=[True, False])
        assert not has(draw(stage, image=gray(64, 64), detections=nothing), ORANGE).any()
    with pytest.raises(ValueError, match="final"):
        draw(stage, image=gray(64, 64), detections={"dense": {}})


def test_a_hundred_answers_are_one_picture_per_image():
    detections = {"final": {n: v for n, v in make_inputs()["detections"]["final"].items()}}
    values = {n: make_inputs()[n] for n in ("image", "boxes", "labels", "box_valid")}
    pictures = viz.box_overlay(width_px=64, num_answers=100, score=0.0).apply(
        {}, {}, {**values, "detections": detections}
    )["picture"]
    assert pictures.shape[0] == 3  # captions of other lengths, one size


def test_a_class_has_its_color_in_every_picture_and_hidden_ones_none():
    segments = torch.tensor([[[1, 0, 255, -1], [2, 2, 2, 2]]])
    stage = viz.mask_overlay(opacity=1.0, hidden=(0, 255), width_px=64)
    picture = draw(stage, image=gray(32, 64), segments=segments)
    colors = [picture[y, x].tolist() for y, x in ((8, 8), (8, 24), (8, 40), (8, 56), (24, 30))]
    one, two = (list(style.rgb(style.COLORS[i])) for i in (1, 2))
    assert colors == [one, [128] * 3, [128] * 3, [128] * 3, two]
    swatches = picture[32:]
    assert has(swatches, one).any()
    assert has(swatches, two).any()


def test_classes_that_share_a_color_differ_by_their_hatch():
    pictures = [
        draw(
            viz.mask_overlay(opacity=1.0, width_px=64), image=gray(64, 64), segments=torch.full((1, 4, 4), i)
        )
        for i in range(0, 84, 7)
    ]
    areas = [has(p[:64], style.rgb(style.COLORS[0])) for p in pictures]
    assert areas[0].all()
    assert all(0.4 < area.mean() < 0.8 for area in areas[1:])
    for i, area in enumerate(areas):
        assert all((area != other).mean() > 0.1 for other in areas[:i])


def test_logits_and_masks_are_segments_too():
    numbers = torch.tensor([[[1, 0, 3], [2, 2, 2]]])
    logits = torch.nn.functional.one_hot(numbers, 4).permute(0, 3, 1, 2).float()
    stage = viz.mask_overlay(width_px=96)
    expected = draw(stage, image=gray(32, 48), segments=numbers)
    assert np.array_equal(draw(stage, image=gray(32, 48), segments=logits), expected)
    assert np.array_equal(draw(stage, image=gray(32, 48), segments=numbers.to(torch.uint8)), expected)
    mask = draw(stage, image=gray(32, 48), segments=numbers == 2)
    assert np.array_equal(mask, draw(stage, image=gray(32, 48), segments=(numbers == 2).long()))
    both = draw(stage, image=gray(32, 48), segments=numbers, true_segments=numbers)
    assert np.array_equal(both[18:82, :96], both[18:82, 96 + 6 :])


@pytest.mark.parametrize(
    ("segments", "error"),
    [
        (torch.zeros(1, 4, 4), "got float32 .*; convert numbers with .long()"),
        (torch.zeros(1, 3, 4, 4).long(), "give numbers of classes, or logits"),
        (torch.full((1, 3, 4, 4), torch.nan), "logits 'segments' must be finite"),
    ],
)
def test_what_is_no_segmentation_is_refused(segments, error):
    with pytest.raises(ValueError, match=error):
        draw(viz.mask_overlay(), image=gray(8, 8), segments=segments)


@pytest.mark.parametrize("stage", [viz.class_bars, viz.box_overlay, viz.mask_overlay])
def test_settings_out_of_range_are_refused(stage):
    with pytest.raises(ValueError, match=r"\(width_px\) must be at least 64"):
        stage(width_px=10)


# -- in a pipeline


def attack(**more):
    """A patch and a classifier, with pictures in every phase but inference."""
    return pipeline(
        {
            "pixels": create.pixels({"hood": (3, 8, 8), "roof": (3, 5, 9)}),
            "implant": implant.warp(),
            "victim": infer.classifier(classifier(seed=2)),
            "wrong": node(losses.misclassify(), phases="train"),
            "hit": node(metrics.class_hit(), phases="eval"),
            "bars": node(viz.class_bars(width_px=64), phases={"train", "validation", "pictures"}),
            **more,
        }
    )


def rows_of(p, **more):
    inputs = make_inputs() | more
    return {n: inputs[n] for n in ("image_id", "draw", *p.required())}


def test_one_recipe_gives_inference_alone_with_pictures_or_training():
    p = attack()
    params, key = p.init(random.key(0)), random.key(1)
    alone, drawn = p.at("inference"), p.at("pictures")
    out, _ = alone(params, key, rows_of(alone))
    with_pictures, _ = drawn(params, key, rows_of(drawn))
    assert "picture" not in out
    assert with_pictures["picture"].shape[:2] == (3, 3)
    assert torch.equal(out["logits"], with_pictures["logits"])
    assert p.at("train").terms == ("misclassify",)
    assert p.without("bars").at("train")(params, key, rows_of(p.at("train")))[1].keys() == (
        p.at("train")(params, key, rows_of(p.at("train")))[1].keys()
    )


@pytest.mark.parametrize("transform", ["autograd", "func"])
def test_a_drawing_alive_in_training_is_never_run_by_a_step(transform):
    calls: list[int] = []

    def count(image):
        calls.append(1)
        return image

    p = attack(count=node(viz.drawing(count), writes=["count"])).at("train")
    params, batch = p.init(random.key(0)), rows_of(p)
    sample = p.sample(random.key(1), batch)
    results = [
        value_and_grad(Objective(part, {"misclassify": 1.0}), transform)(params, sample, batch)
        for part in (p, p.without("bars", "count"))
    ]
    assert not calls
    (grads, loss), (expected_grads, expected) = results
    assert torch.equal(loss.value, expected.value)
    assert all(torch.equal(grads[name], expected_grads[name]) for name in params)
    p.apply(params, sample, batch)
    assert len(calls) == 3


@pytest.mark.parametrize(
    ("parts", "error"),
    [
        (
            {"bars": viz.class_bars(), "dim": node(compose.exposure(), reads=["picture"], writes=["dim"])},
            "node 'dim' reads 'picture', which the drawing 'bars' writes for people",
        ),
        (
            {"mine": node(viz.drawing(lambda scene: scene), writes=["image"]), "dim": compose.exposure()},
            "the drawing 'mine' writes 'image', which a victim would see",
        ),
        ({"a": viz.class_bars(), "b": viz.class_bars()}, "nodes 'a' and 'b' both write 'picture'"),
    ],
)
def test_only_drawings_read_pictures(parts, error):
    with pytest.raises(ValueError, match=error):
        pipeline(parts)


def test_views_draw_few_rows_with_the_patch_and_without():
    seen: list[int] = []

    def look(image, image_id):
        seen.append(int(image_id))
        return image

    p = attack(look=node(viz.drawing(look), phases="eval", writes=["look"])).at("validation")
    ids = torch.tensor([4, 4, 5])
    batch = rows_of(p, image_id=ids)
    params = p.init(random.key(0))
    views = view_stages(p, params, p.sample(random.key(1), batch), batch, "validation")
    assert seen == [4, 5, 4, 5]  # the first row of each image, patched and without
    assert not views.failed
    assert views.shown["bars/control and patched"].shape[0] == 3
    pair = views.shown["look/control and patched"]
    row = pair[:, 8 + 22 : 8 + 22 + 97]
    assert row.shape[2] == 3 * 8 + 2 * 160
    assert bool((row[:, :, 8:168] != row[:, :, 176:336]).any())
    assert "picture" not in views.patched


def test_a_picture_that_no_patch_changes_is_shown_once():
    p = pipeline({"dim": compose.exposure(), "look": viz.drawing(lambda image: image)}).at("test")
    batch = {n: make_inputs()[n] for n in ("image_id", "draw", "image")}
    shown = view_stages(p, {}, p.sample(random.key(1), batch), batch, "test").shown
    assert shown["look/control and patched"].shape[2] == 160 + 2 * 8


def test_a_drawing_that_fails_at_first_ends_before_training_and_later_is_a_warning(tmp_path, caplog):
    calls: list[int] = []

    def tire(image):
        calls.append(1)
        if len(calls) > most:
            raise RuntimeError("the pen is empty")
        return image

    study = tiny_study(tmp_path)
    study = dataclasses.replace(
        study, pipeline=study.pipeline | {"tire": node(viz.drawing(tire), phases="validation")}
    )
    most = 0
    with pytest.raises(
        ValueError, match=r"before training, .* the drawing 'tire' failed: RuntimeError: the pen"
    ):
        dry_run(study)
    calls.clear()
    most = 4  # two rows, with the patch and without
    with caplog.at_level(logging.WARNING):
        run = train(study)
    assert run.checkpoint_steps()[-1] == 4
    assert "validation: the drawing 'tire' failed: RuntimeError: the pen is empty" in caplog.text


def test_pictures_change_no_bit_of_a_training(tmp_path):
    study = tiny_study(tmp_path)
    drawn = dataclasses.replace(
        study, pipeline=study.pipeline | {"bars": viz.class_bars(("lamp", "nothing"))}
    )
    (run, plain), states = (train(drawn), train(study)), []
    for made in (run, plain):
        file = made.folder / "checkpoints" / "step-00000004.safetensors"
        states.append(load_file(file))
    assert all(torch.equal(states[0][name], value) for name, value in states[1].items())
    assert list((run.folder / "images" / "validation" / "bars" / "control and patched").glob("*.png"))


def test_the_demo_may_draw_its_detections():
    p = (demo() | {"boxes": node(viz.box_overlay(("car", "bus"), score=0.0), phases="test")}).at("test")
    batch = make_batch()
    params = p.init(random.key(0))
    views = view_stages(p, params, p.sample(random.key(1), batch), batch, "test")
    assert not views.failed
    assert views.shown["boxes/control and patched"].shape[2] == 3 * 8 + 2 * 320
