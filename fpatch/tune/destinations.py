"""The destinations of a sweep: MLflow, the object store and the cluster, each as the user has named it."""

from pathlib import Path

from fpatch.log.destinations import is_own, remember
from fpatch.log.sinks import tracking_uri
from fpatch.runs.locks import RunError
from fpatch.tune.plan import Plan

_HERE = ("auto", "local")
"""Addresses of Ray that this machine or the environment defines."""


def remember_destinations(plan: Plan) -> None:
    """Remember the destinations of a plan that the user has given."""
    for destination in _destinations(plan).values():
        remember(destination)


def check_destinations(folder: Path, plan: Plan) -> None:
    """Check that the user has named the destinations of a recorded sweep, which may be somebody else's.

    Raises:
        RunError: If one is unknown: records, files or code would go there.
    """
    for name, destination in _destinations(plan).items():
        if not is_own(destination):
            raise RunError(
                f"{folder}: {name} = {destination!r} was recorded, and you have not named it yourself; to "
                "use it, give your study by --config CONFIG.toml; or remove it from sweep.json"
            )


def _destinations(plan: Plan) -> dict[str, str]:
    """Return the destinations of a plan, by setting."""
    mlflow, sweep = plan.study.log.mlflow, plan.sweep
    if mlflow is True:
        mlflow = tracking_uri(Path(plan.study.log.runs) / "any", True)
    found = {"log.mlflow": mlflow or None, "sweep.storage": sweep.storage, "sweep.address": sweep.address}
    return {n: d for n, d in found.items() if d is not None and d not in _HERE}
