"""A training run as an animation: its patches over the steps, beside the logged curves."""

import io
import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw
from safetensors.torch import load_file
from torch import Tensor

from fpatch.core.files import write_atomic
from fpatch.data.images import to_pixels
from fpatch.log.records import read_records
from fpatch.viz import style
from fpatch.viz.names import clip_name

_MAX_FRAMES = 60
_ALL_FRAMES_MS, _LONGEST_FRAME_MS, _LAST_FRAME_MS = 6000, 500, 2000
_BOX_PX, _CHART_PX, _GAP_PX, _LINE_PX = 288, (320, 150), 24, 24
_SMOOTH = 3  # curves are drawn larger by this factor, and reduced
_PAPER, _INK, _PALE = map(style.rgb, (style.PAPER, style.INK, style.PALE))
_GRID = (235, 235, 235)


class _Curve(NamedTuple):
    """The style of a logged scalar, and its values by step.

    Attributes:
        title: The title above the chart.
        scale: The factor of the logged values.
        limits: The limits of the y axis; None: those of the values.
        color: The color of the part up to the current step.
        points: (step, value), scaled.
    """

    title: str
    scale: float
    limits: tuple[float, float] | None
    color: tuple[int, int, int]
    points: Sequence[tuple[int, float]] = ()


_CURVES = {
    "train/loss": _Curve("loss", 1.0, None, style.rgb("#0072b2")),
    "validation/success/patch": _Curve("success on validation, %", 100.0, (0.0, 100.0), style.rgb("#d55e00")),
}


