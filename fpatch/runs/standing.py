"""Whether the checkpoints and the records of a run agree, and the way back to an earlier checkpoint.

`resume` checks it before anything is written. Nothing is deleted: later files are moved into `aside/`.
"""

from collections.abc import Iterator
from pathlib import Path

from fpatch.core.files import set_aside
from fpatch.core.names import typed
from fpatch.log.records import Records, mark_at, read_records, read_seal
from fpatch.runs import checkpoints
from fpatch.runs.checkpoints import Header, Link
from fpatch.runs.files import read_json
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.runs.naming import validation_step


def check_standing(run: Run) -> None:
    """Check that a run can be resumed from its last checkpoint without a repeated or lost step.

    Raises:
        RunError: If the last checkpoint is missing or older than the others, or records were cut or edited.
    """
    if not run.has_checkpoint("last"):
        _check_unstarted(run)
        return
    last = checkpoints.read_header_of(run.folder, "last")
    found = [*_find_cuts(run, last), *_find_later(run, last), *_find_other_best(run, last)]
    if found:
        raise RunError(
            f"{run.folder}: {found[0]}; restore the files, or resume from the checkpoint of your choice, "
            f"where later files are moved into aside/: fpatch resume {typed(run.folder)} --from last"
        )


def find_damage(run: Run) -> list[str]:
    """Return a sentence for each disagreement between the last checkpoint, the records and the others."""
    if not run.has_checkpoint("last"):
        return ["checkpoints/last.safetensors is missing"]
    last = checkpoints.read_header_of(run.folder, "last")
    return [*_find_cuts(run, last), *_find_later(run, last), *_find_other_best(run, last)]


def _check_unstarted(run: Run) -> None:
    """Check that a run without a last checkpoint has not been trained."""
    steps = run.checkpoint_steps()
    if steps in ([], [0]) and not run.has_checkpoint("best") and _last_record(run) == 0:
        return
    newest = f"step-{steps[-1]:08d}" if steps else "NAME"
    raise RunError(
        f"{run.folder} lacks checkpoints/last.safetensors, though it has been trained; restore it, or resume "
        f"from a numbered checkpoint: fpatch resume {typed(run.folder)} --from {newest}"
    )


def _last_record(run: Run) -> int:
    return max((record["step"] for record in read_records(run.folder)), default=0)


def _find_cuts(run: Run, last: Header) -> Iterator[str]:
    """Find committed records that the log does not hold any more."""
    where = f"checkpoint 'last' of step {last.step}"
    if not (run.folder / "records.jsonl").is_file():
        yield f"records.jsonl is missing, and {where} continues it"
        return
    if last.records is not None and mark_at(run.folder, last.records.size) != last.records:
        yield f"records.jsonl was cut or edited: it does not hold the records before {where}"
        return
    try:
        sealed = read_seal(run.folder)
    except ValueError as error:
        yield str(error)
        return
    if sealed is not None and mark_at(run.folder, sealed[1].size) != sealed[1]:
        yield "records.jsonl was cut or edited: it does not hold the committed records"


def _find_later(run: Run, last: Header) -> Iterator[str]:
    """Find checkpoints and committed records after the last checkpoint; a kill leaves one checkpoint."""
    if last.state is None:
        return  # an older version recorded too little
    later = [step for step in run.checkpoint_steps() if step > last.step]
    before = Link(last.step, last.state) if last.numbered else last.previous
    if later:
        next_one = checkpoints.read_header_of(run.folder, f"step-{later[0]:08d}")
        if len(later) > 1 or next_one.previous != before:
            yield (
                f"checkpoint 'last' is of step {last.step}, but there is one of step {later[-1]}: an older "
                "file stands in its place"
            )
            return
    try:
        sealed = read_seal(run.folder)
    except ValueError:
        return
    if sealed is not None and sealed[0] > last.step:
        yield (
            f"checkpoint 'last' is of step {last.step}, but records were committed at step {sealed[0]}: an "
            "older file stands in its place"
        )


