"""Images in and out: from PIL, in every mode, and as figures."""

import struct
import zlib

import numpy as np
import PIL
import pytest
import torch
from packaging.version import Version
from PIL import Image
from typecheck import unchecked

from fpatch import viz
from fpatch.data import read_image, write_image
from fpatch.data.decoding import read_size

MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr", "HSV", "I;16", "I")


def make_picture(mode):
    """An image of a mode, 4 x 6, none of whose sides or channels are alike."""
    color = Image.fromarray(np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8))
    if mode in ("I;16", "I"):
        levels = np.random.default_rng(1).integers(0, 65536, (4, 6))
        return Image.fromarray(levels.astype(np.uint16 if mode == "I;16" else np.int32))
    if mode in ("LA", "PA", "RGBA"):
        color.putalpha(Image.fromarray(np.arange(0, 240, 10, dtype=np.uint8).reshape(4, 6)))
        return color if mode == "RGBA" else color.convert("LA").convert(mode)
    return color.convert(mode)


@pytest.mark.parametrize("mode", MODES)
def test_a_pil_image_reads_as_its_file_does(tmp_path, mode):
    picture = make_picture(mode)
    assert picture.mode == mode
    before = picture.copy()
    image = read_image(picture)
    assert (image.shape, image.dtype) == ((3, 4, 6), torch.uint8)
    assert picture == before
    if mode == "YCbCr" and Version(PIL.__version__) < Version("13"):
        pytest.skip("Pillow before 13 writes a TIFF of this mode that it cannot read")
    suffix = "png" if mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16") else "tiff"
    if mode != "HSV":  # no format stores it
        picture.save(tmp_path / f"a.{suffix}")
        assert torch.equal(read_image(tmp_path / f"a.{suffix}"), image)
        assert torch.equal(read_image(str(tmp_path / f"a.{suffix}")), image)


def test_a_pil_image_is_turned_upright():
    picture = make_picture("RGB")
    picture.getexif()[274] = 6
    assert torch.equal(read_image(picture), read_image(make_picture("RGB")).rot90(-1, (1, 2)))


def test_a_pil_image_that_cannot_be_read_is_named(tmp_path):
    with pytest.raises(ValueError, match=r"PIL image of mode F: .*floating-point pixels have no fixed range"):
        read_image(Image.fromarray(np.zeros((2, 2), np.float32)))
    make_picture("RGB").save(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:60])
    with (
        Image.open(tmp_path / "a.png") as picture,
        pytest.raises(ValueError, match=r"a\.png: not a readable"),
    ):
        read_image(picture)


def write_png(path, levels, kind, depth, clear=None):
    """Write levels [h, w, c] as a PNG of a color type and depth; `clear` is its transparent color."""

    def chunk(name, data):
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width, _ = levels.shape
    if depth == 16:
        lines = [line.astype(">u2").tobytes() for line in levels]
    else:
        bits = np.unpackbits(levels.astype(np.uint8)[..., None], axis=-1)[..., 8 - depth :]
        lines = [np.packbits(line.reshape(-1)).tobytes() for line in bits]
    chunks = chunk(b"IHDR", struct.pack(">2I5B", width, height, depth, kind, 0, 0, 0))
    if clear is not None:
        chunks += chunk(b"tRNS", struct.pack(f">{len(clear)}H", *clear))
    chunks += chunk(b"IDAT", zlib.compress(b"".join(b"\0" + line for line in lines))) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + chunks)
    return path


GRAY, COLOR, GRAY_ALPHA, COLOR_ALPHA = 0, 2, 4, 6


def test_sixteen_bit_color_keeps_the_upper_byte(tmp_path):
    levels = np.random.default_rng(2).integers(0, 65536, (4, 6, 3))
    path = write_png(tmp_path / "a.png", levels, COLOR, 16)
    assert np.array_equal(read_image(path).permute(1, 2, 0).numpy(), levels >> 8)


