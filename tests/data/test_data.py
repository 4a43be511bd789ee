import errno
import hashlib
import itertools
import re
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image
from typecheck import unchecked

from fpatch import random
from fpatch.data import (
    Loader,
    draws,
    image_digest,
    indices,
    letterbox,
    move_boxes,
    move_points,
    read_image,
    rows,
    targets,
    write_image,
)
from fpatch.data import csv_tables as data_table
from fpatch.data.decoding import read_size
from fpatch.data.images import PAD_LEVEL, fit

TOYCAR = Path(__file__).resolve().parents[2].parent / "shared" / "data" / "toycar"
few = settings(max_examples=40, deadline=None)


def noise(height, width, seed=0):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def chw(array):
    return torch.from_numpy(np.ascontiguousarray(array)).permute(2, 0, 1)


# --- images -----------------------------------------------------------------------------------------------

UPRIGHT = {
    1: lambda a: a,
    2: lambda a: a[:, ::-1],
    3: lambda a: a[::-1, ::-1],
    4: lambda a: a[::-1],
    5: lambda a: a.transpose(1, 0, 2),
    6: lambda a: np.rot90(a, -1),
    7: lambda a: a.transpose(1, 0, 2)[::-1, ::-1],
    8: lambda a: np.rot90(a),
}


@pytest.mark.parametrize("orientation", UPRIGHT)
@pytest.mark.parametrize("suffix", ["png", "tiff", "webp", "jpg"])
def test_exif_orientation_is_applied(tmp_path, orientation, suffix):
    stored, path = noise(5, 9), tmp_path / f"a.{suffix}"
    exif = Image.Exif()
    exif[274] = orientation
    lossless = {"webp": {"lossless": True}}.get(suffix, {})
    Image.fromarray(stored).save(path, exif=exif, **lossless)
    upright = chw(UPRIGHT[orientation](stored))
    image = read_image(path)
    assert read_size(path) == tuple(image.shape[1:]) == tuple(upright.shape[1:])
    if suffix != "jpg":
        assert torch.equal(image, upright)


def test_sixteen_bit_gray_is_scaled_and_rounded(tmp_path):
    levels = np.array(
        [[0, 128, 129, 257, 385, 386], [32767, 32768, 40000, 65278, 65406, 65535]], dtype=np.uint16
    )
    expected = np.round(levels / 65535 * 255).astype(np.uint8)
    for suffix in ("png", "tiff"):
        Image.fromarray(levels).save(tmp_path / f"a.{suffix}")
        assert torch.equal(read_image(tmp_path / f"a.{suffix}"), torch.from_numpy(expected).expand(3, -1, -1))
    (tmp_path / "a.pgm").write_bytes(b"P5 6 2 65535\n" + levels.astype(">u2").tobytes())
    assert torch.equal(read_image(tmp_path / "a.pgm")[1], torch.from_numpy(expected))


def test_gray_palette_bilevel_and_cmyk_become_rgb(tmp_path):
    color = noise(4, 6)
    path = str(tmp_path / "a.png")
    Image.fromarray(color[..., 0]).save(path)
    assert torch.equal(read_image(path), torch.from_numpy(color[..., 0]).expand(3, -1, -1))
    Image.fromarray(color).quantize(24).save(path)
    assert torch.equal(read_image(path), chw(np.array(Image.fromarray(color).quantize(24).convert("RGB"))))
    Image.fromarray(color[..., 0] > 128).save(path)
    assert torch.equal(read_image(path)[2], torch.from_numpy((color[..., 0] > 128) * np.uint8(255)))
    ink = noise(4, 6, seed=1)
    cmyk = np.concatenate([ink, np.zeros((4, 6, 1), np.uint8)], axis=2)
    Image.fromarray(cmyk, "CMYK").save(tmp_path / "a.tiff")
    assert torch.equal(read_image(tmp_path / "a.tiff"), chw(255 - ink))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_show_white(tmp_path, mode):
    color, alpha = noise(4, 6), noise(4, 6, seed=1)[..., :1]
    alpha[0, :2] = [[0], [255]]
    path = tmp_path / "a.png"
    if mode == "P":
        palette = Image.fromarray(color).quantize(24)
        palette.save(path, transparency=bytes(range(0, 240, 10)))
        color = np.array(palette.convert("RGB"))
        alpha = (np.array(palette) * 10)[..., None]
    else:
        color = color if mode == "RGBA" else color[..., :1]
        Image.fromarray(np.concatenate([color, alpha], axis=2), mode).save(path)
    expected = 255 + (color.astype(float) - 255) * alpha / 255
    assert np.abs(read_image(path).permute(1, 2, 0).numpy() - expected).max() < 1
    if mode != "P":
        assert read_image(path)[:, 0, 0].tolist() == [255] * 3
        assert torch.equal(read_image(path)[0, 0, 1], torch.tensor(color[0, 1, 0]))


@pytest.mark.filterwarnings("ignore:Truncated File Read")
@pytest.mark.parametrize("suffix", ["png", "jpg", "tiff", "bmp"])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 0.9])
def test_truncated_file_is_named(tmp_path, suffix, share):
    path = tmp_path / f"a.{suffix}"
    Image.fromarray(noise(40, 50)).save(path)
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share)])
    with pytest.raises(ValueError, match=rf"a\.{suffix}: not a readable image .*replace it"):
        read_image(path)


