"""A batch becomes a dict per image, and what is no image is refused with its name and the way out."""

from collections import namedtuple

import matplotlib.figure
import numpy as np
import pytest
import torch
from PIL import Image
from typecheck import unchecked

from fpatch.data import write_image
from fpatch.viz import unpack
from fpatch.viz.conversions import to_levels, to_picture, to_pil


def make_batch():
    return {
        "image": torch.rand(3, 3, 4, 6),
        "found": {"final": {"scores": torch.arange(6.0).view(3, 2), "valid": torch.ones(3, 2).bool()}},
        "titles": ["a", "b", "c"],
        "patch": {"hood": torch.rand(3, 5, 7), "own": torch.rand(3, 3, 5, 7)},
        "gain": 0.5,
        "size": torch.tensor(8),
        "note": "night",
        "nothing": None,
    }


def test_every_image_gets_its_rows_nested_and_the_rest_whole():
    batch = make_batch()
    rows = unpack(batch)
    assert len(rows) == 3
    for i, row in enumerate(rows):
        assert list(row) == list(batch)
        assert np.array_equal(row["image"], batch["image"][i].numpy())
        assert row["found"]["final"]["scores"].tolist() == [2.0 * i, 2.0 * i + 1]
        assert row["found"]["final"]["valid"].dtype == np.bool_
        assert row["titles"] == "abc"[i]
        assert np.array_equal(row["patch"]["hood"], batch["patch"]["hood"].numpy())  # 3 channels, not rows
        assert np.array_equal(row["patch"]["own"], batch["patch"]["own"][i].numpy())
        assert (row["gain"], int(row["size"]), row["note"], row["nothing"]) == (0.5, 8, "night", None)


def test_a_name_beats_a_type_and_the_longest_path_beats_its_group():
    by_type = {torch.float32: "tensor", torch.Tensor: lambda x: "other", str: str.upper}
    by_name = {"found": lambda x: "group", "found/final/valid": "numpy", "image": "pil", "note": len}
    row = unpack(make_batch(), by_type, by_name)[1]
    assert isinstance(row["image"], Image.Image)
    assert row["found"]["final"]["scores"] == "group"
    assert row["found"]["final"]["valid"].tolist() == [True, True]
    assert isinstance(row["patch"]["hood"], torch.Tensor)
    assert row["size"] == "other"  # int64 has no conversion of its own
    assert (row["titles"], row["note"]) == ("B", 5)


def test_the_nearest_class_counts():
    class Title(str):
        """A kind of string."""

    values = {"titles": [Title("a"), "b"]}
    first, second = unpack(values, {object: lambda x: 0, str: lambda x: 1, Title: lambda x: 2})
    assert (first["titles"], second["titles"]) == (2, 1)


def test_lists_of_dicts_and_of_tensors_of_other_sizes_have_rows_and_tuples_with_names_have_none():
    found = [{"boxes": torch.zeros(2, 4)}, {"boxes": torch.zeros(5, 4)}]
    values = {
        "found": found,
        "masks": torch.zeros(2, 1, 4, 4),
        "range": namedtuple("Range", "low high")(0, 1),
    }
    first, second = unpack(values, by_name={"found/boxes": len})
    assert (first["found"], second["found"]) == ({"boxes": 2}, {"boxes": 5})
    assert first["range"] == (0, 1)
    assert first["masks"].shape == (1, 4, 4)


def test_what_is_drawn_on_does_not_reach_the_batch():
    batch = {"image": torch.zeros(2, 3, 4, 6), "flags": torch.zeros(2, 5)}
    for row in unpack(batch, by_name={"flags": "tensor"}):
        row["image"][:] = 1
        row["flags"].fill_(1)
    for row in unpack({"image": torch.zeros(2, 4, 6, dtype=torch.uint8)}, by_name={"image": "pil"}):
        row["image"].paste(255, (0, 0, 2, 2))
    assert not batch["image"].any()
    assert not batch["flags"].any()


def test_tensors_of_any_kind_lose_their_graph():
    values = {
        "logits": torch.zeros(2, 3, requires_grad=True) * 2,
        "half": torch.ones(2, 3, dtype=torch.bfloat16),
    }
    row = unpack(values)[0]
    assert row["logits"].dtype == row["half"].dtype == np.float32
    assert not unpack(values, {torch.Tensor: "tensor"})[0]["logits"].requires_grad


@pytest.mark.parametrize(
    ("values", "settings", "error"),
    [
        (
            {"image": torch.zeros(3, 2), "titles": ["a", "b"]},
            {},
            "'image' has 3 rows, and 'titles' has 2; .* whole=\\('titles',\\)",
        ),
        ({"a": {"b": torch.zeros(3, 2), "c": np.zeros((4, 2))}}, {}, "'a/b' has 3 rows, and 'a/c' has 4"),
        ({"gain": 1.0, "patch": {"hood": torch.zeros(3, 4, 4)}}, {}, "no value has rows"),
        (
            {"image": torch.zeros(3, 2)},
            {"by_name": {"imgae": "pil"}},
            "no value 'imgae'; did you mean 'image'",
        ),
        ({"image": torch.zeros(3, 2)}, {"whole": ("titlse",)}, "no value 'titlse'"),
        ({"image": torch.zeros(3, 2)}, {"by_type": {torch.Tensor: "array"}}, "'numpy' or 'pil' or 'tensor'"),
        ({"image": torch.zeros(3, 2, 4, 6)}, {"by_name": {"image": "pil"}}, "'image': .* got \\[2, 4, 6\\]"),
        (
            {"titles": ["a"]},
            {"by_name": {"titles": "pil"}},
            "'titles': .* from a tensor or an array, got a str",
        ),
        (torch.zeros(3, 2), {}, "unpack\\(values\\) must be a mapping"),
    ],
)
def test_what_cannot_be_unpacked_is_refused(values, settings, error):
    with unchecked(), pytest.raises(ValueError, match=error):
        unpack(values, **settings)


