"""Malformed files that a study reads: itself, its tables, images, profiles and weights."""
# ruff: noqa: E501, the tables of cases have a line for each

import csv
import io
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from PIL import Image

from malformed.damage import Damage, bad_bytes, bad_toml, edit, write
from malformed.engine import Case

TRAIN = ("train", "study.toml")
RICH = ("train", "rich.toml")


def study_cases() -> Iterator[Case]:
    """Yield the cases of all files of a study."""
    for maker in (_studies, _values, _tables, _images, _further):
        yield from maker()


def _studies() -> Iterator[Case]:
    for command in ("describe", "doctor", "train", "sweep"):
        name = "sweep.toml" if command == "sweep" else "study.toml"
        for kind, damage in bad_bytes(name):
            yield Case(f"study: {command} {kind}", (command, name), damage, says=name)
    texts = {
        "a key twice": ("seed = 3", "seed = 3\nseed = 4", "study.toml"),
        "an open string": ('name = "tiny"', 'name = "tiny', "study.toml"),
        "deep": ("seed = 3", "seed = " + "[" * 3000 + "]" * 3000, "study.toml"),
        "a deep table": ("[optimizer]", "[" + "a." * 3000 + "b]\n[optimizer]", "study.toml"),
        "unknown section": ("[optimizer]", "[optimiser]", "optimizer"),
        "unknown key": ("num_steps = 6", "num_step = 6", "num_steps"),
        "no data": ("[data]", "[date]", "data"),
        "no pipeline": ("[pipeline.", "[pipe.", "pipeline"),
        "unknown stage": ("compose.exposure", "compose.expozure", "compose.exposure"),
        "stage of no module": ("compose.exposure", "nowhere:exposure", "nowhere"),
        "stage with a path": ("compose.exposure", "../compose:exposure", "compose"),
        "stage of dots": ("compose.exposure", "..:x", "stage"),
        "stage is empty": ('"compose.exposure"', '""', "stage"),
        "a bare minus": ("seed = 3", "seed = -", "study.toml"),
        "swapped range": ("stops = [-0.2, 0.2]", "stops = [0.2, -0.2]", "swap"),
        "one number for a range": ("stops = [-0.2, 0.2]", "stops = 0.2", "stops"),
        "three numbers for a range": ("stops = [-0.2, 0.2]", "stops = [0, 1, 2]", "stops"),
        "unknown phase": ('phases = ["eval"]', 'phases = ["trian"]', "trian"),
        "phase in capitals": ('phases = ["eval"]', 'phases = ["Eval"]', "Eval"),
        "unknown loss": ("vanish = 1.0", "vanich = 1.0", "vanish"),
        "weight no number": ("vanish = 1.0", "vanish = nan", "vanish"),
        "unknown patch": ('patches = ["side", "rear"]', 'patches = ["side", "reer"]', "rear"),
        "patch twice": ('patches = ["side", "rear"]', 'patches = ["side", "side"]', "side"),
        "size one number": ("size = [48, 64]", "size = 96", "height, width"),
        "size zero": ("size = [48, 64]", "size = [0, 64]", "size"),
        "size huge": ("size = [48, 64]", "size = [48000000, 64]", "size"),
        "size too small": ("size = [48, 64]", "size = [0, 0]", "size"),
        "shape zero": ("side = [3, 10, 14]", "side = [3, 0, 14]", "side"),
        "shape huge": ("side = [3, 10, 14]", "side = [3, 1000000, 1000000]", "side"),
        "shape of five channels": ("side = [3, 10, 14]", "side = [5, 10, 14]", "side|channel"),
        "rate zero": ("learning_rate = 0.1", "learning_rate = 0", "learning_rate"),
        "rate huge": ("learning_rate = 0.1", "learning_rate = 1e300", "learning_rate"),
        "rate negative": ("learning_rate = 0.1", "learning_rate = -0.1", "learning_rate"),
        "batch huge": ("batch_size = 4", "batch_size = 1000000000000000000", "batch_size"),
        "steps huge": ("num_steps = 6", "num_steps = 1000000000000000000000", "num_steps"),
        "block huge": ("block = 3", "block = 1000000000000000000", "block"),
        "draws huge": ("num_draws = 2", "num_draws = 1000000000000", "num_draws"),
        "seed huge": ("seed = 3", "seed = 123456789012345678901234567890", "seed"),
        "seed negative": ("seed = 3", "seed = -1", "seed"),
        "classes twice": ("size = [48", 'classes = ["vehicle", "vehicle"]\nsize = [48', "vehicle"),
        "classes a gone file": ("size = [48", 'classes = "names.txt"\nsize = [48', "names.txt"),
        "classes zero": ("size = [48", "classes = 0\nsize = [48", "classes"),
        "classes too few": ("size = [48", 'classes = ["bird"]\nsize = [48', "vehicle"),
        "a bad regular name": ('name = "tiny"', 'name = "../../tiny"', "name"),
        "weights of no file": ("tiny.safetensors", "none.safetensors", "none.safetensors"),
        "weights a folder": ("tiny.safetensors", ".", "weights|tiny|regular"),
        "a loader of dots": ("study_fixture:tiny", "os:system", "os:system"),
        "runs in no folder": ('runs = "', 'runs = "/proc/none', "/proc/none"),
        "mlflow a typo": ("mlflow = false", 'mlflow = "sqlite//x"', "mlflow"),
    }
    for name, (old, new, says) in texts.items():
        command = ("train", "study.toml")
        yield Case(f"study: {name}", command, edit("study.toml", old, new), says=says)