def test_unreadable_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"b\.png: no such image; correct"):
        read_image(tmp_path / "b.png")
    with pytest.raises(FileNotFoundError, match=r"b\.png"):
        image_digest(tmp_path / "b.png")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(ValueError, match=r"text\.png: not a readable image \(unknown format\)"):
        read_image(tmp_path / "text.png")
    for name, levels in (("float", np.zeros((2, 2), np.float32)), ("wide", np.full((2, 2), 70000, np.int32))):
        Image.fromarray(levels).save(tmp_path / f"{name}.tiff")
        with pytest.raises(ValueError, match=rf"{name}\.tiff: .* no fixed range"):
            read_image(tmp_path / f"{name}.tiff")


@few
@given(hnp.arrays(np.uint8, st.tuples(st.sampled_from([1, 3]), st.integers(1, 9), st.integers(1, 9))))
def test_written_levels_come_back(tmp_path_factory, levels):
    path = tmp_path_factory.getbasetemp() / "made" / "levels.png"
    image = torch.from_numpy(levels)
    write_image(path, image)
    assert torch.equal(read_image(path), image.expand(3, -1, -1))
    write_image(path, image.float() / 255)
    assert torch.equal(read_image(path), image.expand(3, -1, -1))


def test_writing_clamps_and_rounds(tmp_path):
    values = torch.tensor([-0.2, 0.0019, 0.002, 0.499, 0.997, 0.999, 1.01, float("inf")])
    write_image(tmp_path / "a.png", values.expand(1, 2, -1).requires_grad_())
    assert read_image(tmp_path / "a.png")[0, 0].tolist() == [0, 0, 1, 127, 254, 255, 255, 255]


def test_a_failed_write_leaves_the_old_file(tmp_path, monkeypatch):
    path = tmp_path / "a.png"
    write_image(path, torch.zeros(3, 2, 2))
    before = path.read_bytes()

    def save(self, draft, **settings):
        Path(draft).write_bytes(b"half")
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Image.Image, "save", save)
    with pytest.raises(OSError, match="No space"):
        write_image(path, torch.ones(3, 2, 2))
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_writing_refuses_what_is_no_image(tmp_path):
    for shape in ((2, 4, 4), (4, 4), (3, 0, 4)):
        with unchecked(), pytest.raises(ValueError, match=re.escape(f"got {list(shape)}")):
            write_image(tmp_path / "a.png", torch.zeros(shape))
    with unchecked(), pytest.raises(ValueError, match=r"got \[2, 3, 4, 4\]; take one row of the batch"):
        write_image(tmp_path / "a.png", torch.zeros(2, 3, 4, 4))
    for dtype in (torch.int64, torch.int16, torch.bool):
        with unchecked(), pytest.raises(ValueError, match=f"floats in 0..1 or uint8, got {dtype}"):
            write_image(tmp_path / "a.png", torch.ones(3, 4, 4, dtype=dtype))
    with pytest.raises(ValueError, match=r"NaN"):
        write_image(tmp_path / "a.png", torch.full((3, 4, 4), float("nan")))
    for name in ("a.xyz", "a"):
        with pytest.raises(ValueError, match=r"must end in an image suffix"):
            write_image(tmp_path / name, torch.zeros(3, 4, 4))
    assert not list(tmp_path.iterdir())


def test_digest_is_sha256_of_the_bytes(tmp_path):
    (tmp_path / "a.png").write_bytes(b"abc")
    assert image_digest(tmp_path / "a.png").startswith("ba7816bf8f01cfea")


sides = st.integers(3, 120)


@few
@given(sides, sides, sides, sides, st.data())
def test_a_marker_stays_under_its_moved_corner(height, width, height_px, width_px, data):
    scale = min(height_px / height, width_px / width)
    side = min(height, width, int(2 / scale) + 2)
    left, top = data.draw(st.integers(0, width - side)), data.draw(st.integers(0, height - side))
    image = torch.zeros(3, height, width, dtype=torch.uint8)
    image[:, top : top + side, left : left + side] = 255
    boxed, scale_xy, offset_xy = letterbox(image, (height_px, width_px))
    corners = torch.tensor([[left, top], [left + side, top + side]], dtype=torch.float64)
    (x0, y0), (x1, y1) = (move_points(corners, scale_xy, offset_xy)).tolist()
    level = boxed[0].double()
    content = move_boxes(torch.tensor([0.0, 0.0, width, height], dtype=torch.float64), scale_xy, offset_xy)
    a, b, c, d = content.round().long().tolist()
    pad = torch.ones_like(level, dtype=torch.bool)
    pad[b:d, a:c] = False
    assert (level[pad] == PAD_LEVEL).all()
    level[pad] = 0
    xs, ys = torch.arange(width_px) + 0.5, torch.arange(height_px) + 0.5
    x, y = (level.sum(0) * xs).sum() / level.sum(), (level.sum(1) * ys).sum() / level.sum()
    assert abs(x - (x0 + x1) / 2) < 1
    assert abs(y - (y0 + y1) / 2) < 1
    if min(x1 - x0, y1 - y0) >= 2:  # as wide as the filter, so that its edges lie at half its height
        seen = (level > level.max() / 2).nonzero()
        assert (seen.min(0).values - torch.tensor([y0, x0])).abs().max() <= 1
        assert (seen.max(0).values + 1 - torch.tensor([y1, x1])).abs().max() <= 1


