"""The checkpoint that a table was measured at, and the weights of trained networks in it."""

from fpatch.core.tree import to_device
from fpatch.graph.pipeline import Pipeline
from fpatch.runs.checkpoints import read_header_of
from fpatch.runs.files import read_json
from fpatch.runs.folder import Run
from fpatch.runs.locks import RunError
from fpatch.runs.naming import validation_step
from fpatch.runs.tables import load_manifest
from fpatch.study.study import Study


def find_checkpoint(run: Run, table: str) -> str | None:
    """Return the name of a checkpoint with the state that a table shows; None if none is kept.

    Example:
        >>> import tempfile
        >>> from fpatch import train
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.runs.weights import find_checkpoint
        >>> find_checkpoint(train(tiny_study(tempfile.mkdtemp())), "validation-00000004")
        'best'
    """
    manifest, folder = load_manifest(run.folder, table), run.folder
    state, summary = manifest.get("state"), folder / f"tables/{table}.summary.json"
    given = read_json(summary).get("checkpoint") if summary.is_file() else None
    step = manifest.get("step", validation_step(table))
    numbered = None if step is None else f"step-{step:08d}"
    names = [manifest.get("checkpoint") or given, "best", "last", numbered]
    for name in filter(None, names):
        if not run.has_checkpoint(name):
            continue
        header = read_header_of(folder, name)
        is_old = state is None and name in (given, numbered)
        if is_old or (state is not None and header.state == state):
            return name
    return None


def frozen_pipeline(run: Run, study: Study, table: str, phase: str) -> Pipeline:
    """Return the pipeline of a phase with the weights of trained networks as a table was measured with.

    Raises:
        RunError: If the pipeline trains a network, and no checkpoint of that state is kept.
    """
    pipeline = study.placed.at(phase)
    if not any(n.stage.definition.weights for n in pipeline.values()):
        return pipeline
    name = find_checkpoint(run, table)
    if name is None:
        raise RunError(
            f"the networks that were trained up to the table {table!r} are in no checkpoint of {run.folder}; "
            "restore the checkpoint of its step"
        )
    return pipeline.freeze(to_device(run.load_params(name), study.place))