def test_a_list_of_other_length_may_pass_whole():
    values = {"image": torch.zeros(3, 2), "names": ["car", "bus"], "found": {"n": torch.zeros(5)}}
    assert unpack(values, whole=("names", "found"))[2]["names"] == ["car", "bus"]


@pytest.mark.parametrize("transform", [torch.func.vmap, torch.func.grad])
def test_traced_values_are_refused(transform):
    def loss(x):
        unpack({"image": x[None]})
        return x.sum()

    with pytest.raises(ValueError, match=r"'image' has no values while torch\.func"):
        transform(loss)(torch.zeros(3, 2))


# -- conversions


def test_levels_are_those_of_an_image_file(tmp_path):
    image = torch.rand(3, 5, 7)
    write_image(tmp_path / "a.png", image)
    saved = np.asarray(Image.open(tmp_path / "a.png"))
    assert np.array_equal(to_levels(image, "image"), saved)
    assert np.array_equal(to_levels(image.permute(1, 2, 0).numpy(), "image"), saved)
    assert np.array_equal(to_levels(image.double(), "image"), saved)
    assert np.array_equal(np.asarray(to_pil(image, "image")), saved)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_round_to_the_nearest_level(dtype):
    levels = to_levels(torch.tensor([[0.0, 0.25, 0.5, 1.0]], dtype=dtype), "image")
    assert levels.tolist() == [[0, 64, 128, 255]]


def test_gray_bool_and_color_have_their_axes():
    gray = torch.tensor([[0, 200]], dtype=torch.uint8)
    for image in (gray, gray[None], gray.numpy(), gray.numpy()[..., None]):
        assert to_levels(image, "image").tolist() == [[0, 200]]
        assert to_pil(image, "image").mode == "L"
    assert to_levels(torch.tensor([[True, False]]), "image").tolist() == [[255, 0]]
    color = torch.tensor([1.0, 0.5, 0.0])[:, None, None].expand(3, 2, 4)
    assert to_levels(color, "image")[1, 3].tolist() == [255, 128, 0]
    assert to_pil(color, "image").size == (4, 2)


def test_what_a_bicubic_filter_overshoots_is_clamped():
    assert to_levels(torch.tensor([[-0.015, 1.015]]), "image").tolist() == [[0, 255]]


LEVELS = torch.linspace(0, 1, 72).view(3, 4, 6)


@pytest.mark.parametrize(
    ("image", "error"),
    [
        (LEVELS * 255, "within 0..1, got 0 to 255; divide by 255"),
        (LEVELS - 0.5, "undo the normalization"),
        (torch.full((3, 4, 6), torch.nan), "must be finite, got NaN or infinity in 72 of 72 values"),
        (torch.tensor([[1.0, torch.inf]]), "in 1 of 2 values"),
        (torch.zeros(2, 4, 6), r"got \[2, 4, 6\]; draw one channel: \[0\]"),
        (torch.zeros(4, 4, 6), r"leave out the transparency: \[:3\]"),
        (torch.zeros(4, 6, 3), r"permute\(2, 0, 1\)"),
        (np.zeros((3, 4, 6)), r"transpose\(1, 2, 0\)"),
        (np.zeros((4, 6, 4)), r"leave out the transparency: \[..., :3\]"),
        (torch.zeros(1, 3, 4, 6), r"take one image: image\[0\]"),
        (torch.zeros(4), "an axis of height"),
        (torch.zeros(3, 0, 6), "has no pixels"),
        (torch.zeros(3, 4, 6).long(), "floats in 0..1, uint8 or bool, got int64"),
        (np.array([["a", "b"]]), "must hold numbers, got an array of <U1"),
    ],
)
def test_what_is_no_image_is_refused_with_its_name(image, error):
    with pytest.raises(ValueError, match=f"the scene: .*{error}"):
        to_levels(image, "the scene")


def test_a_picture_may_come_from_anything_that_draws():
    figure = matplotlib.figure.Figure(figsize=(0.6, 0.4), dpi=100, facecolor="#ff0000")
    assert to_picture(figure, "p").shape == (3, 40, 60)
    assert to_picture(figure, "p")[:, 20, 30].tolist() == [255, 0, 0]
    half = Image.new("RGBA", (6, 4), (0, 0, 255, 0))
    for transparent in (half, np.asarray(half)):
        assert to_picture(transparent, "p").unique().tolist() == [255]
    assert to_picture(Image.new("L", (6, 4), 7), "p").tolist() == torch.full((3, 4, 6), 7).tolist()
    assert to_picture(torch.rand(4, 6), "p").shape == (3, 4, 6)
    assert to_picture(np.zeros((4, 6, 3)), "p").dtype == torch.uint8


@pytest.mark.parametrize(("made", "named"), [(None, "None"), ("a.png", "a str")])
def test_what_is_no_picture_is_refused(made, named):
    with pytest.raises(ValueError, match=f"row 2: a drawing must be .*, got {named}; return the image"):
        to_picture(made, "row 2")