@few
@given(sides, sides, sides, sides)
def test_a_letterbox_is_centered_and_as_large_as_fits(height, width, height_px, width_px):
    (scale_x, scale_y), (left, top) = fit((height, width), (height_px, width_px))
    w, h = scale_x * width, scale_y * height
    assert w == pytest.approx(round(w))
    assert h == pytest.approx(round(h))
    assert round(w) == width_px or round(h) == height_px
    assert round(w) <= width_px
    assert round(h) <= height_px
    for scale, side in ((scale_x, width), (scale_y, height)):
        ideal = max(1, side * min(height_px / height, width_px / width))
        assert abs(scale * side - ideal) <= 0.5 + 1e-9
    assert 0 <= width_px - round(w) - 2 * left <= 1
    assert 0 <= height_px - round(h) - 2 * top <= 1


@pytest.mark.parametrize(
    ("height", "width", "size"), [(97, 131, (64, 64)), (30, 41, (64, 100)), (131, 97, (50, 80))]
)
def test_letterbox_resizes_like_torch(height, width, size):
    image = chw(noise(height, width))
    boxed, scale_xy, (left, top) = letterbox(image, size)
    w, h = round(width * scale_xy[0]), round(height * scale_xy[1])
    expected = torch.nn.functional.interpolate(
        image[None].double(), (h, w), mode="bilinear", antialias=True, align_corners=False
    )[0]
    assert (boxed[:, top : top + h, left : left + w] - expected).abs().max() <= 1
    assert boxed.is_contiguous()
    assert torch.equal(letterbox(image, (height, width))[0], image)


def test_points_and_boxes_move_alike():
    boxes = torch.rand(3, 5, 4, dtype=torch.float64)
    scale, offset = torch.rand(3, 1, 2, dtype=torch.float64), torch.rand(3, 1, 2, dtype=torch.float64)
    moved = move_boxes(boxes, scale[..., None, :], offset[..., None, :])
    assert torch.equal(moved[..., :2], move_points(boxes[..., :2], scale, offset))
    assert torch.equal(moved[..., 2:], boxes[..., 2:] * scale + offset)


# --- target sets ------------------------------------------------------------------------------------------

CORNERS = ["ulx", "uly", "urx", "ury", "lrx", "lry", "llx", "lly"]
PLACEMENTS = ["image", "patch", *CORNERS, "split"]
OBJECTS = ["image", "label", "xmin", "ymin", "xmax", "ymax", "split"]
SIZES = {"a.png": (40, 60), "b.png": (30, 30), "c.png": (64, 20), "d.png": (24, 32)}
ROWS = [
    ["b.png", "hood", 1, 2, 11, 3, 12, 14, 2, 13, "train"],
    ["a.png", "roof", 5, 5, 25, 6, 26, 20, 6, 19, "eval"],
    ["c.png", "door", 0, 0, 20, 0, 20, 64, 0, 64, "train"],
    ["a.png", "hood", 30, 5, 45, 6, 46, 20, 31, 19, "eval"],
    ["a.png", "hood", 30, 25, 45, 26, 46, 39, 31, 38, "eval"],
    ["d.png", "roof", 2, 2, 20.5, 2, 20.5, 12, 2, 12, "train"],
]
OBJECT_ROWS = [
    ["a.png", "car", 2, 3, 50, 39, "eval"],
    ["b.png", "truck", 0, 0, 30, 30, "train"],
    ["a.png", "truck", 10, 10, 20, 20, "eval"],
]


def table(path, header, lines):
    path.write_text("\n".join(",".join(map(str, line)) for line in [header, *lines]) + "\n")
    return path


@pytest.fixture
def folder(tmp_path):
    for seed, (name, (height, width)) in enumerate(SIZES.items()):
        Image.fromarray(noise(height, width, seed)).save(tmp_path / name)
    table(tmp_path / "placements.csv", PLACEMENTS, ROWS)
    table(tmp_path / "objects.csv", OBJECTS, OBJECT_ROWS)
    return tmp_path


def read(folder, **options):
    return targets(folder / "placements.csv", folder / "objects.csv", **{"size": (32, 48), **options})


def test_batch_holds_what_the_files_say(folder):
    data = read(folder)
    assert data.names == ("hood", "roof", "door")
    assert data.class_names == ("car", "truck")
    assert data.size == (32, 48)
    assert [path.name for path in data.paths] == ["b.png", "a.png", "c.png", "d.png"]
    assert data.image_ids.tolist() == [0, 1, 2, 3]
    assert (len(data), data.k, data.m) == (4, 3, 2)
    batch = data.batch([3, 1, 2, 1])
    assert batch["image_id"].tolist() == [3, 1, 2, 1]
    assert batch["draw"].tolist() == [0, 0, 0, 1]
    assert batch["quad_patch"].tolist() == [[1, 0, 0], [1, 0, 0], [2, 0, 0], [1, 0, 0]]
    assert batch["quad_valid"].tolist() == [
        [True, False, False],
        [True] * 3,
        [True, False, False],
        [True] * 3,
    ]
    assert batch["labels"].tolist() == [[0, 0], [0, 1], [0, 0], [0, 1]]
    assert batch["box_valid"].tolist() == [[False] * 2, [True] * 2, [False] * 2, [True] * 2]
    unit = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [0.0, 1.0]])
    assert torch.equal(batch["quads"][0, 1], unit)
    assert batch["boxes"][0].tolist() == [[0, 0, 1, 1]] * 2
    # a.png, 40 x 60 into 32 x 48: 0.8 without a border; d.png, 24 x 32: 4/3, left border (48 - 43) // 2
    assert torch.allclose(batch["quads"][1, 2], torch.tensor(ROWS[4][2:10]).reshape(4, 2) * 0.8)
    assert torch.allclose(batch["boxes"][3], torch.tensor([[1.6, 2.4, 40, 31.2], [8, 8, 16, 16]]))
    moved = torch.tensor([[2.0, 2], [20.5, 2], [20.5, 12], [2, 12]]) * torch.tensor(
        [43 / 32, 32 / 24]
    ) + torch.tensor([2, 0])
    assert torch.allclose(batch["quads"][0, 0], moved)
    for row, i in enumerate([3, 1, 2, 1]):
        boxed, _, _ = letterbox(chw(np.array(Image.open(data.paths[i]))), (32, 48))
        assert torch.equal(batch["scene"][row], boxed.float() / 255)
    types = {name: value.dtype for name, value in batch.items()}
    floats, ints, bools = (
        ("scene", "quads", "boxes"),
        ("image_id", "draw", "quad_patch", "labels"),
        ("quad_valid", "box_valid"),
    )
    assert types == dict.fromkeys(floats, torch.float32) | dict.fromkeys(ints, torch.int64) | dict.fromkeys(
        bools, torch.bool
    )
    assert all(value.is_contiguous() for value in batch.values())


