"""The time until a program has started: `import fpatch`, what a command imports, and `fpatch --help`.

Every start is a fresh process, all of them in turn, the first round of which only fills the caches (of files,
and of bytecode, as an installed package has it).

    python benchmarks/start.py [--repeats 11] [--small]
"""

import os
import subprocess
import sys

from harness import Options, Record, interleave, quartiles, read_options

STARTS = {
    "python": ["-c", "pass"],
    "import torch": ["-c", "import torch"],
    "import fpatch": ["-c", "import fpatch"],
    "import fpatch.runs.training": ["-c", "import fpatch.runs.training"],
    "every family of stages": ["-c", "from fpatch import compose, create, implant, infer, losses, metrics"],
    "fpatch --help": ["-m", "fpatch", "--help"],
}


def measure(starts: dict[str, list[str]], options: Options, record: Record) -> None:
    """Seconds, and how many more than `import torch` takes."""
    environment = {n: v for n, v in os.environ.items() if n != "PYTHONDONTWRITEBYTECODE"}

    def start(arguments: list[str]) -> None:
        command = [sys.executable, *arguments]
        subprocess.run(command, env=environment, check=True, stdout=subprocess.DEVNULL)

    times = interleave(
        {n: lambda a=a: start(a) for n, a in starts.items()},
        options.repeats,
        warmup=0 if options.small else 1,
    )
    for name in starts:
        pairs = zip(times.seconds[name], times.seconds["import torch"], strict=True)
        record.add(name, seconds=quartiles(times.seconds[name]), more=quartiles([a - b for a, b in pairs]))


def main(argv: list[str] | None = None) -> None:
    """Every start; the short form only the light ones."""
    options = read_options(__doc__, argv)
    record = Record("start", options)
    light = ("import torch", "import fpatch")
    measure({n: a for n, a in STARTS.items() if n in light or not options.small}, options, record)


if __name__ == "__main__":
    main()