@pytest.mark.parametrize(("kind", "depth"), [
    (GRAY, 1), (GRAY, 2), (GRAY, 4), (GRAY, 16), (COLOR, 16), (GRAY_ALPHA, 16), (COLOR_ALPHA, 16),
])  # fmt: skip
def test_transparency_of_every_depth_is_that_of_eight_bits(tmp_path, kind, depth):
    channels = {GRAY: 1, COLOR: 3, GRAY_ALPHA: 2, COLOR_ALPHA: 4}[kind]
    most = 2 ** min(depth, 8) - 1
    levels = np.random.default_rng(3).integers(0, most + 1, (5, 7, channels))
    levels[2, 3] = most // 2
    clear = None if kind in (GRAY_ALPHA, COLOR_ALPHA) else tuple(int(v) for v in levels[2, 3])
    to_eight, to_depth = (255 // most, {8: 1, 16: 256 if kind == COLOR else 257}[max(depth, 8)])
    scaled = None if clear is None else tuple(v * to_eight for v in clear)
    twin = read_image(write_png(tmp_path / "8.png", levels * to_eight, kind, 8, scaled))
    own = None if clear is None else tuple(v * to_depth for v in clear)
    assert torch.equal(read_image(write_png(tmp_path / "a.png", levels * to_depth, kind, depth, own)), twin)
    if clear is not None:
        assert twin[:, 2, 3].tolist() == [255, 255, 255]
        assert not torch.equal(
            read_image(write_png(tmp_path / "b.png", levels * to_depth, kind, depth)), twin
        )


def test_more_pixels_than_pillow_reads_are_refused_with_the_way_out(tmp_path, monkeypatch):
    path = write_png(tmp_path / "a.png", np.zeros((40, 60, 3), int), COLOR, 8)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    for read in (read_image, read_size):
        with pytest.raises(ValueError, match=r"a\.png: the image has more than .* megapixels.*scale it down"):
            read(path)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_floats_of_every_width_round_to_their_level(tmp_path, dtype):
    levels = torch.arange(256, dtype=torch.uint8).reshape(1, 16, 16)
    write_image(tmp_path / "a.png", levels.to(dtype) / 255)
    exact = (levels.to(dtype) / 255).double() * 255
    assert (read_image(tmp_path / "a.png")[:1].double() - exact).abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize(
    ("suffix", "mode"), [("png", "RGB"), ("tiff", "RGB"), ("bmp", "RGB"), ("jpg", "RGB")]
)
@pytest.mark.parametrize("channels", [1, 3])
def test_files_have_eight_bits_per_channel(tmp_path, suffix, mode, channels):
    write_image(tmp_path / f"a.{suffix}", torch.rand(channels, 5, 7))
    with Image.open(tmp_path / f"a.{suffix}") as picture:
        assert (picture.size, picture.mode) == ((7, 5), mode if channels == 3 else "L")


# --- plot -------------------------------------------------------------------------------------------------


def shown(figure):
    """Titles and levels of the panels of a figure."""
    panels = [a for a in figure.axes if a.images]
    return [(a.get_title(), np.atleast_3d(a.images[0].get_array().data)) for a in panels]


def test_plot_shows_a_tensor_a_batch_a_dict_or_a_list():
    gray, color = torch.rand(1, 4, 9), torch.rand(3, 5, 2)
    expected = [(image.permute(1, 2, 0) * 255).round().byte().numpy() for image in (gray, color)]

    def check(figure, *panels):
        for (title, levels), (name, wanted) in zip(shown(figure), panels, strict=True):
            assert title == name
            assert np.array_equal(levels, wanted)

    check(viz.plot(gray), ("", expected[0]))
    check(viz.plot(gray, ["a"]), ("a", expected[0]))
    check(viz.plot(color.expand(5, -1, -1, -1)), *[("", expected[1])] * 5)
    check(viz.plot({"hood": gray, "roof": color}), ("hood", expected[0]), ("roof", expected[1]))
    check(viz.plot({"hood": gray}, ["best"]), ("best", expected[0]))
    check(viz.plot([color, gray], ["1", "2"]), ("1", expected[1]), ("2", expected[0]))


def test_plot_rounds_as_a_written_image_does():
    """Truncated levels would be 254 and, past one, 1."""
    levels = torch.tensor([-0.2, 0.0019, 0.002, 0.499, 0.999, 1.01]).expand(3, 1, -1)
    figure = viz.plot(levels.requires_grad_())
    assert shown(figure)[0][1][0, :, 0].tolist() == [0, 0, 1, 127, 255, 255]
    assert figure.axes[0].images[0].get_interpolation() == "nearest"
    gray = viz.plot(torch.full((1, 2, 2), 0.5)).axes[0].images[0]
    assert (gray.get_clim(), gray.get_cmap().name) == ((0, 255), "gray")


def test_plot_saves_and_leaves_pyplot_alone(tmp_path):
    import matplotlib.pyplot as plt

    viz.plot({"a": torch.zeros(3, 4, 4), "b": torch.ones(1, 9, 3)}, path=tmp_path / "figure.png")
    assert plt.get_fignums() == []
    image = read_image(tmp_path / "figure.png")
    assert min(image.shape[1:]) > 500
    assert {0, 255} <= set(image.unique().tolist())


@pytest.mark.parametrize(
    ("images", "titles", "message"),
    [
        ([], None, "got 0 for 0 images"),
        ([torch.zeros(3, 2, 2)], ["a", "b"], "got 2 for 1 images"),
        ([torch.zeros(3, 2, 2), torch.zeros(2, 2)], None, r"number 1: an image must be .* got \[2, 2\]"),
        ([torch.zeros(3, 2, 2, dtype=torch.int64)], None, "floats in 0..1 or uint8, got torch.int64"),
        (torch.full((3, 2, 2), float("nan")), None, "must be finite"),
    ],
)
def test_plot_refuses_what_is_no_image(images, titles, message):
    with unchecked(), pytest.raises(ValueError, match=message):
        viz.plot(images, titles)
