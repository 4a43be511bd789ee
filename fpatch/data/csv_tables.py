"""CSV files of placements and objects, read by column name; one error lists all problems of a file."""

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from fpatch.core.checks import nearest, shown
from fpatch.core.files import beneath
from fpatch.core.inputs import read_text
from fpatch.core.text import read_number
from fpatch.data.decoding import read_size

CORNER_COLUMNS = ("ulx", "uly", "urx", "ury", "lrx", "lry", "llx", "lly")
BOX_COLUMNS = ("xmin", "ymin", "xmax", "ymax")

_MAX_SHOWN = 20
_MANY = 3  # swapped boxes are no slip any more
_FLAT_PX2 = 1e-3  # a corner is flat if twice the area of its triangle is below this


class Placements(NamedTuple):
    """The rows of a placements file.

    Attributes:
        images: The image file of each row.
        patches: The patch of each row.
        splits: The split of each row.
        quads: Corners `[r, 4, 2]`, in pixels of the original image.
        sizes_hw: Height and width of each image, in pixels, in the order of the file.
    """

    images: list[Path]
    patches: list[str]
    splits: list[str]
    quads: NDArray[np.float64]
    sizes_hw: dict[Path, tuple[int, int]]


class Objects(NamedTuple):
    """The rows of an objects file.

    Attributes:
        images: The image file of each row.
        labels: The class of each row.
        boxes: `[r, 4]`, xmin, ymin, xmax, ymax in pixels of the original image.
    """

    images: list[Path]
    labels: list[str]
    boxes: NDArray[np.float64]


def read_placements(path: Path, root: Path, outside_frac: float) -> Placements:
    """Read a placements file, with corners or upright rectangles; see `fpatch.data.targets`.

    Args:
        path: The CSV file.
        root: The folder of relative image paths.
        outside_frac: The allowed distance of a coordinate outside the image, as a fraction of the side.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is invalid; the message lists all its problems.
    """
    table = _Table(path)
    columns = table.choose(CORNER_COLUMNS, BOX_COLUMNS)
    values = table.read("patch", columns)
    images, sizes_hw = table.images(root, {})
    table.check_repeats(images, "patch", values)
    table.check_inside(columns, values, [sizes_hw.get(image) for image in images], outside_frac)
    table.check_splits(images, {})
    table.finish()
    if columns == BOX_COLUMNS:
        values = values[:, [0, 1, 2, 1, 2, 3, 0, 3]]
    return Placements(images, table.text["patch"], table.text["split"], values.reshape(-1, 4, 2), sizes_hw)


def read_objects(
    path: Path,
    root: Path,
    outside_frac: float,
    splits: Mapping[Path, str],
    sizes_hw: Mapping[Path, tuple[int, int]],
    classes: Sequence[str] | None,
) -> Objects:
    """Read an objects file; see `fpatch.data.targets`.

    Args:
        path: The CSV file.
        root: The folder of relative image paths.
        outside_frac: The allowed distance of a coordinate outside the image, as a fraction of the side.
        splits: The splits of images, from the placements.
        sizes_hw: The sizes of images, from the placements.
        classes: The allowed labels; None allows any.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If the file is invalid; the message lists all its problems.
    """
    table = _Table(path)
    values = table.read("label", BOX_COLUMNS)
    images, sizes_hw = table.images(root, sizes_hw)
    table.check_repeats(images, "label", values)
    table.check_inside(BOX_COLUMNS, values, [sizes_hw.get(image) for image in images], outside_frac)
    table.check_splits(images, splits)
    for row, label in enumerate(table.text["label"]):
        if classes is not None and label and label not in classes:
            table.add(row, "label", f"{label!r} is not among classes; {nearest(label, classes)}")
    table.finish()
    return Objects(images, table.text["label"], values)


def read_labels(path: Path) -> tuple[str, ...]:
    """Return the labels of an objects file, in the order in which they appear.

    Raises:
        FileNotFoundError: If the file does not exist.
        ValueError: If it is no CSV file, or has no column of labels.
    """
    table = _Table(path)
    if "label" not in table.text:
        raise ValueError(f"{path}, line 1: column 'label' is missing ({nearest('label', table.header)})")
    return tuple(dict.fromkeys(filter(None, table.text["label"])))


def _image_file(root: Path, name: str) -> Path:
    """Return the file of an image; one of an absolute path that is not there is looked for in `root`."""
    path = Path(os.path.normpath(root / name))
    return next(beneath(root, name), path) if Path(name).is_absolute() and not path.exists() else path


def file_identity(path: Path) -> tuple[int, int] | str:
    """Return what tells a file from others: its device and inode, or its path if it is missing.

    A link, a second name, and another case where the file system ignores case, lead to the same file.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.data.csv_tables import file_identity
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Path(folder, "a.png").touch()
        ...     Path(folder, "b.png").symlink_to("a.png")
        ...     file_identity(Path(folder, "a.png")) == file_identity(Path(folder, "b.png"))
        True
    """
    try:
        status = path.stat()
    except (OSError, ValueError):  # a name with a null byte
        return os.path.normpath(path)
    return status.st_dev, status.st_ino


