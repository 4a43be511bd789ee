"""Tools of every suite: interleaved timing, ratios with quartiles, and the record of a run.

The machines that this runs on are shared and noisy. A figure is therefore a ratio of two things timed in
turn, A B A B, in one process after a warm-up, as the median and the quartiles over the rounds. The record
says on what it was measured.
"""

import argparse
import dataclasses
import functools
import json
import os
import platform
import statistics
import subprocess
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

import fpatch
from fpatch.runtime.memory import CUBLAS_WORKSPACE

RESULTS = Path(__file__).parent / "results"
"""Where the records of full runs are kept, one JSON file per suite and device."""


class Quartiles(NamedTuple):
    """The middle half of repeated measurements."""

    low: float
    median: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} [{self.low:.2f}, {self.high:.2f}]"


def quartiles(values: list[float]) -> Quartiles:
    """Of at least one number."""
    if len(values) == 1:
        return Quartiles(values[0], values[0], values[0])
    return Quartiles(*statistics.quantiles(values, n=4, method="inclusive"))


def synchronize(device: str = "cpu") -> None:
    """Wait for the device, so that a clock read after it has seen the work done."""
    if device == "cuda":
        torch.cuda.synchronize()


def timed(function: Callable[[], object], device: str = "cpu") -> float:
    """Seconds of one call."""
    synchronize(device)
    start = time.perf_counter()
    function()
    synchronize(device)
    return time.perf_counter() - start


@dataclass(frozen=True)
class Times:
    """Seconds per name, of rounds in which each was called once, in turn."""

    seconds: Mapping[str, list[float]]

    def ms(self, name: str) -> float:
        """The median, in milliseconds."""
        return 1000 * statistics.median(self.seconds[name])

    def ratio(self, name: str, over: str) -> Quartiles:
        """Quartiles of the ratios within each round."""
        pairs = zip(self.seconds[name], self.seconds[over], strict=True)
        return quartiles([a / b for a, b in pairs])


def interleave(
    functions: Mapping[str, Callable[[], object]], repeats: int, warmup: int = 1, device: str = "cpu"
) -> Times:
    """Time functions in turn, after `warmup` calls of each."""
    for function in functions.values():
        for _ in range(warmup):
            function()
    rounds = [{name: timed(f, device) for name, f in functions.items()} for _ in range(repeats)]
    return Times({name: [r[name] for r in rounds] for name in functions})


def kernel_share(function: Callable[[], object], calls: int = 5) -> float | None:
    """Share of the time in which a kernel runs on the GPU, from the first of some calls to the last.

    None if the profiler sees no kernel, for instance where its counters may not be read.
    """
    with profile(activities=[ProfilerActivity.CUDA]) as seen:
        for _ in range(calls):
            function()
        torch.cuda.synchronize()
    events = seen.events() or []
    on_gpu = [e for e in events if e.device_type.name == "CUDA" and not e.is_user_annotation]
    kernels = [e.time_range for e in on_gpu if not e.name.startswith(("Memcpy", "Memset"))]
    return covered([(k.start, k.end) for k in kernels]) if kernels else None


def covered(spans: list[tuple[float, float]]) -> float:
    """Share of the time from the first start to the last end in which some span runs."""
    busy, reached = 0.0, min(start for start, _ in spans)
    whole = max(end for _, end in spans) - reached
    for start, end in sorted(spans):
        busy += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return busy / whole


@functools.cache
def machine(device: str = "cpu") -> dict[str, Any]:
    """Hardware and software that the figures were measured on."""
    root = Path(__file__).parents[1]
    commit = subprocess.run(
        ["git", "-C", str(root), "describe", "--always", "--dirty"], capture_output=True, text=True
    )
    return {
        "device": torch.cuda.get_device_name() if device == "cuda" else _processor(),
        "threads": torch.get_num_threads(),
        "cpu_capability": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "fpatch": fpatch.__version__,
        "commit": commit.stdout.strip(),
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    found = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return f"{found[0]} x {len(found)}" if found else platform.machine()


@dataclass(frozen=True)
class Options:
    """Options of every suite.

    Attributes:
        repeats: Rounds.
        small: The short form for tests: tiny workloads, two rounds.
        device: "cpu" or "cuda".
        json: File to write instead of the one under results/.
    """

    repeats: int = 11
    small: bool = False
    device: str = "cpu"
    json: str | None = None


@dataclass
class Record:
    """The figures of a suite, printed and written as they come, so that a suite that is cut off leaves some.

    Attributes:
        suite: Name of the file.
        options: On which device, and where the record goes; the short form is written only if asked.
        figures: One mapping per line.
    """

    suite: str
    options: Options = Options()
    figures: list[dict[str, Any]] = field(default_factory=list)

    def add(self, workload: str, **figures: Any) -> None:
        """Keep, print and write a line; quartiles are printed as median [low, high]."""
        kept = {n: dict(v._asdict()) if isinstance(v, Quartiles) else v for n, v in figures.items()}
        self.figures.append({"workload": workload, **kept})
        print(f"{workload:<44} " + "   ".join(f"{n} {_shown(v)}" for n, v in figures.items()), flush=True)
        device, small, path = self.options.device, self.options.small, self.options.json
        if path or not small:
            target = Path(path) if path else RESULTS / f"{self.suite}-{device}.json"
            target.parent.mkdir(parents=True, exist_ok=True)
            record = {"suite": self.suite, "small": small, "machine": machine(device)}
            target.write_text(json.dumps({**record, "figures": self.figures}, indent=2) + "\n")


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def read_options(
    description: str | None, argv: list[str] | None, devices: tuple[str, ...] = ("cpu",)
) -> Options:
    """From the command line; `devices` are those that the suite runs on."""
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=Options.repeats, help="rounds (11)")
    parser.add_argument("--small", action="store_true", help="tiny workloads, to see that the suite runs")
    parser.add_argument("--device", choices=devices, default="cpu")
    parser.add_argument("--json", help="write here instead of benchmarks/results/SUITE-DEVICE.json")
    options = Options(**vars(parser.parse_args(argv)))
    os.environ.setdefault(*CUBLAS_WORKSPACE)  # read at the first product of matrices on a GPU
    return dataclasses.replace(options, repeats=2) if options.small else options