def test_without_objects_there_is_no_ground_truth(folder):
    data = targets(folder / "placements.csv", size=(16, 16))
    assert data.class_names == ()
    assert data.m == 0
    assert set(data.batch([0])) == {"scene", "image_id", "draw", "quads", "quad_patch", "quad_valid"}


@few
@given(st.permutations(range(len(PLACEMENTS))), st.permutations(range(len(OBJECTS))))
def test_columns_are_found_by_name(tmp_path_factory, order, order_objects):
    folder = tmp_path_factory.getbasetemp() / "columns"
    folder.mkdir(exist_ok=True)
    for name, (height, width) in SIZES.items():
        write_image(folder / name, torch.zeros(3, height, width))
    for name, header, lines, places in (
        ("placements.csv", PLACEMENTS, ROWS, order),
        ("objects.csv", OBJECTS, OBJECT_ROWS, order_objects),
    ):
        text = [[line[i] for i in places] + ["x"] for line in [header, *lines]]
        (folder / name).write_text(
            "\ufeff" + "\r\n".join(" , ".join(map(str, line)) for line in text) + "\r\n\r\n", "utf-8"
        )
    expected = {
        "quads": [line[2:10] for line in ROWS if line[0] == "a.png"],
        "boxes": [line[2:6] for line in OBJECT_ROWS if line[0] == "a.png"],
    }
    data = read(folder)
    for name, values in expected.items():
        assert torch.allclose(data.tables[name][1].flatten(1), torch.tensor(values).float() * 0.8)


def test_a_box_is_an_upright_quad(folder):
    header = ["patch", "image", "split", "xmin", "xmax", "ymin", "ymax"]
    path = table(folder / "rect.csv", header, [["hood", "b.png", "train", 2, 12, 5, 25]])
    data = targets(path, size=(30, 30))
    assert data.batch([0])["quads"].tolist() == [[[[2, 5], [12, 5], [12, 25], [2, 25]]]]


def test_ids_are_those_of_the_whole_file(folder):
    data = read(folder)
    assert data.split("train").image_ids.tolist() == [0, 2, 3]
    assert data.split("eval").image_ids.tolist() == [1]
    doors = read(folder, patches=["door", "hood"])
    assert doors.names == ("door", "hood")
    assert doors.image_ids.tolist() == [0, 1, 2]
    assert doors.k == 2
    assert doors.batch([2])["quad_patch"].tolist() == [[0, 0]]
    view = data.split("train")
    assert (view.k, view.m, view.paths, view.names) == (data.k, data.m, data.paths, data.names)
    assert torch.equal(view.batch([3])["scene"], data.batch([3])["scene"])
    assert data.select([3, 0]).image_ids.tolist() == [3, 0]
    assert read(folder, classes=["person", "truck", "car"]).batch([1])["labels"].tolist() == [[2, 1]]


def test_an_oriented_photograph_is_measured_upright(folder):
    exif = Image.Exif()
    exif[274] = 6
    stored = noise(40, 20, seed=9)
    Image.fromarray(stored).save(folder / "e.png", exif=exif)
    path = table(folder / "e.csv", PLACEMENTS, [["e.png", "hood", 0, 0, 40, 0, 40, 20, 0, 20, "train"]])
    batch = targets(path, size=(20, 40)).batch([0])
    assert torch.equal(batch["scene"][0], chw(np.rot90(stored, -1)).float() / 255)


def test_host_and_disk_give_the_same(folder):
    host, disk = read(folder), read(folder, resident="disk")
    for _ in range(2):
        for name, value in host.batch([1, 0, 1]).items():
            assert torch.equal(value, disk.batch([1, 0, 1])[name])
    old = hashlib.sha256((folder / "a.png").read_bytes()).hexdigest()
    assert host.digest(1) == disk.digest(1) == old
    Image.fromarray(noise(40, 60, seed=8)).save(folder / "a.png")
    assert host.digest(1) == old
    assert disk.digest(1) == image_digest(folder / "a.png") != old
    (folder / "a.png").unlink()
    assert host.split("eval").batch([1])["scene"].shape == (1, 3, 32, 48)
    with pytest.raises(FileNotFoundError, match=r"a\.png: no such image"):
        disk.batch([0, 1])


