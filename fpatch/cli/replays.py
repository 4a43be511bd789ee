"""The command that reruns logged rows and updates."""

import argparse
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fpatch.cli.answers import Answer, describe_replay
from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.options import add_command, read_number, take_data_root, take_device, whole
from fpatch.core.files import check_writable
from fpatch.core.text import read_whole

if TYPE_CHECKING:
    import numpy as np

    from fpatch.core.types import Values
    from fpatch.evaluation.replaying import Replay
    from fpatch.runs.verifying import OnBlock


def add(commands: Any) -> None:
    """Register the command."""
    replay = add_command(
        commands,
        "replay",
        _replay,
        "rerun logged rows from their recorded samples, and compare",
        "Original images, samples, results and composed images are compared; of images a table holds "
        "digests. With --set, a sampled value is replaced: the differences are its effect. A PATH is a "
        "column `sample/...` of a table without that prefix. `fpatch grid` does so for every image, with "
        "intervals.",
        (
            "replay runs/20260101-120000-study --verify",
            "replay RUN --rows 3 --out seen --set camera/exposure/stops=-2",
            "replay RUN --step 100",
        ),
        "with --verify: something is not as recorded",
    )
    replay.add_argument("run_folder", metavar="RUN", help="the run folder")
    replay.add_argument(
        "--rows", metavar="A:B", help="rows of the table, e.g. 0:16, or one, e.g. 3 (default: all)"
    )
    replay.add_argument("--table", help="test, test-last, validation-00000100 and the like (default: test)")
    replay.add_argument(
        "--set", metavar="PATH=VALUE", action="append", default=[],
        help="what if: e.g. camera/exposure/stops=-2; true and false are 1 and 0; may be repeated",
    )  # fmt: skip
    replay.add_argument("--out", metavar="FOLDER", help="write the images of every condition as PNG")
    take_data_root(replay)
    take_device(replay)
    replay.add_argument("--step", type=whole(1), metavar="N", help="rerun training update N instead")
    replay.add_argument(
        "--verify",
        action="store_true",
        help="check every file, input and row; exit 1 if anything is not bit for bit as recorded",
    )


def _replay(options: argparse.Namespace) -> Answer:
    from fpatch.runs.replaying import replay_run
    from fpatch.runtime.device import check_device

    if options.device is not None:
        check_device("device", options.device)
    if options.step is not None:
        return _replay_step(options)
    written: list[Path] = []

    def write(rows: "np.ndarray", results: "Mapping[str, Values]") -> None:
        from fpatch.data import write_image

        for condition, values in results.items():
            for row, image in zip(rows.tolist(), values["image"], strict=True):
                written.append(Path(options.out, f"row-{row:05d}-{condition}.png"))
                write_image(written[-1], image)

    if options.out:
        check_writable("--out", options.out)
    edits = dict(map(_read_edit, options.set))
    if len(edits) < len(options.set):
        raise ValueError("--set: a path is given twice; give each path once")
    arguments = (options.run_folder, _read_slice(options.rows), options.table or "test")
    on_block = write if options.out else None
    if options.verify and not edits:
        return _verify(arguments, on_block, written, options)
    with progress_bars() as on_progress:
        result, environment = replay_run(
            *arguments,
            on_progress,
            edits=edits,
            keep=("image",) if on_block else (),
            on_block=on_block,
            data_root=options.data_root,
            device=options.device,
        )
    _say_environment(environment)
    _say_rows(result, written)
    facts = {"run": options.run_folder, "table": arguments[2], "edits": edits, "environment": environment}
    code = 1 if result.differences and options.verify else 0
    return Answer(code, facts | describe_replay(result, written))