class _Table:
    """The cells of a CSV file as text by column, and the problems found so far."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.problems: list[tuple[int, str]] = []
        text = read_text(path, "no such file; give the path of a CSV file")
        try:
            reader = csv.reader(io.StringIO(text), strict=True)
            cells = ((reader.line_num, [cell.strip() for cell in row]) for row in reader)
            lines = [(line, row) for line, row in cells if any(row)]
        except csv.Error as error:
            raise ValueError(f"{path}: not a CSV file ({error}); save it as CSV in UTF-8") from error
        if len(lines) < 2:
            what = "has a header but no rows" if lines else "is empty"
            raise ValueError(f"{path}: the file {what}; it needs a header and at least one row")
        self.header = lines[0][1]
        if len(self.header) == 1 and (other := next((c for c in ";\t|" if c in self.header[0]), "")):
            raise ValueError(f"{path}, line 1: cells are separated by {other!r}; save it with commas")
        if twice := [name for name in self.header if self.header.count(name) > 1]:
            raise ValueError(f"{path}, line 1: column {twice[0]!r} appears twice; rename or delete one")
        width = len(self.header)
        whole = [(line, row) for line, row in lines[1:] if len(row) == width]
        self.problems += [
            (line, f"line {line}: {len(row)} cells, but the header has {width}; add or delete commas")
            for line, row in lines[1:]
            if len(row) != width
        ]
        self.lines = [line for line, _ in whole]
        self.text = {name: [row[i] for _, row in whole] for i, name in enumerate(self.header)}

    def add(self, row: int, column: str | None, problem: str) -> None:
        where = f"line {self.lines[row]}" + (f", column {column}" if column else "")
        self.problems.append((self.lines[row], f"{where}: {problem}"))

    def finish(self) -> None:
        """Raise all problems together."""
        found = [text for _, text in sorted(self.problems, key=lambda problem: problem[0])]
        if len(found) == 1:
            raise ValueError(f"{self.path}, {found[0]}")
        if found:
            more = [f"and {len(found) - _MAX_SHOWN} more"] if len(found) > _MAX_SHOWN else []
            listed = "\n  ".join([f"{self.path}: {len(found)} problems", *found[:_MAX_SHOWN], *more])
            raise ValueError(listed)

    def choose(self, *formats: tuple[str, ...]) -> tuple[str, ...]:
        """Return the format nearest to the header."""
        complete = [columns for columns in formats if set(columns) <= set(self.header)]
        if len(complete) > 1:
            both = " and ".join(" ".join(columns) for columns in complete)
            raise ValueError(f"{self.path}, line 1: the columns {both} are alternatives; delete one group")
        return complete[0] if complete else max(formats, key=lambda names: len(set(names) & set(self.header)))

    def read(self, what: str, columns: tuple[str, ...]) -> NDArray[np.float64]:
        """Read the coordinates [r, c] of patches or labels, with all checks that need no image.

        An invalid cell becomes NaN.
        """
        needed = ("image", what, "split", *columns)
        if missing := [name for name in needed if name not in self.header]:
            spare = [name for name in self.header if name not in needed]
            hints = {name: f" ({nearest(name, spare)})" if spare else "" for name in missing}
            each = "; ".join(f"column {name!r} is missing{hint}" for name, hint in hints.items())
            raise ValueError(f"{self.path}, line 1: {each}; needed are {', '.join(needed)}")
        for name in needed[:3]:
            for row, cell in enumerate(self.text[name]):
                if not cell:
                    self.add(row, name, f"the cell is empty; write the name of the {name}")
        values = self.numbers(columns)
        if columns == CORNER_COLUMNS:
            self.check_quads(values)
        else:
            self.check_boxes(values)
        return values

    def numbers(self, columns: Sequence[str]) -> NDArray[np.float64]:
        values = np.full((len(self.lines), len(columns)), np.nan)
        for i, name in enumerate(columns):
            for row, cell in enumerate(self.text[name]):
                try:
                    values[row, i] = read_number(name, cell)
                except ValueError:
                    self.add(row, name, f"{shown(cell)} is not a finite number; write one such as 12.5")
        return values

    def images(
        self, root: Path, known: Mapping[Path, tuple[int, int]]
    ) -> tuple[list[Path], dict[Path, tuple[int, int]]]:
        """Return the image file of each row, and the sizes of readable files.

        A file with several spellings has the path of the first one, in `known` or in this table.
        """
        one = {file_identity(image): image for image in known}
        files: dict[str, Path] = {}
        first: dict[Path, int] = {}
        for row, name in enumerate(self.text["image"]):
            if name not in files:
                path = _image_file(root, name)
                files[name] = one.setdefault(file_identity(path), path)
                if name:  # an empty cell is reported elsewhere
                    first.setdefault(files[name], row)
        sizes_hw, missing = {}, []
        for image, row in first.items():
            try:
                sizes_hw[image] = known[image] if image in known else read_size(image)
            except FileNotFoundError as error:
                missing.append((row, str(error)))
            except (OSError, ValueError) as error:
                self.add(row, "image", str(error))
        if len(missing) == len(first) > 1:
            where = "; correct the column 'image', or set data.root to their folder"
            raise FileNotFoundError(
                f"{self.path}: none of its {len(missing)} images is there; no such image as the first, "
                f"{next(iter(first))}{where}"
            )
        for row, problem in missing:
            self.add(row, "image", problem)
        return [files[name] for name in self.text["image"]], sizes_hw

    def check_repeats(self, images: Sequence[Path], name: str, values: NDArray[np.float64]) -> None:
        """Check that no two rows are equal, whatever the spelling of their image and numbers."""
        first: dict[tuple[Path, str, str, bytes], int] = {}
        cells = zip(images, self.text[name], self.text["split"], values, strict=True)
        for row, (image, own, split, numbers) in enumerate(cells):
            if not np.isfinite(numbers).all():
                continue  # it is told already
            line = first.setdefault((image, own, split, (numbers + 0.0).tobytes()), self.lines[row])
            if line != self.lines[row]:
                self.add(row, None, f"repeats line {line}; delete one of them")

    def check_quads(self, values: NDArray[np.float64]) -> None:
        """Check that corners are convex and clockwise, as those of a flat patch seen from the front."""
        corners = values.reshape(-1, 4, 2)
        with np.errstate(over="ignore", invalid="ignore"):
            side = np.roll(corners, -1, axis=1) - corners
            after = np.roll(side, -1, axis=1)
            turn = side[..., 0] * after[..., 1] - side[..., 1] * after[..., 0]
        clockwise, counter = (turn > _FLAT_PX2).sum(1), (turn < -_FLAT_PX2).sum(1)
        for row in np.flatnonzero((clockwise < 4) & np.isfinite(turn).all(1)).tolist():
            quad = " ".join(f"({x:g}, {y:g})" for x, y in corners[row])
            if clockwise[row] + counter[row] == 0:
                problem = "has zero area; measure its corners again"
            elif clockwise[row] == counter[row] == 2:
                problem = "crosses itself; two neighboring corners are exchanged"
            elif counter[row] == 4:
                problem = "is mirrored; list the corners clockwise from the upper left: ul, ur, lr, ll"
            else:
                problem = "is not convex, as a flat patch is; a corner is misplaced or repeated"
            self.add(row, None, f"the quad {quad} {problem}")

    def check_boxes(self, values: NDArray[np.float64]) -> None:
        swapped = (values[:, :2] > values[:, 2:]).any(1)
        if swapped.sum() >= _MANY and (values[:, 2:].min(1) >= 0).all():
            corners = " ".join(f"{value:g}" for value in values[swapped][0])
            what = f"the box {corners} ends before it begins, as {int(swapped.sum()) - 1} others do"
            cause = "xmax and ymax look like a width and a height; add xmin to the one and ymin to the other"
            self.add(int(swapped.argmax()), None, f"{what}: {cause}")
            return
        for low, high in ((0, 2), (1, 3)):
            for row in np.flatnonzero(values[:, low] >= values[:, high]).tolist():
                pair = f"{BOX_COLUMNS[low]} {values[row, low]:g} must be less than {BOX_COLUMNS[high]}"
                way = "swap the two" if values[row, low] > values[row, high] else "the box has zero area"
                self.add(row, BOX_COLUMNS[low], f"{pair} {values[row, high]:g}; {way}")

    def check_inside(
        self,
        columns: Sequence[str],
        values: NDArray[np.float64],
        sizes_hw: Sequence[tuple[int, int] | None],
        outside_frac: float,
    ) -> None:
        """Check that coordinates, x and y in turn, lie in the image or within `outside_frac` of its side."""
        sides = [size_hw[::-1] if size_hw else (np.nan, np.nan) for size_hw in sizes_hw]
        limit = np.tile(np.array(sides).reshape(-1, 2), values.shape[1] // 2)
        outside = (values < -outside_frac * limit) | (values > (1 + outside_frac) * limit)
        for row, i in np.argwhere(outside).tolist():
            side = f"{limit[row, i]:g} px {'high' if i % 2 else 'wide'}"
            way = f"correct it, or allow more than outside_frac = {outside_frac:g} (in [data] of a study)"
            self.add(row, columns[i], f"{values[row, i]:g} is outside the image, {side}; {way}")

    def check_splits(self, images: Sequence[Path], known: Mapping[Path, str]) -> None:
        """Check that each image belongs to one split; otherwise a test image may be in training."""
        first = dict(known)
        for row, (image, split) in enumerate(zip(images, self.text["split"], strict=True)):
            if split and first.setdefault(image, split) != split:
                name = self.text["image"][row]
                same = name if str(image).endswith(name) else f"{name}, the same file as {image},"
                self.add(row, "split", f"{split!r}, but {same} is in {first[image]!r} elsewhere; choose one")