@pytest.mark.parametrize("device", ["cpu", pytest.param("cuda", marks=pytest.mark.cuda)])
def test_photographs_on_the_device_are_those_in_memory(folder, device):
    host, on_device = read(folder), read(folder, resident="device")
    for picked in ([1, 0, 1], [1, 0, 2]):  # read now; held already, and one more
        for name, value in host.batch(picked).items():
            found = on_device.batch(picked, device=device)[name]
            assert found.device.type == (device if name == "scene" else "cpu")
            assert torch.equal(value, found.cpu()), name
    scene, _ = on_device.scenes.held[1]
    assert (scene.dtype, scene.device.type) == (torch.uint8, device)
    assert on_device.digest(1) == host.digest(1)
    (folder / "a.png").unlink()
    assert torch.equal(on_device.batch([1], device=device)["scene"].cpu(), host.batch([1])["scene"])


def test_the_header_of_a_photograph_is_read_once(folder, monkeypatch):
    seen = []
    monkeypatch.setattr(data_table, "read_size", lambda path: seen.append(path.name) or read_size(path))
    read(folder)
    assert sorted(seen) == sorted(set(seen))
    assert len(seen) == 4


def test_batch_refuses_rows_it_cannot_tell_apart(folder):
    data = read(folder)
    assert data.batch([1, 1], [5, 3])["draw"].tolist() == [5, 3]
    with pytest.raises(ValueError, match=r"must be distinct, got \(1, 2\) twice"):
        data.batch([1, 0, 1], [2, 2, 2])
    with pytest.raises(ValueError, match="draw must be 2 counts"):
        data.batch([0, 1], [0])
    with pytest.raises(ValueError, match="draw must be 2 counts"):
        data.batch([0, 1], [0, -1])
    with pytest.raises(ValueError, match=r"among the 3 of this view .*got 1;"):
        data.split("train").batch([0, 1])
    with pytest.raises(ValueError, match="one or more ids"):
        data.batch([])
    with pytest.raises(ValueError, match=r"among the 4 of this view .*got 4;"):
        data.digest(4)
    with pytest.raises(ValueError, match="distinct, got 2 twice"):
        data.select([2, 2])
    for ids in (torch.tensor([False, True]), [0.5], [[1]]):
        with (
            pytest.raises(ValueError, match="image_ids must be one or more ids, whole"),
            unchecked(),
        ):
            data.select(ids)