def _verify(
    arguments: "tuple[str, slice | None, str]",
    on_block: "OnBlock | None",
    written: list[Path],
    options: argparse.Namespace,
) -> Answer:
    """Verify the whole folder, and say what was checked, what was not, and every difference."""
    from fpatch.runs.verifying import verify_run

    with progress_bars() as on_progress:
        found = verify_run(
            *arguments, on_progress, on_block=on_block, data_root=options.data_root, device=options.device
        )
    _say_environment(found.environment)
    for sentence in found.differences:
        say(f"different: {sentence}")
    for folder, names in _by_folder(found.files.checked).items():
        say(f"checked: {folder or ', '.join(names)}" + (f" ({len(names)})" if folder else ""))
    for reason, names in _by_reason(found.files.unchecked).items():
        say(f"not checked: {', '.join(names)}: {reason}")
    for sentence in found.unproven:
        say(f"not proven: {sentence}")
    if found.replay is None:
        console.print("rows 0 identical 0 different 0")
    else:
        _say_rows(found.replay, written)
    facts = {
        "run": str(arguments[0]),
        "table": arguments[2],
        "is_proved": found.is_proved,
        "folder": found.differences,
        "checked": sorted(found.files.checked),
        "unchecked": dict(sorted(found.files.unchecked.items())),
        "unproven": found.unproven,
        "environment": found.environment,
    }
    return Answer(0 if found.is_proved else 1, facts | describe_replay(found.replay, written))


def _by_folder(files: Iterable[str]) -> dict[str, list[str]]:
    """Group files by their first folder; those at the top come first."""
    grouped: dict[str, list[str]] = {"": []}
    for file in sorted(files):
        folder, slash, _ = file.partition("/")
        grouped.setdefault(folder + slash if slash else "", []).append(file)
    return {folder: names for folder, names in grouped.items() if names}


def _by_reason(files: Mapping[str, str]) -> dict[str, list[str]]:
    """Group files by the reason why they are not checked, with one entry per folder."""
    grouped: dict[str, list[str]] = {}
    for file, reason in sorted(files.items()):
        folder, slash, _ = file.partition("/")
        entry = folder + slash if reason.startswith(("a copy", "times", "moved")) else file
        names = grouped.setdefault(reason, [])
        if entry not in names:
            names.append(entry)
    return grouped


def _say_rows(result: "Replay", written: Sequence[Path]) -> None:
    for row, found in sorted(result.differences.items()):
        say("\n  ".join([f"row {row}:", *found]) if len(found) > 1 else f"row {row}: {found[0]}")
    different = len(result.differences)
    if different:
        console.print(f"largest difference of a number: {result.largest:g}")
    for path in sorted(written):
        say(f"  {path}")
    console.print(f"rows {len(result.rows)} identical {len(result.rows) - different} different {different}")


def _replay_step(options: argparse.Namespace) -> Answer:
    from fpatch.runs.replaying import replay_step

    for name in ("rows", "table", "set", "out"):
        if getattr(options, name):
            raise ValueError(f"fpatch replay --step takes no --{name}, which is for evaluated rows")
    again = replay_step(options.run_folder, options.step, data_root=options.data_root, device=options.device)
    _say_environment(again.environment)
    console.print(f"update {again.step}, from the checkpoint of step {again.start}")
    for name, (logged, found) in again.scalars.items():
        mark = "identical" if repr(logged) == repr(found) else "DIFFERENT"
        say(f"  {name:<32} logged {logged!r}  rerun {found!r}  {mark}")
    for name, is_same in again.states.items():
        say(f"  checkpoints/{name}: the state after the update is {'identical' if is_same else 'DIFFERENT'}")
    if options.verify and not again.states:
        say(f"not proven: the patch after update {again.step}: no checkpoint of that step records its digest")
    facts = {"run": options.run_folder, "step": again.step, "start": again.start, "states": again.states}
    scalars = {n: {"logged": was, "rerun": now} for n, (was, now) in again.scalars.items()}
    facts |= {"identical": again.identical, "environment": again.environment, "scalars": scalars}
    return Answer(0 if again.identical or not options.verify else 1, facts)


def _say_environment(differences: Sequence[str]) -> None:
    for sentence in differences:
        say(f"not the recorded execution: {sentence}")


def _read_edit(text: str) -> tuple[str, float]:
    path, _, typed = text.partition("=")
    try:
        return path, read_number(path, typed)
    except ValueError:
        raise ValueError(
            f"--set must be PATH=NUMBER, such as camera/exposure/stops=-2, got {text!r:.120}"
        ) from None


def _read_slice(text: str | None) -> slice | None:
    if text is None:
        return None
    low, colon, high = text.partition(":")
    try:
        first = read_whole("A", low) if low or not colon else 0
        end = read_whole("B", high) if high else None
    except ValueError:
        raise ValueError(f"--rows must be A:B or a row number, got {text!r:.120}") from None
    return slice(first, end) if colon else slice(first, first + 1 or None)
