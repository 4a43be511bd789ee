"""The log of a run: its description and its scalars, written and read."""

from pathlib import Path

from fpatch.core.files import file_digest
from fpatch.core.schema import flatten
from fpatch.core.version import __version__
from fpatch.data import TargetSet
from fpatch.log import Log, Records, open_log
from fpatch.optim.step import StepInfo
from fpatch.runs.folder import Run
from fpatch.study.study import Study


def open_study_log(study: Study, run: Run, resume_step: int | None) -> Log:
    """Open the log of a run, with the sinks of its study; see `fpatch.log.open_log`."""
    return open_log(
        run.folder,
        tensorboard=study.log.tensorboard,
        mlflow=study.log.mlflow,
        experiment=study.log.experiment,
        resume_step=resume_step,
    )


def log_study(study: Study, dataset: TargetSet, log: Log) -> None:
    """Log the settings, the data set and the description before the first step."""
    settings = flatten(study.config)
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
    """Return the scalars of a step, by their names in the log."""
    terms = {f"train/{name}": float(term.mean()) for name, term in info.terms.items()}
    return {"train/loss": float(info.loss), **terms, "train/grad_norm": float(info.grad_norm)}


def logged_scalars(run: Run, step: int) -> dict[str, float]:
    """Read the logged scalars of a step.

    Raises:
        ValueError: If the step has no record.
    """
    records = Records(run.folder)
    try:
        for record in records:
            if record["kind"] == "scalars" and record["step"] == step and "train/loss" in record["values"]:
                return {n: float(v) for n, v in record["values"].items()}
    finally:
        records.close()
    raise ValueError(f"replay --step: {run.folder} has no record of update {step}; they count from 1")