def animate(
    run_folder: str | os.PathLike[str],
    path: str | os.PathLike[str],
    decode: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None = None,
) -> None:
    """Write a GIF of the patches at every numbered checkpoint of a run, at most 60 of them.

    The logged loss stands beside the patches, and the success on validation rows if it was logged. Small
    patches are enlarged by whole factors, a pixel to a square. Levels are those of `fpatch.data.write_image`,
    and a frame has 256 colors.

    Args:
        run_folder: The folder of the run.
        path: GIF file; its folder is made if absent, an older file is replaced.
        decode: A function from the trained parameters to patches [c, h, w] by name; None: the parameters are
            the patches, as in `create.pixels`.

    Raises:
        FileNotFoundError: If the folder has no numbered checkpoints.
        ValueError: If there is no patch, or the patches of `decode` are no images in 0..1.

    Example:
        >>> import tempfile
        >>> import torch
        >>> from pathlib import Path
        >>> from safetensors.torch import save_file
        >>> from fpatch import viz
        >>> with tempfile.TemporaryDirectory() as folder:  # as `fpatch.train` leaves it, without its log
        ...     Path(folder, "checkpoints").mkdir()
        ...     for step in (1, 2):
        ...         patch = {"params/hood": torch.full((3, 4, 6), step / 2)}
        ...         save_file(patch, Path(folder, "checkpoints", f"step-{step:08d}.safetensors"))
        ...     viz.animate(folder, Path(folder, "patches.gif"))
        ...     Path(folder, "patches.gif").read_bytes()[:3]
        b'GIF'
    """
    folder, path = Path(run_folder), Path(path)
    files = sorted((folder / "checkpoints").glob("step-*.safetensors"), key=_step)
    if not files:
        raise FileNotFoundError(
            f"animate: {folder} has no checkpoints/step-*.safetensors; train a patch first"
        )
    shown = np.unique(np.linspace(0, len(files) - 1, _MAX_FRAMES).round().astype(int))
    patches = {_step(files[i]): _read_patches(files[i], decode) for i in shown}
    curves, last = _read_curves(folder), _step(files[-1])
    frames = [_draw_frame(pixels, curves, step, last) for step, pixels in patches.items()]
    small = [frame.quantize(256, dither=Image.Dither.NONE) for frame in frames]
    frame_ms = min(_ALL_FRAMES_MS // len(small), _LONGEST_FRAME_MS)
    durations = [frame_ms] * (len(small) - 1) + [_LAST_FRAME_MS]
    file = io.BytesIO()
    small[0].save(
        file, "gif", save_all=True, append_images=small[1:], duration=durations, loop=0, optimize=False
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomic(path, file.getvalue())


def _step(file: Path) -> int:
    return int(file.stem.removeprefix("step-"))


def _read_patches(
    file: Path, decode: Callable[[Mapping[str, Tensor]], Mapping[str, Tensor]] | None
) -> dict[str, np.ndarray]:
    """Read the patches of a checkpoint as levels [h, w, c], by name."""
    tensors = load_file(file)
    params = {n.removeprefix("params/"): t for n, t in tensors.items() if n.startswith("params/")}
    own = {name: value for name, value in params.items() if "/" not in name}  # others are of networks
    patches = own if decode is None else decode(params)
    if not patches:
        raise ValueError(f"animate: {file} holds no patch; give the run of a study that makes one")
    for name, patch in patches.items():
        if patch.ndim != 3 or not (patch.min() >= 0 and patch.max() <= 1):
            raise ValueError(
                f"animate: {name!r} of {file} is no image [c, h, w] in 0..1; give decode=, which makes the "
                "patches from the parameters"
            )
    return {name: to_pixels(patch, f"animate: {name!r} of {file}") for name, patch in patches.items()}


def _read_curves(folder: Path) -> list[_Curve]:
    """Read the logged values of the curves; curves without values are left out."""
    points: dict[str, list[tuple[int, float]]] = {name: [] for name in _CURVES}
    for record in read_records(folder):
        for name in _CURVES.keys() & record["values"] if record["kind"] == "scalars" else ():
            value = float(record["values"][name])
            if math.isfinite(value):
                points[name].append((record["step"], value * _CURVES[name].scale))
    return [curve._replace(points=points[name]) for name, curve in _CURVES.items() if points[name]]


def _draw_frame(patches: Mapping[str, np.ndarray], curves: list[_Curve], step: int, last: int) -> Image.Image:
    """Draw the patches from left to right, then the curves up to a step, one below the other."""
    enlarged = {name: _enlarge(pixels) for name, pixels in patches.items()}
    top = _GAP_PX + _LINE_PX + 12
    chart_width, chart_height = _CHART_PX
    body = max(
        max(p.height for p in enlarged.values()) + _LINE_PX, len(curves) * (chart_height + _GAP_PX) - _GAP_PX
    )
    patch_width = sum(p.width + _GAP_PX for p in enlarged.values())
    width = _GAP_PX + patch_width + (chart_width + _GAP_PX if curves else 0)
    frame = Image.new("RGB", (max(width, 200), top + body + _GAP_PX), _PAPER)
    canvas = ImageDraw.Draw(frame)
    canvas.text((_GAP_PX, _GAP_PX - 4), f"step {step} of {last}", fill=_INK, font=style.pillow_font(20))
    left = _GAP_PX
    for name, picture in enlarged.items():
        canvas.text((left, top), _fit(name, picture.width), fill=_INK, font=style.pillow_font(14))
        frame.paste(picture, (left, top + _LINE_PX))
        left += picture.width + _GAP_PX
    for i, curve in enumerate(curves):
        frame.paste(_draw_chart(curve, step, last), (left, top + i * (chart_height + _GAP_PX)))
    return frame


def _fit(name: str, width: int) -> str:
    """Clip a name to the width of its patch, and of the gap beside it."""
    letters = len(name)
    while letters > 5 and style.pillow_font(14).getlength(clip_name(name, letters)) > width + _GAP_PX - 6:
        letters -= 1
    return clip_name(name, letters)


def _enlarge(pixels: np.ndarray) -> Image.Image:
    """Enlarge a patch by a whole factor, up to the size of a box; reduce a larger one to it."""
    picture = Image.fromarray(pixels if pixels.shape[2] == 3 else pixels[..., 0]).convert("RGB")
    factor = _BOX_PX // max(picture.size)
    if factor:
        return picture.resize((picture.width * factor, picture.height * factor), Image.Resampling.NEAREST)
    picture.thumbnail((_BOX_PX, _BOX_PX))
    return picture


def _draw_chart(curve: _Curve, step: int, last: int) -> Image.Image:
    """Draw a curve in its color up to a step, and pale beyond."""
    width, height = (side * _SMOOTH for side in _CHART_PX)
    left, right, upper, lower = 48 * _SMOOTH, width - 8 * _SMOOTH, 30 * _SMOOTH, height - 8 * _SMOOTH
    values = [value for _, value in curve.points]
    low, high = curve.limits or (min(values), max(values))
    span = (high - low) or 1.0
    chart = Image.new("RGB", (width, height), _PAPER)
    canvas = ImageDraw.Draw(chart)
    font = style.pillow_font(12 * _SMOOTH)

    def place(point: tuple[int, float]) -> tuple[float, float]:
        at, value = point
        return left + (right - left) * at / max(last, 1), lower - (lower - upper) * (value - low) / span

    canvas.text((left, 2 * _SMOOTH), curve.title, fill=curve.color, font=style.pillow_font(14 * _SMOOTH))
    for value in {low, high}:
        y = place((0, value))[1]
        canvas.line([(left, y), (right, y)], fill=_GRID, width=_SMOOTH)
        canvas.text((left - 6 * _SMOOTH, y), f"{value:.3g}", fill=_INK, font=font, anchor="rm")
    done = [point for point in curve.points if point[0] <= step]
    ahead = curve.points[max(len(done) - 1, 0) :]
    for points, color, line in ((ahead, _PALE, 1), (done, curve.color, 2)):
        canvas.line([place(p) for p in points], fill=color, width=line * _SMOOTH)
    if done:
        canvas.circle(place(done[-1]), 4 * _SMOOTH, fill=curve.color)
    return chart.resize(_CHART_PX, Image.Resampling.BOX)