def test_a_broken_photograph_is_named_when_it_is_used(folder):
    data = read(folder, size=(30, 30))
    whole = (folder / "b.png").read_bytes()
    (folder / "b.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"b\.png: not a readable image"):
        data.batch([1, 0])
    Image.fromarray(noise(31, 30)).save(folder / "b.png")
    with pytest.raises(ValueError, match=r"b\.png: .*\[31, 30\] px, but its header said \[30, 30\]"):
        data.batch([0])


def edit(row, column, value):
    def change(header, lines):
        lines[row][header.index(column)] = value

    return change


def quad(row, *corners):
    def change(header, lines):
        lines[row][2:10] = corners

    return change


def rename(old, new):
    def change(header, lines):
        header[header.index(old)] = new

    return change


BAD_PLACEMENTS = {
    "header only": (lambda header, lines: lines.clear(), ["has a header but no rows", "at least one row"]),
    "missing column": (rename("ury", "ur_y"), ["line 1", "column 'ury' is missing (did you mean 'ur_y'?)"]),
    "no coordinates": (
        lambda header, lines: header.__setitem__(slice(2, 10), list("stuvwxyz")),
        ["'ulx' is missing"],
    ),
    "no column left to mean": (
        lambda header, lines: (header.__delitem__(-1), [line.__delitem__(-1) for line in lines]),
        ["line 1: column 'split' is missing; needed are"],
    ),
    "column twice": (rename("ury", "urx"), ["line 1", "'urx' appears twice"]),
    "text": (edit(2, "lrx", "2O"), ["line 4, column lrx: '2O' is not a finite number", "12.5"]),
    "empty number": (edit(2, "lrx", ""), ["line 4, column lrx: '' is not a finite number"]),
    "nan": (edit(0, "ulx", "nan"), ["line 2, column ulx: 'nan' is not a finite number"]),
    "infinity": (edit(0, "ulx", "-inf"), ["line 2, column ulx: '-inf' is not a finite number"]),
    "overflow": (edit(0, "ulx", "1e999"), ["line 2, column ulx: '1e999' is not a finite number"]),
    "self-crossing": (
        quad(0, 1, 2, 11, 3, 2, 13, 12, 14),
        ["line 2: the quad (1, 2) (11, 3)", "crosses itself"],
    ),
    "zero area, a line": (quad(0, 1, 2, 5, 6, 7, 8, 3, 4), ["line 2: the quad", "zero area"]),
    "zero area, a point": (quad(0, *[3, 4] * 4), ["line 2: the quad", "zero area"]),
    "mirrored": (quad(0, 11, 3, 1, 2, 2, 13, 12, 14), ["line 2: the quad", "mirrored", "clockwise"]),
    "dented": (quad(0, 1, 2, 11, 3, 4, 5, 2, 13), ["line 2: the quad", "not convex"]),
    "triangle": (quad(0, 1, 2, 11, 3, 11, 3, 2, 13), ["line 2: the quad", "not convex"]),
    "outside left": (
        edit(0, "ulx", -0.5),
        ["line 2, column ulx: -0.5 is outside the image, 30 px wide"],
    ),
    "outside below": (
        edit(2, "lly", 64.5),
        ["line 4, column lly: 64.5 is outside", "64 px high", "outside_frac"],
    ),
    "empty name": (edit(1, "patch", ""), ["line 3, column patch: the cell is empty"]),
    "empty image": (edit(1, "image", ""), ["line 3, column image: the cell is empty"]),
    "missing image": (edit(5, "image", "e.png"), ["line 7, column image:", "e.png: no such image"]),
    "two splits": (edit(4, "split", "train"), ["line 6, column split: 'train', but a.png is in 'eval'"]),
    "repeated": (lambda header, lines: lines.append(lines[1]), ["line 8: repeats line 3"]),
    "short line": (lambda header, lines: lines[3].pop(), ["line 5: 10 cells, but the header has 11"]),
    "only a short line": (
        lambda header, lines: lines.__setitem__(slice(None), [["a.png"]]),
        ["line 2: 1 cells"],
    ),
}


@pytest.mark.parametrize("case", BAD_PLACEMENTS)
def test_bad_placements_are_told_by_line_and_column(folder, case):
    change, fragments = BAD_PLACEMENTS[case]
    header, lines = list(PLACEMENTS), [list(line) for line in ROWS]
    change(header, lines)
    table(folder / "placements.csv", header, lines)
    with pytest.raises(ValueError, match=r"placements\.csv") as caught:
        read(folder)
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


BAD_OBJECTS = {
    "missing column": (rename("label", "Label"), ["column 'label' is missing (did you mean 'Label'?)"]),
    "exchanged": (edit(0, "xmin", 55), ["line 2, column xmin: xmin 55 must be less than xmax 50; swap"]),
    "flat": (
        edit(0, "ymin", 39),
        ["line 2, column ymin: ymin 39 must be less than ymax 39; the box has zero"],
    ),
    "outside": (edit(1, "ymax", 31), ["line 3, column ymax: 31 is outside the image, 30 px high"]),
    "repeated": (lambda header, lines: lines.append(lines[0]), ["line 5: repeats line 2"]),
    "other split": (edit(1, "split", "eval"), ["line 3, column split: 'eval', but b.png is in 'train'"]),
    "missing image": (edit(1, "image", "e.png"), ["line 3, column image:", "e.png: no such image"]),
    "class": (
        edit(1, "label", "trucks"),
        ["line 3, column label: 'trucks' is not among classes; did you mean 'truck'"],
    ),
}


@pytest.mark.parametrize("case", BAD_OBJECTS)
def test_bad_objects_are_told_by_line_and_column(folder, case):
    change, fragments = BAD_OBJECTS[case]
    header, lines = list(OBJECTS), [list(line) for line in OBJECT_ROWS]
    change(header, lines)
    table(folder / "objects.csv", header, lines)
    with pytest.raises(ValueError, match=r"objects\.csv") as caught:
        read(folder, classes=["car", "truck"])
    for fragment in fragments:
        assert fragment in str(caught.value)
    assert "\n" not in str(caught.value)


SPELLINGS = {
    "dot": lambda folder: "./a.png",
    "absolute": lambda folder: str(folder / "a.png"),
    "detour": lambda folder: "nowhere/../a.png",
    "link": lambda folder: (folder / "link.png").symlink_to("a.png") or "link.png",
    "link to the folder": lambda folder: (folder / "all").symlink_to(folder) or "all/a.png",
    "second name": lambda folder: (folder / "hard.png").hardlink_to(folder / "a.png") or "hard.png",
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_file_is_one_image_under_every_spelling(folder, spelling):
    """In another split it is a leak, in the table of objects its boxes count, and a repeated row is seen."""
    name, expected = SPELLINGS[spelling](folder), read(folder)
    lines, objects = [list(line) for line in ROWS], [list(line) for line in OBJECT_ROWS]
    lines[4][0], objects[2][0] = name, name
    table(folder / "placements.csv", PLACEMENTS, lines)
    table(folder / "objects.csv", OBJECTS, objects)
    found = read(folder)
    assert found.paths == expected.paths
    for entry, values in expected.tables.items():
        assert torch.equal(found.tables[entry], values), entry
    leak = [*OBJECT_ROWS, [name, "car", 3, 3, 9, 9, "train"]]
    table(folder / "objects.csv", OBJECTS, leak)
    with pytest.raises(ValueError, match=r"line 5, column split: 'train', but .* is in 'eval' elsewhere"):
        read(folder)
    table(folder / "objects.csv", OBJECTS, OBJECT_ROWS)
    table(folder / "placements.csv", PLACEMENTS, [*lines[:4], [*lines[4][:-1], "train"], lines[5]])
    with pytest.raises(ValueError, match=r"line 6, column split: 'train', but .* is in 'eval' elsewhere"):
        read(folder)
    again = [*lines, [name, *ROWS[1][1:3], "5.0", *ROWS[1][4:]]]
    table(folder / "placements.csv", PLACEMENTS, again)
    with pytest.raises(ValueError, match=r"line 8: repeats line 3"):
        read(folder)


def test_bad_files_are_named(folder):
    path = folder / "placements.csv"
    for content, reason in (
        (b"", "the file is empty"),
        (b"\n  \n", "the file is empty"),
        (b"\xff\xfe\x00a", "not text in UTF-8"),
        (b'image,"patch\n', "not a CSV file"),
    ):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=rf"placements\.csv: .*{reason}"):
            read(folder)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"placements\.csv: no such file"):
        read(folder)
    table(path, [*PLACEMENTS, "xmin", "ymin", "xmax", "ymax"], [[*ROWS[0], 1, 2, 3, 4]])
    with pytest.raises(ValueError, match="are alternatives; delete one"):
        read(folder)
    table(path, PLACEMENTS, ROWS[2:3])
    with pytest.raises(ValueError, match=r"objects\.csv: no row is on an image of .*placements\.csv"):
        read(folder)
    (folder / "c.png").write_text("no image")
    with pytest.raises(ValueError, match=r"line 2, column image: .*c\.png: not a readable image"):
        read(folder)