def _find_other_best(run: Run, last: Header) -> Iterator[str]:
    """Find a best checkpoint that is not the one in the facts of the last; a kill leaves a later one."""
    recorded, step = last.facts.get("best_state"), last.facts.get("best_step")
    if recorded is None:
        return
    if not run.has_checkpoint("best"):
        if not any(run.folder.glob("aside/*/checkpoints/best.safetensors")):  # one that going back moved
            yield "checkpoints/best.safetensors is missing"
        return
    best = checkpoints.read_header_of(run.folder, "best")
    if best.state != recorded and best.step <= last.step:
        yield f"checkpoint 'best' is of step {best.step}, and not the state of step {step} that was recorded"


def go_back(run: Run, name: str) -> None:
    """Make a checkpoint the last one, and move everything after it into `aside/`.

    The last checkpoint is replaced first, and the log sealed at the end. A resume refuses the folder between
    the two, and `--from last` goes the rest of the way; so a kill at any moment leaves no half of it.

    Raises:
        RunError: If it is missing or broken.
    """
    header = checkpoints.check_checkpoint(run.folder, name)
    if not (run.folder / "records.jsonl").is_file():
        (run.folder / "records.jsonl").touch()
    paths = list(_files_after(run, header))
    last = run.folder / "checkpoints/last.safetensors"
    records = Records(run.folder)
    try:
        if last.is_file() and (paths or name != "last"):
            set_aside(run.folder, (), {str(last.relative_to(run.folder)): last.read_bytes()})
        made = checkpoints.make_last(run.folder, name, records.mark_after(header.step))
        if paths:
            set_aside(run.folder, paths)
        records.resume(header.step)
        _restore_best(run, made)
        records.seal(header.step)
    finally:
        records.close()


def begin_again(run: Run) -> None:
    """Move all checkpoints, tables and figures into `aside/`; the log is set aside where it is resumed."""
    places = ("checkpoints", "tables", "figures", "patch")
    paths = [p for place in places for p in (run.folder / place).glob("*") if p.is_file()]
    if paths:
        set_aside(run.folder, paths)


def _restore_best(run: Run, header: Header) -> None:
    """Copy the numbered checkpoint that was the best one, if it was moved."""
    best = header.facts.get("best_step")
    if best is not None and not run.has_checkpoint("best") and best in run.checkpoint_steps():
        checkpoints.copy_checkpoint(run.folder, f"step-{best:08d}", "best")


def _files_after(run: Run, header: Header) -> Iterator[Path]:
    """Find the checkpoints, and the tables and figures of evaluations, after a checkpoint."""
    folder, step = run.folder, header.step
    for later in run.checkpoint_steps():
        if later > step:
            yield folder / f"checkpoints/step-{later:08d}.safetensors"
    best = folder / "checkpoints/best.safetensors"
    if best.is_file() and not _is_best(run, header):
        yield best
    for manifest in (folder / "tables").glob("*.json"):
        if manifest.name.endswith(".summary.json"):
            continue
        name = manifest.name.removesuffix(".json")
        if (measured := _step_of(folder, name)) is not None and measured > step:
            own = {*read_json(manifest).get("files", ()), f"figures/{name}-effects.png"}
            paths = [*(folder / "tables").glob(f"{name}.*"), *(folder / "figures").glob(f"{name}.*")]
            paths += [folder / file for file in own if (folder / file).is_file()]
            yield from sorted(dict.fromkeys(paths), key=lambda path: path == manifest)  # it tells the step


def _is_best(run: Run, header: Header) -> bool:
    """Return whether the best checkpoint is the best one up to another checkpoint."""
    try:
        best = checkpoints.read_header_of(run.folder, "best")
    except RunError:
        return False  # broken
    return best.step <= header.step and header.facts.get("best_state") in (None, best.state)


def _step_of(folder: Path, name: str) -> int | None:
    """Return the step of the patch that a table shows; None if it is not recorded."""
    if (validated := validation_step(name)) is not None:
        return validated
    manifest, summary = (folder / f"tables/{name}{suffix}" for suffix in (".json", ".summary.json"))
    recorded = read_json(manifest).get("step")
    return read_json(summary).get("step") if recorded is None and summary.is_file() else recorded
