"""The log of a run: its description and its scalars, written and read."""

import dataclasses
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from fpatch.core.errors import is_stop
from fpatch.core.files import file_digest
from fpatch.core.names import typed
from fpatch.core.schema import flatten
from fpatch.core.version import __version__
from fpatch.data import TargetSet
from fpatch.log import Log, open_log
from fpatch.log.destinations import TRACKING_URI, is_own, remember
from fpatch.log.records import read_records
from fpatch.log.sinks import tracking_uri
from fpatch.optim.counted import counted_mean, uncounted
from fpatch.optim.step import StepInfo
from fpatch.runs.folder import Run
from fpatch.study.study import Study

_logger = logging.getLogger(__name__)


def remember_log(study: Study, run: Run) -> None:
    """Remember the MLflow of a study that the user trains, so that later commands on its run send there."""
    if study.log.mlflow is not False:
        remember(tracking_uri(run.folder, study.log.mlflow))


def own_log(study: Study, run: Run, mlflow: str | None = None) -> Study:
    """Return the study of a run folder, with records for MLflow only if the user has named where.

    Args:
        study: The study, which may name the server of somebody else.
        run: The run folder.
        mlflow: A tracking URI that the user names; None: the recorded one, if the user has named it before.
    """
    if mlflow is not None:
        study = dataclasses.replace(study, log=dataclasses.replace(study.log, mlflow=mlflow))
        remember_log(study, run)
    if study.log.mlflow is False or is_own(uri := tracking_uri(run.folder, study.log.mlflow)):
        return study
    _logger.warning(
        "%s: nothing is sent to MLflow, because you have not named %s yourself; to send records there, add "
        "--mlflow-uri %s, or set %s to it",
        run.folder, uri, uri, TRACKING_URI,
    )  # fmt: skip
    return dataclasses.replace(study, log=dataclasses.replace(study.log, mlflow=False))


def open_study_log(study: Study, run: Run, resume_step: int | None) -> Log:
    """Open the log of a run, with the sinks of its study; see `fpatch.log.open_log`."""
    return open_log(
        run.folder,
        tensorboard=study.log.tensorboard,
        mlflow=study.log.mlflow,
        experiment=study.log.experiment,
        resume_step=resume_step,
    )


def log_study(study: Study, run: Run, dataset: TargetSet, log: Log) -> None:
    """Log the settings of the run's config, the data set and the description before the first step."""
    settings = flatten(run.read_json("config.json"))
    log.params(settings | {name: None for name in log.settings if name not in settings})
    log.tags({"fpatch": __version__, "study": study.name})
    source = study.data.placements
    log.dataset(Path(source).stem, file_digest(source)[:16], source, num_photographs=len(dataset))
    log.text(0, {"description": describe(study)})


def describe(study: Study) -> str:
    """Describe a study in Markdown: a line per stage, and a diagram of training."""
    lines = [f"# {study.name}", ""]
    for path, n in study.pipeline.items():
        d = n.stage.definition
        phases = "" if n.phases is None else f" *({', '.join(sorted(n.phases))})*"
        lines.append(f"- **{path}**: {d.describe(n.stage.config) if d.describe else repr(n.stage)}{phases}")
    weights = ", ".join(f"{w:g} {n}" for n, w in study.objective.weights.items())
    lines += ["", f"Minimizes {weights} with {study.optimizer.name} for {study.train.num_steps} steps.", ""]
    return "\n".join([*lines, "```mermaid", study.pipeline.mermaid("train"), "```"])


def step_scalars(info: StepInfo) -> dict[str, float]:
    """Return the scalars of a step, by their names in the log.

    The mean of a term is over the rows that it counts, NaN if there is none. `train/rows/<term>` is their
    number, where some row does not count.
    """
    terms = {f"train/{n}": counted_mean(term, info.counted.get(n)) for n, term in info.terms.items()}
    rows = {f"train/rows/{n}": float(num) for n, num, _ in uncounted(info.counted)}
    return {"train/loss": float(info.loss), **terms, **rows, "train/grad_norm": float(info.grad_norm)}


def describe_uncounted(info: StepInfo) -> str:
    """Say how many rows of a step do not count, by term; "" if all count.

    Example:
        >>> import torch
        >>> from fpatch.optim.step import StepInfo
        >>> from fpatch.runs.logging import describe_uncounted
        >>> counted = {"vanish": torch.tensor([True, False, True])}
        >>> describe_uncounted(StepInfo(torch.zeros(()), {}, torch.zeros(()), {}, {}, counted))
        "1 of 3 rows have no object for 'vanish', and are left out of its mean"
    """
    said = [
        f"{of - num} of {of} rows have no object for {term!r}" for term, num, of in uncounted(info.counted)
    ]
    return f"{', '.join(said)}, and are left out of its mean" if said else ""


def logged_scalars(run: Run, step: int) -> dict[str, float]:
    """Read the logged scalars of a step.

    Raises:
        ValueError: If the step has no record.
    """
    for record in read_records(run.folder):
        if record["kind"] == "scalars" and record["step"] == step and "train/loss" in record["values"]:
            return {n: float(v) for n, v in record["values"].items()}
    raise ValueError(f"replay --step: {run.folder} has no record of update {step}; they count from 1")


def say_uncounted(info: StepInfo, step: int) -> bool:
    """Say which rows of an update do not count, and return whether there are any."""
    if what := describe_uncounted(info):
        _logger.warning("update %d: %s; the records count them at each update", step, what)
    return bool(what)


@contextmanager
def opened_log(study: Study, run: Run, resume_step: int | None) -> Iterator[Log]:
    """Open the log of a training; close it as finished, stopped or failed, as the block ends."""
    log = open_study_log(study, run, resume_step)
    finished: bool | None = True
    try:
        yield log
    except BaseException as error:
        finished = None if is_stop(error) else False
        error.add_note(f"finished steps are kept; resume with: fpatch resume {typed(run.folder)}")
        raise
    finally:
        log.close(finished=finished)