def test_all_problems_are_told_at_once(folder):
    lines = [["b.png", f"patch{i}", "x", 2, 11, 3, 12, 14, 2, 13, "train"] for i in range(25)]
    table(folder / "placements.csv", PLACEMENTS, [["z.png", "hood", *ROWS[0][2:]], *lines, ["b.png"]])
    with pytest.raises(ValueError, match="27 problems") as caught:
        read(folder)
    told = str(caught.value).splitlines()
    assert len(told) == 22
    assert "z.png: no such image" in told[1]
    assert told[2].startswith("  line 3, column ulx: 'x'")
    assert told[-1].strip() == "and 7 more"


def test_wrong_choices_are_refused(folder):
    with pytest.raises(ValueError, match=r"no rows for the patches 'roofs' \(did you mean 'roof'\?\)"):
        read(folder, patches=["hood", "roofs"])
    for chosen in ("hood", [], ["hood", "hood"]):
        with pytest.raises(ValueError, match="targets: patches must be"):
            read(folder, patches=chosen)
    with pytest.raises(ValueError, match="classes: 'car' is the name of the classes 0 and 1; rename one"):
        read(folder, classes=["car", "car"])
    for size in ((0, 5), (24.5, 32), (8, 8, 3)):
        with pytest.raises(ValueError, match=r"size must be \(height, width\) in whole pixels"), unchecked():
            read(folder, size=size)
    with pytest.raises(ValueError, match="outside_frac must be at least 0"):
        read(folder, outside_frac=float("nan"))
    with pytest.raises(ValueError, match=r"no test rows .* train \(3\), eval \(1\)"):
        read(folder).split("test")
    with pytest.raises(ValueError, match="no eval rows for the patches door"):
        read(folder, patches=["door"]).split("eval")


def test_a_table_of_other_separators_is_refused_in_one_sentence(folder):
    path = folder / "placements.csv"
    path.write_text(path.read_text().replace(",", ";"))
    with pytest.raises(ValueError, match=r"line 1: cells are separated by ';'; save it with commas$"):
        read(folder)


def test_huge_coordinates_are_outside(folder):
    table(folder / "placements.csv", PLACEMENTS, [["b.png", "hood", 0, 0, *["1e200"] * 4, 0, 3, "train"]])
    with pytest.raises(ValueError, match=r"column urx: 1e\+200 is outside the image, 30 px wide"):
        read(folder)


def test_outside_frac_allows_what_it_says(folder):
    table(folder / "placements.csv", PLACEMENTS, [["b.png", "hood", -3, 0, 33, 0, 33, 30, -3, 30, "train"]])
    assert read(folder, outside_frac=0.1, size=(30, 30)).batch([0])["quads"][0, 0, 0].tolist() == [-3, 0]
    with pytest.raises(ValueError, match="4 problems"):
        read(folder, outside_frac=0.09)


