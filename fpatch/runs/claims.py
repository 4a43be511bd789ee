"""Compare the claims of a table's manifest with the study: its conditions, its draws and its checkpoint."""

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple

from fpatch.evaluation.conditions import NONE, PATCH
from fpatch.log.sealed import SEAL
from fpatch.study.study import Study

OF_GRIDS = (PATCH, NONE, "noise")
"""The conditions that a grid measures."""


class Claims(NamedTuple):
    """The claims of a manifest that do not hold, or that nothing proves, a sentence each.

    Attributes:
        differences: Claims that do not hold.
        unproven: Claims that no file of the run proves.
    """

    differences: list[str]
    unproven: list[str]


def check_claims(
    table: str,
    manifest: Mapping[str, Any],
    study: Study,
    checkpoint: str | None,
    shown: Collection[str],
    made: Collection[str],
) -> Claims:
    """Compare what a manifest claims of an evaluation with its study and the run's checkpoints.

    A control that was left out would hide that it does as well as the patch. The controls of an older version
    and the images among the controls may have been others, so that these are not proven.

    Args:
        table: The name of the table.
        manifest: Its manifest.
        study: The study, with the settings of the table.
        checkpoint: The name of a checkpoint with the patch of the table, or None.
        shown: The conditions of the table.
        made: The conditions that its evaluation makes.
    """
    found = Claims([], [])
    for condition in made:
        if condition in shown:
            continue
        if condition in study.evaluate.controls or SEAL not in manifest:
            found.unproven.append(f"the condition {condition!r}, which {table} does not show")
        else:
            found.differences.append(f"{table}: the condition {condition!r} is missing")
    draws, own = manifest.get("num_draws"), study.evaluate.num_draws
    if draws not in (None, own):
        if "evaluate.num_draws" in manifest.get("settings", {}):
            found.differences.append(f"tables/{table}.json: num_draws is {draws}, its settings say {own}")
        else:
            found.unproven.append(f"the rows of evaluate.num_draws = {own}: {table} has {draws} per image")
    claimed = manifest.get("checkpoint")
    if checkpoint is not None and claimed not in (None, checkpoint):
        found.unproven.append(f"checkpoint {claimed!r} of {table}: the patch is that of {checkpoint!r}")
    return found
