"""How the time of everything but the victim grows: with batch, placements, patches, frame and data.

The pipeline is that of `step.py`, from the parameters to the image, forward and backward; the mean of the
image stands for the victim. One quantity varies at a time, by factors of two or four, all sizes in turn. The
exponent is the slope of a straight line through the logarithms of time and quantity, by least squares in each
round: 1 is linear, 0 is flat, and a fixed cost of a step pulls it below 1. The slope between the two largest
sizes, where a fixed cost counts least, stands beside it; more than 1 there is growth that should not be.

The last line is of the loader: a batch of 16 from as many images of 16 x 16 pixels that are already
decoded, which leaves the choice of rows and their collection.

    python benchmarks/growth.py [--repeats 11] [--small]
"""

import csv
import math
import statistics
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from harness import Options, Record, Times, interleave, quartiles, read_options
from torch import Tensor
from workloads import make_batch, make_pipeline, make_training, make_victim

from fpatch import data, random

BASE = {"b": 8, "side": 320, "num_placements": 3, "texture_px": 64, "drawn_px": 64.0}
"""Of what does not vary."""


def darkness(values: Mapping[str, Any], patch_params: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The mean of each image, in the place of a victim and its loss."""
    return {"darkness": values["image"].mean((1, 2, 3))}


def make_step(**changes: Any) -> Callable[[], object]:
    """A step of everything but the victim."""
    at = BASE | changes
    camera = make_pipeline(make_victim("tiny"), at["texture_px"]).upto("noise")
    step, state = make_training(camera | {"darkness": darkness})
    batch = make_batch(at["b"], at["side"], at["num_placements"], at["drawn_px"])
    return lambda: step(state, batch)


def make_loader(num: int, folder: Path) -> Callable[[], object]:
    """The next batch of 16 from a set of images that are held in memory."""
    root = folder / str(num)
    root.mkdir()
    data.write_image(folder / "image.png", torch.full((3, 16, 16), 0.5))
    image = (folder / "image.png").read_bytes()
    with (root / "placements.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("image", "patch", "split", "ulx", "uly", "urx", "ury", "lrx", "lry", "llx", "lly"))
        for i in range(num):
            (root / f"{i}.png").write_bytes(image)
            table.writerow((f"{i}.png", "hood", "train", 2, 2, 14, 2, 14, 14, 2, 14))
    dataset = data.targets(root / "placements.csv", size=(16, 16))
    dataset.batch(dataset.image_ids)
    loader = data.Loader(dataset, random.key(0), 16)
    steps = iter(range(10**9))
    return lambda: loader.batch(next(steps))


def slope(times: Times, sizes: Mapping[str, float], of: slice) -> list[float]:
    """Exponent of time in size, per round, over some of the sizes."""
    names = list(sizes)[of]
    x = [math.log(sizes[name]) for name in names]
    rounds = zip(*(times.seconds[name] for name in names), strict=True)
    return [statistics.linear_regression(x, [math.log(t) for t in seconds]).slope for seconds in rounds]


def measure(
    axis: str, functions: dict[int, Callable[[], object]] | dict[float, Any], options: Options, record: Record
) -> None:
    """One quantity; `functions` by its value."""
    sizes = {f"{size:g}": size for size in functions}
    times = interleave(
        {f"{size:g}": f for size, f in functions.items()}, options.repeats, device=options.device
    )
    record.add(
        axis,
        exponent=quartiles(slope(times, sizes, slice(None))),
        at_the_end=quartiles(slope(times, sizes, slice(-2, None))),
        **{f"ms_at_{name}": times.ms(name) for name in sizes},
    )


def main(argv: list[str] | None = None) -> None:
    """Every quantity."""
    options = read_options(__doc__, argv)
    record = Record("growth", options)
    small = options.small

    def steps(sizes: list[int], change: Callable[[int], dict[str, Any]], power: int = 1) -> dict[float, Any]:
        if small:
            return {n**power: make_step(**change(n) | {"b": 1, "side": 128}) for n in sizes[:2]}
        return {n**power: make_step(**change(n)) for n in sizes}

    measure("rows of the batch", steps([1, 2, 4, 8, 16, 32, 64], lambda n: {"b": n}), options, record)
    measure("placements", steps([1, 2, 4, 8, 16], lambda n: {"num_placements": n}), options, record)
    texture = steps([32, 64, 128, 256, 512, 1024], lambda n: {"texture_px": n}, 2)
    measure("texels of a patch, drawn 64 px wide", texture, options, record)
    drawn = steps([32, 64, 128, 256, 512], lambda n: {"drawn_px": n / 1.2, "side": 640, "b": 2}, 2)
    measure("pixels that a patch is drawn on", drawn, options, record)
    frame = steps([320, 640, 960, 1280], lambda n: {"side": n, "b": 2}, 2)
    measure("pixels of a frame", frame, options, record)
    with tempfile.TemporaryDirectory() as folder:
        sets = {n: make_loader(n, Path(folder)) for n in ((10, 20) if small else (100, 1000, 10000))}
        measure("images, the loader alone", sets, options, record)


if __name__ == "__main__":
    main()
