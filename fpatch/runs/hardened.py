"""The results of a hardening: values, as JSON, and as a figure."""

import math
from pathlib import Path
from typing import Any, NamedTuple

from fpatch.core.names import label
from fpatch.log import open_log
from fpatch.ops.intervals import Rate
from fpatch.study.settings import LogConfig
from fpatch.viz.curves import plot_curves

START, CONTINUED, HARDENED = "start", "continued", "hardened"
"""The victims that are compared: as it was, after plain training, and after training with patches."""


def lowest(rate: Rate) -> float:
    """The order of rates by which the worst comes first; one that is not known comes before all."""
    return -1.0 if math.isnan(rate.value) else rate.value


class Curve(NamedTuple):
    """Clean and robust accuracy at one validation: without a patch, and with the worst of the first pool."""

    victim: str
    step: int
    clean: Rate
    robust: Rate


class Hardened(NamedTuple):
    """The results of a hardening.

    Attributes:
        folder: Its folder.
        curves: The validations of `continued` and `hardened`.
        clean: For each victim, the share of the held-out rows in which it is right without a patch.
        robust: For each victim and attack, the share in which it is right with the patch. Attacks from
            scratch are `fresh-LOSS-KEY`; `moved-LOSS-KEY` were trained against the start.
        summaries: For each victim, what metrics gather over all rows without a patch.
    """

    folder: Path
    curves: list[Curve]
    clean: dict[str, Rate]
    robust: dict[str, dict[str, Rate]]
    summaries: dict[str, dict[str, float]]

    def worst(self, victim: str) -> tuple[str, Rate]:
        """Return the attack under which a victim is right least often, and its rate."""
        return min(self.robust[victim].items(), key=lambda item: lowest(item[1]))


def describe(done: Hardened) -> dict[str, Any]:
    """The results as JSON values."""
    victims = {
        name: {
            "clean": done.clean[name]._asdict(),
            "worst": done.worst(name)[0],
            "robust": {attack: rate._asdict() for attack, rate in done.robust[name].items()},
            "summaries": done.summaries[name],
        }
        for name in done.clean
    }
    curves = [
        {"victim": c.victim, "step": c.step, "clean": c.clean._asdict(), "robust": c.robust._asdict()}
        for c in done.curves
    ]
    return {"victims": victims, "curves": curves}


def draw(done: Hardened, title: str) -> None:
    """Draw clean and robust accuracy over the training, as `harden.png`; nothing without validations."""
    names = (CONTINUED, HARDENED)
    of = {name: [c for c in done.curves if c.victim == name] for name in names}
    if not all(of.values()):
        return
    shown = {"clean": "without a patch", "robust": "with the worst patch of the first pool"}
    panels = {
        f"{images}, by steps of the victim": (
            [c.step for c in of[CONTINUED]],
            {name: [getattr(c, kind) for c in of[name]] for name in names},
        )
        for kind, images in shown.items()
    }
    plot_curves(done.folder / "harden.png", panels, label(title), success="right (%)")


def record(done: Hardened, settings: LogConfig) -> None:
    """Record every rate by the step of the victim, once it is all done, in the log that a study names."""
    if (done.folder / "records.json").is_file():
        return  # it is sealed when all is recorded
    begun = (done.folder / "records.jsonl").is_file() and (done.folder / "records.jsonl").stat().st_size
    log = open_log(
        done.folder, tensorboard=settings.tensorboard, mlflow=settings.mlflow, experiment=settings.experiment,
        resume_step=0 if begun else None,
    )  # fmt: skip
    by_step: dict[int, dict[str, float]] = {}
    for c in done.curves:
        own = {f"validation/{c.victim}/clean": c.clean.value, f"validation/{c.victim}/robust": c.robust.value}
        by_step.setdefault(c.step, {}).update(own)
    last = by_step.setdefault(max(by_step, default=0), {})
    for victim, clean in done.clean.items():
        last |= {f"test/{victim}/clean": clean.value, f"test/{victim}/worst": done.worst(victim)[1].value}
        last |= {f"test/{victim}/{name}": rate.value for name, rate in done.robust[victim].items()}
        last |= {f"test/{victim}/{name}": value for name, value in done.summaries[victim].items()}
    try:
        for step, values in sorted(by_step.items()):
            log.scalars(step, values)
        log.artifacts(["config.json", "harden.json", "weights", "patches"])
    except BaseException:
        log.close(finished=None)
        raise
    log.close()