_FREE = (
    r"^(name|seed|objective\.weights\.\w+|data\.patches|data\.size) missing|^(data\.(objects|patches|validation)"
    r"|train\.\w+|evaluate\.\w+|optimizer\.\w+|log\.\w+|optimizer|train|evaluate|log) missing"
    r"|^(pipeline\.\w+(\.\w+)?\.(angle_deg|jitter_frac|stops|phases)|pipeline\.\w+\.weights) missing"
    r"|^(optimizer|train|evaluate|log) a table|^log\.(mlflow|tensorboard) true|^log\.runs text$"
    r"|^name (text|long)|^name a date$|^pipeline\.camera(\.noise)? missing|^pipeline\.(smooth|affine) missing"
    r"|^data\.(size|patches)\.0 missing|^pipeline.affine.angle_deg\.0"
)
"""Edits that leave a sound study."""


def _values() -> Iterator[Case]:
    for kind, damage in bad_toml("study.toml", skip=_FREE):
        is_number = kind.endswith(("half", "negative", "missing"))
        yield Case(f"values: {kind}", TRAIN, damage, codes=(0, 2) if is_number else (2,))


def _csv(name: str, row: int, column: str, value: str) -> Damage:
    def damage() -> None:
        lines = list(csv.reader(io.StringIO(Path(name).read_text())))
        lines[row][lines[0].index(column)] = value
        with Path(name).open("w", newline="") as file:
            csv.writer(file).writerows(lines)

    return damage


def _tables() -> Iterator[Case]:
    for name in ("placements.csv", "objects.csv"):
        for kind, damage in bad_bytes(name):
            yield Case(f"tables: {name} {kind}", TRAIN, damage, says=f"{name}|/dev/zero")
        corner = "ulx" if name == "placements.csv" else "xmin"
        for value in (
            "",
            "nan",
            "inf",
            "-inf",
            "1e999",
            "ten",
            "0x10",
            "1__0",
            "٣",
            "1,5",
            "-5",
            "1e12",
            "True",
            "1 2",
        ):
            yield Case(
                f"tables: {name} number {value!r}",
                TRAIN,
                _csv(name, 2, corner, value),
                says=rf"(?s){name}.*line 3",
            )
        what = "patch" if name == "placements.csv" else "label"
        for column in ("image", what, "split"):
            yield Case(
                f"tables: {name} {column} empty",
                TRAIN,
                _csv(name, 2, column, ""),
                says=rf"(?s){name}.*line 3",
            )
        for image in (
            ".",
            "..",
            "/",
            "nowhere.png",
            "/dev/zero",
            "/dev/stdin",
            "\0",
            "x" * 5000,
            "~",
            "study.toml",
        ):
            yield Case(f"tables: {name} image {image[:9]!r}", TRAIN, _csv(name, 2, "image", image), says=name)
        yield Case(
            f"tables: {name} header twice", TRAIN, edit(name, "split", "image"), says=rf"{name}.*twice"
        )
        yield Case(f"tables: {name} no column", TRAIN, edit(name, corner, "x0"), says=rf"{name}.*{corner}")
        yield Case(
            f"tables: {name} semicolons",
            TRAIN,
            lambda n=name: Path(n).write_text(Path(n).read_text().replace(",", ";")),
            says=name,
        )
        yield Case(
            f"tables: {name} an open quote",
            TRAIN,
            edit(name, "photograph-00.png", '"photograph-00.png'),
            says=name,
        )
        yield Case(
            f"tables: {name} a cell too many",
            TRAIN,
            edit(name, "photograph-00.png", "x,photograph-00.png"),
            says=rf"{name}.*line 2",
        )
        yield Case(
            f"tables: {name} a huge cell", TRAIN, edit(name, "photograph-00.png", "x" * 200_000), says=name
        )
        yield Case(
            f"tables: {name} a row twice",
            TRAIN,
            lambda n=name: Path(n).write_text(Path(n).read_text() + Path(n).read_text().splitlines()[1]),
            says="repeats line 2",
        )
        yield Case(f"tables: {name} another split", TRAIN, _csv(name, 1, "split", "test"), codes=(0, 2))
    yield Case("tables: boxes as width and height", TRAIN, _widths, says="(?s)objects.csv.*width")


