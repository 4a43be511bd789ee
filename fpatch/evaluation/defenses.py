"""Attack x defense: what a defense costs, and what each patch still does behind it."""

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from fpatch.evaluation.columns import split_group
from fpatch.evaluation.conditions import NONE, PATCH
from fpatch.evaluation.rates import Success, Table, count_rates, success
from fpatch.metrics import Rate, bootstrap_mean

UNDEFENDED = "none"
"""The name of the defense that does nothing."""


class Defended(NamedTuple):
    """All attacks behind one defense.

    Attributes:
        attacks: The success of every patch with its controls, by the name of the attack.
        clean: The share of rows with an object where it is found without a patch: the denominator.
        cost: `clean` minus that without the defense, paired over rows with an object.
        change: The success under every condition of every attack minus that without the defense, paired over
            the rows that count in both: the object is found without a patch, with and without the defense.
        adaptive: The attacks whose patch was trained through this defense.
        gain: Their success minus that of the first attack that was trained without a defense, paired over
            the rows that count; empty if there is none.
    """

    attacks: dict[str, Success]
    clean: Rate
    cost: Rate
    change: dict[str, dict[str, Rate]]
    adaptive: list[str]
    gain: dict[str, Rate]


def compare_defenses(
    tables: Mapping[str, Mapping[str, Table]],
    adaptive: Mapping[str, list[str]],
    metric: str = "found",
) -> dict[str, Defended]:
    """Compare defenses by the tables of every attack behind every defense.

    Args:
        tables: `{defense: {attack: table}}`, of the same rows under the same keys. "none" is no defense.
        adaptive: The attacks that were trained through each defense; those of "none" are oblivious.
        metric: The boolean metric whose failure is a success.

    Raises:
        ValueError: If the rows of two tables, or their objects, differ.

    Example:
        >>> import numpy as np
        >>> from fpatch.evaluation.defenses import compare_defenses
        >>> def table(without, patched):
        ...     columns = {"found/none": np.array(without, bool), "found/patch": np.array(patched, bool)}
        ...     return {"image_id": np.arange(4), "draw": np.zeros(4, int), **columns}
        >>> plain = {"a": table([1, 1, 1, 1], [0, 0, 0, 1]), "b": table([1, 1, 1, 1], [0, 1, 1, 1])}
        >>> blur = {"a": table([1, 1, 1, 0], [1, 1, 0, 0]), "b": table([1, 1, 1, 0], [0, 0, 0, 0])}
        >>> found = compare_defenses({"none": plain, "blur": blur}, {"none": ["a"], "blur": ["b"]})["blur"]
        >>> found.cost.value, round(found.change["a"]["patch"].value, 2), round(found.gain["b"].value, 2)
        (-0.25, -0.67, 0.67)
    """
    first = next(iter(tables[UNDEFENDED].values()))
    for defense, attacks in tables.items():
        for attack, table in attacks.items():
            _check_rows(first, table, f"attack {attack!r} behind {defense!r}")
    rows = {d: {a: _Rows(t, metric) for a, t in attacks.items()} for d, attacks in tables.items()}
    oblivious = adaptive.get(UNDEFENDED, [])[:1]
    found = {}
    for defense, attacks in rows.items():
        any_attack, before = next(iter(attacks.values())), next(iter(rows[UNDEFENDED].values()))
        trained = [] if defense == UNDEFENDED else list(adaptive.get(defense, []))
        found[defense] = Defended(
            attacks={a: r.success for a, r in attacks.items()},
            clean=any_attack.success.clean,
            cost=_cost(any_attack, before),
            change={a: r.minus(rows[UNDEFENDED][a]) for a, r in attacks.items()},
            adaptive=trained,
            gain={a: attacks[a].minus(attacks[b])[PATCH] for a in trained for b in oblivious},
        )
    return found


class _Rows:
    """The rows of a table that count, and those in which a patch succeeds, by condition."""

    def __init__(self, table: Table, metric: str) -> None:
        self.success = success(table, metric)
        _, self.counted, fooled = count_rates(table, metric)
        self.fooled = {c: np.zeros(len(self.counted)) for c in fooled}
        for condition, hit in fooled.items():
            self.fooled[condition][self.counted] = hit
        self.image_id = table["image_id"]
        group, _ = split_group(metric)
        self.has_object = table.get(f"{group}has_object/{NONE}", np.ones_like(self.counted)).astype(bool)

    def minus(self, before: "_Rows") -> dict[str, Rate]:
        """The success under each condition minus another, paired over the rows that count in both."""
        both = self.counted & before.counted
        return {
            c: _unless_broken(
                bootstrap_mean(hit[both] - before.fooled[c][both], self.image_id[both]), c, self, before
            )
            for c, hit in self.fooled.items()
            if c in before.fooled
        }


def _cost(rows: _Rows, before: _Rows) -> Rate:
    """The share of objects found behind a defense minus that without, paired."""
    kept = rows.has_object
    values = rows.counted[kept].astype(float) - before.counted[kept]
    return _unless_broken(bootstrap_mean(values, rows.image_id[kept]), NONE, rows, before)


def _unless_broken(rate: Rate, condition: str, *rows: _Rows) -> Rate:
    """NaN in place of a rate that rests on rows which are not finite."""
    broken = any({condition, NONE} & set(r.success.not_finite) for r in rows)
    return rate._replace(value=np.nan, low=np.nan, high=np.nan) if broken else rate


def _check_rows(first: Table, other: Table, what: str) -> None:
    """Refuse tables of other rows or keys, between which nothing is paired."""
    names = [n for n in ("image_id", "draw", "key/0", "key/1") if n in first]
    if any(n not in other or not np.array_equal(first[n], other[n]) for n in names):
        raise ValueError(
            f"matrix: the table of {what} has other rows or keys than the first; measure all with one seed, "
            "one data set and one evaluate.num_draws"
        )