def test_root_and_folders_of_paths(folder, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("tables")
    path = table(
        elsewhere / "p.csv", PLACEMENTS, [["./b.png", *ROWS[0][1:]], ["b.png", "roof", *ROWS[0][2:]]]
    )
    data = targets(str(path), size=(8, 8), root=folder)
    assert data.paths == (folder / "b.png",)
    assert data.k == 2
    with pytest.raises(ValueError, match="no such image"):
        targets(path, size=(8, 8))


def test_a_thousand_rows_load_quickly(folder):
    lines = [
        [
            "a.png",
            f"patch{i % 7}",
            i % 20,
            i // 20 % 20,
            30,
            i // 20 % 20,
            30,
            25 + i / 100,
            i % 20,
            25 + i / 100,
            "train",
        ]
        for i in range(1000)
    ]
    table(folder / "placements.csv", PLACEMENTS, lines)
    start = time.perf_counter()
    data = targets(folder / "placements.csv", size=(32, 32))
    assert data.k == 1000
    assert time.perf_counter() - start < 2


@pytest.mark.skipif(not TOYCAR.exists(), reason="the toycar photographs are not beside the project")
def test_toycar():
    data = targets(TOYCAR / "warp.csv", size=(320, 320), patches=["hood", "roof", "door"])
    assert len(data.split("train")) + len(data.split("eval")) == len(data) == 19
    assert data.k == 3
    batch = data.batch(data.image_ids[:2])
    assert torch.equal(
        batch["quads"][0, 0], torch.tensor([[454.0, 296], [474, 313], [454, 331], [435, 314]]) / 2
    )
    whole = chw(np.array(Image.open(TOYCAR / "near_nadir_arc/006.png"))).float() / 255
    assert (batch["scene"][0] - torch.nn.functional.avg_pool2d(whole, 2)).abs().mean() < 0.02
    boxes = targets(TOYCAR / "rect.csv", size=(640, 640))
    assert boxes.names == ("hood", "roof")
    assert boxes.batch([0])["quads"][0, 1].tolist() == [[387, 241], [434, 241], [434, 264], [387, 264]]


# --- loader -----------------------------------------------------------------------------------------------


@few
@given(st.lists(st.integers(-2, 5), max_size=30))
def test_draws_count_earlier_uses(ids):
    expected = [ids[:i].count(value) for i, value in enumerate(ids)]
    assert draws(torch.tensor(ids, dtype=torch.int64)).tolist() == expected


@few
@given(st.integers(1, 20), st.integers(1, 50), st.integers(0, 9), st.integers(0, 2**32))
def test_epochs_are_permutations_laid_end_to_end(n, batch_size, step, seed):
    key = random.key(seed)
    count = (step + 1) * batch_size // n + 1
    line = torch.cat([random.permutation(random.fold_in(key, e), n) for e in range(count)])
    batch = indices(key, step, batch_size, n)
    assert torch.equal(batch, line[step * batch_size :][:batch_size])
    assert batch.dtype == torch.int64


def test_every_epoch_shows_every_photograph():
    key = random.key(7)
    line = torch.cat([indices(key, step, 4, 10) for step in range(10)]).reshape(4, 10)
    assert all(epoch.sort().values.tolist() == list(range(10)) for epoch in line)
    assert len({tuple(epoch.tolist()) for epoch in line}) == 4


def test_an_epoch_is_shuffled_once_and_not_handed_out(monkeypatch):
    shuffled = []
    shuffle = random.permutation
    monkeypatch.setattr(random, "permutation", lambda key, n: shuffled.append(n) or shuffle(key, n))
    key = random.key(8231)
    first = [indices(key, step, 4, 10).tolist() for step in range(5)]
    assert shuffled == [10, 10]
    indices(key, 0, 4, 10).zero_()
    assert [indices(key, step, 4, 10).tolist() for step in range(5)] == first
    assert indices(random.key(8232), 0, 4, 10).tolist() != first[0]


def test_with_replacement_each_is_drawn_independently():
    key = random.key(7)
    drawn = torch.stack([indices(key, step, 20, 17, replace=True) for step in range(200)])
    assert torch.equal(drawn[3], indices(key, 3, 20, 17, replace=True))
    assert drawn.unique().tolist() == list(range(17))
    counts = drawn.flatten().bincount()
    assert (counts - 4000 / 17).abs().max() < 5 * (4000 / 17) ** 0.5
    distinct = torch.tensor([len(row.unique()) for row in drawn]).float().mean()
    assert distinct.item() == pytest.approx(17 * (1 - (16 / 17) ** 20), abs=0.5)


def test_rows_of_an_evaluation():
    image_id, draw = rows(torch.tensor([4, 2, 9]), 2)
    assert image_id.tolist() == [4, 2, 9, 4, 2, 9]
    assert draw.tolist() == [0, 0, 0, 1, 1, 1]
    with pytest.raises(ValueError, match="num_draws must be at least 1"):
        rows(torch.tensor([4]), 0)


def test_loader_batches_are_those_of_their_steps(folder):
    data = read(folder).split("train")
    loader = Loader(data, random.key(3), batch_size=4)
    batch = loader.batch(5)
    assert torch.equal(batch["image_id"], data.image_ids[indices(random.key(3), 5, 4, 3)])
    assert len(set(zip(batch["image_id"].tolist(), batch["draw"].tolist(), strict=True))) == 4
    for step, batch in zip(range(2, 6), loader.batches(2), strict=False):
        again = Loader(read(folder).split("train"), random.key(3), batch_size=4).batch(step)
        assert all(torch.equal(value, again[name]) for name, value in batch.items())
    with pytest.raises(ValueError, match="batch_size must be at least 1"):
        Loader(data, random.key(3), batch_size=0)


@pytest.mark.cuda
def test_batches_on_a_gpu_are_complete_when_they_come(folder):
    data = read(folder, resident="disk").split("train")
    loader = Loader(data, random.key(3), batch_size=4, device="cuda")
    plain = Loader(data, random.key(3), batch_size=4)
    for step, batch in zip(range(20), loader.batches(), strict=False):
        torch.mm(torch.ones(2048, 2048, device="cuda"), torch.ones(2048, 2048, device="cuda"))
        found = {name: value.clone() for name, value in batch.items()}
        assert all(torch.equal(found[name].cpu(), value) for name, value in plain.batch(step).items())


class Source:
    """A data source whose batches are numbered, and which fails at one of them."""

    names, class_names, size, paths, image_ids = ("a",), (), (1, 1), (), torch.arange(5)

    def __init__(self, broken=-1):
        self.calls, self.broken, self.called = 0, broken, threading.Semaphore(0)

    def split(self, name):
        return self

    def digest(self, image_id):
        return ""

    def batch(self, image_ids, draw=None, device=None):
        call, self.calls = self.calls, self.calls + 1
        self.called.release()
        if call == self.broken:
            raise RuntimeError(f"batch {call} is broken")
        return {"number": torch.tensor([call])}


def loader_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("fpatch-loader")]


def test_one_batch_is_prepared_ahead():
    source = Source()
    batches = Loader(source, random.key(0), 2).batches()
    assert source.calls == 0
    assert next(batches)["number"].item() == 0
    assert all(source.called.acquire(timeout=5) for _ in range(2))
    assert source.calls == 2
    assert next(batches)["number"].item() == 1
    batches.close()
    assert not loader_threads()


def test_an_error_comes_where_its_batch_would():
    batches = Loader(Source(broken=2), random.key(0), 2).batches()
    assert [batch["number"].item() for batch in itertools.islice(batches, 2)] == [0, 1]
    with pytest.raises(RuntimeError, match="batch 2 is broken"):
        next(batches)
    assert not loader_threads()