def _widths() -> None:
    lines = list(csv.reader(io.StringIO(Path("objects.csv").read_text())))
    for line in lines[1:]:
        line[5:] = ["9", "8"]
    with Path("objects.csv").open("w", newline="") as file:
        csv.writer(file).writerows(lines)


def _png(width: int, height: int) -> bytes:
    """Return a PNG whose header promises a size that its pixels do not have."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", header)
        + chunk(b"IDAT", zlib.compress(b"\0" * 99))
        + chunk(b"IEND", b"")
    )


def _saved(name: str, mode: str, values: object, form: str) -> Damage:
    return lambda: Image.fromarray(np.asarray(values), mode).save(name, format=form)


def _images() -> Iterator[Case]:
    name = "photograph-00.png"
    for kind, damage in bad_bytes(name):
        yield Case(f"images: {kind}", TRAIN, damage, says=f"{name}|/dev/zero|placements")
    bad: dict[str, Damage] = {
        "cut in its header": write(name, b"\x89PNG\r\n\x1a\n\0\0\0"),
        "a giant header": write(name, _png(1_000_000, 1_000_000)),
        "a large header": write(name, _png(20_000, 20_000)),
        "no width": write(name, _png(0, 10)),
        "another size": write(name, _png(64, 48)),
        "floats": _saved(name, "F", np.zeros((64, 48), np.float32), "TIFF"),
        "32 bits": _saved(name, "I", np.full((64, 48), 2**30, np.int32), "TIFF"),
        "one pixel": _saved(name, "RGB", np.zeros((1, 1, 3), np.uint8), "PNG"),
        "a web page": write(name, "<html><body>404</body></html>"),
        "SVG": write(name, '<svg xmlns="http://www.w3.org/2000/svg" width="64" height="48"/>'),
        "a program": write(name, b"\x7fELF" + bytes(200)),
        "an archive": write(name, b"PK\x03\x04" + bytes(200)),
        "EPS": write(name, "%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 64 48\n%%EndComments\n"),
    }
    for kind, damage in bad.items():
        yield Case(f"images: {kind}", TRAIN, damage, says=f"{name}|/dev/zero|placements")


def _further() -> Iterator[Case]:
    for name in ("poster.png", "mask.png", "printer.icc", "colors.csv", "tiny.safetensors"):
        for kind, damage in bad_bytes(name):
            if (name, kind) in (("poster.png", "an image"), ("mask.png", "an image")):
                continue
            is_whole = kind == "without its end" or (name, kind) == ("colors.csv", "cut in half")
            codes = (0, 2) if is_whole else (2,)
            yield Case(
                f"further: {name} {kind}", RICH, damage, codes, "" if is_whole else f"{name}|/dev/zero"
            )
    bad = {
        "mask all black": (_saved("mask.png", "L", np.zeros((10, 14), np.uint8), "PNG"), "mask"),
        "mask of floats": (_saved("mask.png", "F", np.zeros((10, 14), np.float32), "TIFF"), "mask"),
        "a giant mask": (write("mask.png", _png(1_000_000, 1_000_000)), "mask"),
        "a giant poster": (write("poster.png", _png(1_000_000, 1_000_000)), "poster"),
        "a color of two": (write("colors.csv", "0, 0\n"), "colors.csv.*line 1"),
        "a color of text": (write("colors.csv", "red, green, blue\n"), "colors.csv.*line 1"),
        "a color of 255": (write("colors.csv", "255, 0, 0\n"), "colors.csv.*line 1"),
        "a color of no number": (write("colors.csv", "nan, 0, 0\n"), "colors.csv.*line 1"),
        "no color": (write("colors.csv", "# none\n"), "colors.csv"),
        "weights of another network": (become_weights, "tiny.safetensors"),
    }
    for kind, (damage, says) in bad.items():
        yield Case(f"further: {kind}", RICH, damage, says=says)
    yield Case("further: rich is sound", ("describe", "rich.toml"), codes=(0,))


def become_weights() -> None:
    """Write weights of a network with other layers."""
    import torch
    from safetensors.torch import save_file

    save_file({"linear.weight": torch.zeros(2, 3)}, "tiny.safetensors")
