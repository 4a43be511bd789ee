"""Images from disk: what 10,000 of them need in memory and to open, and whether a step waits for them.

The files are 500 images of 1280 x 1280, JPEG, each copied 20 times (2 GB), in a temporary folder, at 640 x
640 in batches of 8. Memory is the peak of a fresh process (on Linux) that opens them and goes through the
loader, over that of one with 100 of them. A step waits for its batch (as little as the thread behind the
loader allows), and the share of the wait is that of the whole step, with resnet18 as the victim. Decoding
is timed beside Pillow and torchvision, which read the same bytes to the same layout, one thread each.

    python benchmarks/data.py [--repeats 11] [--small]
"""

import csv
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from harness import Options, Record, interleave, quartiles, read_options
from PIL import Image
from torchvision.io import decode_jpeg, read_file
from workloads import NAMES, make_pipeline, make_training, make_victim

from fpatch import random
from fpatch.data import Loader, TargetSet, letterbox, read_image, targets

# torchvision 0.29 announces its decoder's end, in favor of TorchCodec
warnings.filterwarnings("ignore", "The image decoding and encoding capabilities", DeprecationWarning)

PROBE = """
import sys, time
from pathlib import Path
from fpatch import random
from fpatch.data import Loader, targets
start = time.perf_counter()
data = targets(sys.argv[1], sys.argv[2], size=[int(sys.argv[3])] * 2, resident="disk")
opened = time.perf_counter() - start
batches = Loader(data, random.key(0), int(sys.argv[4])).batches()
for _ in range(int(sys.argv[5])):
    next(batches)
batches.close()
# not ru_maxrss, which a child on Linux begins with its parent's
peak = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
print(opened, int(peak.split()[1]) / 1024)
"""


@dataclass(frozen=True)
class Workload:
    """How much of everything."""

    images: int = 10_000
    few: int = 100
    files: int = 500
    side_px: int = 1280
    size_px: int = 640
    batch: int = 8
    batches: int = 40
    victim: str = "resnet18"


SMALL = Workload(8, 4, 2, 96, 48, 2, 2, "tiny")


def make_images(folder: Path, work: Workload) -> None:
    """Files, their copies, since a link is the same image, and the tables of all and of the first few."""
    generator = np.random.default_rng(0)
    for i in range(work.files):
        # smooth, so that a file has the size of a photograph's, about 0.2 MB
        coarse = generator.integers(0, 256, (work.side_px // 32, work.side_px // 32, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((work.side_px, work.side_px), Image.Resampling.BICUBIC)
        image.save(folder / f"{i}.jpg", quality=90)
    for i in range(work.files, work.images):
        shutil.copyfile(folder / f"{i % work.files}.jpg", folder / f"{i}.jpg")
    box = [0.1 * work.side_px, 0.1 * work.side_px, 0.3 * work.side_px, 0.3 * work.side_px]
    for name, count in (("all", work.images), ("few", work.few)):
        for table, column, values in (("placements", "patch", NAMES), ("objects", "label", ("car",))):
            with (folder / f"{name}-{table}.csv").open("w", newline="") as file:
                lines = csv.writer(file)
                lines.writerow(["image", column, "split", "xmin", "ymin", "xmax", "ymax"])
                lines.writerows([f"{i}.jpg", v, "train", *box] for i in range(count) for v in values)


def measure_memory(folder: Path, work: Workload, options: Options, record: Record) -> None:
    """Peaks and times of fresh processes, with many images and with few in turn."""
    found: dict[str, list[tuple[float, ...]]] = {"all": [], "few": []}
    for _ in range(1 if options.small else min(options.repeats, 3)):
        for name, seen in found.items():
            tables = [str(folder / f"{name}-{table}.csv") for table in ("placements", "objects")]
            numbers = [str(n) for n in (work.size_px, work.batch, work.batches)]
            command = [sys.executable, "-c", PROBE, *tables, *numbers]
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            seen.append(tuple(map(float, done.stdout.split())))
    for name, count in (("all", work.images), ("few", work.few)):
        opened, peak = (quartiles([r[i] for r in found[name]]) for i in (0, 1))
        record.add(f"{count} images from disk", open_s=opened, peak_mib=peak)
    more = [a[1] - b[1] for a, b in zip(found["all"], found["few"], strict=True)]
    record.add(f"{work.images} beyond {work.few}", more_mib=quartiles(more))


def open_images(folder: Path, work: Workload) -> TargetSet:
    """All of them."""
    tables = (folder / f"all-{table}.csv" for table in ("placements", "objects"))
    return targets(*tables, size=(work.size_px, work.size_px), resident="disk")


def measure_wait(data: TargetSet, work: Workload, options: Options, record: Record) -> None:
    """Steps of training from disk: how long each took, and how much of it the batch was waited for."""
    step, state = make_training(make_pipeline(make_victim(work.victim)))
    batches = Loader(data, random.key(0), work.batch).batches()
    waits, wholes = [], []
    for _ in range(1 + options.repeats):
        start = time.perf_counter()
        batch = next(batches)
        waits.append(time.perf_counter() - start)
        step(state, batch)
        wholes.append(time.perf_counter() - start)
    batches.close()
    pairs = list(zip(waits, wholes, strict=True))[1:]  # after a warm-up
    record.add(
        f"{work.victim}, {work.batch} x {work.size_px} x {work.size_px}, steps from disk",
        step_ms=1000 * statistics.median(whole for _, whole in pairs),
        wait_ms=1000 * statistics.median(wait for wait, _ in pairs),
        wait_percent=quartiles([100 * wait / whole for wait, whole in pairs]),
    )


def measure_decoding(folder: Path, data: TargetSet, work: Workload, options: Options, record: Record) -> None:
    """A few files by each library, to uint8 [3, h, w]; and the loader's batches."""
    paths = [str(folder / f"{i}.jpg") for i in range(min(work.files, 8))]

    def pillow(path: str) -> torch.Tensor:
        return torch.from_numpy(np.array(Image.open(path))).permute(2, 0, 1).contiguous()

    size = (work.size_px, work.size_px)
    times = interleave(
        {
            "fpatch": lambda: [read_image(path) for path in paths],
            "Pillow": lambda: [pillow(path) for path in paths],
            "torchvision": lambda: [decode_jpeg(read_file(path)) for path in paths],
            "sized": lambda: [letterbox(read_image(path), size) for path in paths],
            "loader": lambda: data.batch(range(len(paths))),
        },
        options.repeats,
    )
    each = f"{work.side_px} x {work.side_px}"
    record.add(
        f"decoding {each}",
        fpatch_ms=times.ms("fpatch") / len(paths),
        over_pillow=times.ratio("fpatch", "Pillow"),
        over_torchvision=times.ratio("fpatch", "torchvision"),
    )
    record.add(
        f"batches of {each}, {os.cpu_count()} processors",
        per_second=1000 * len(paths) / times.ms("loader"),
        over_one_by_one=times.ratio("loader", "sized"),
    )


def main(argv: list[str] | None = None) -> None:
    """Memory, waiting, decoding."""
    options = read_options(__doc__, argv)
    record = Record("data", options)
    work = SMALL if options.small else Workload()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        make_images(folder, work)
        measure_memory(folder, work, options, record)
        data = open_images(folder, work)
        measure_wait(data, work, options, record)
        measure_decoding(folder, data, work, options, record)


if __name__ == "__main__":
    main()
