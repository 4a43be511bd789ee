"""The success rates that README and docs report for `fpatch demo`, and the comparison of a demo with them."""

import tomllib
from collections.abc import Iterator, Mapping, Sequence
from importlib.resources import files
from typing import Any, NamedTuple

from fpatch.demo.measurements import Result
from fpatch.demo.study import FULL, QUICK, Size
from fpatch.evaluation.conditions import TITLES
from fpatch.runtime.execution import Execution


class Recorded(NamedTuple):
    """The recorded rates of one size of the demo.

    Attributes:
        execution: Version, processor and threads by name.
        victims: For each victim, its success rates in percent by condition, as the tables print them.
    """

    execution: dict[str, str | int]
    victims: list[dict[str, str]]


def recorded_rates(size: Size) -> Recorded | None:
    """Return the recorded rates of a size of the demo, made with seed 0; None for another size.

    Example:
        >>> from fpatch.demo.recorded import recorded_rates
        >>> from fpatch.demo.study import FULL
        >>> recorded = recorded_rates(FULL)
        >>> len(recorded.victims), sorted(recorded.execution)
        (2, ['cpu', 'model', 'threads', 'torch'])
    """
    if size not in (FULL, QUICK):
        return None
    table = tomllib.loads(files("fpatch.demo").joinpath("recorded.toml").read_text("utf-8"))
    return Recorded(**table["full" if size == FULL else "quick"])


def printed_rates(result: Result) -> dict[str, str]:
    """Return the success rates of a victim in percent by condition, as the tables print them."""
    return {name: f"{100 * rate.value:.1f}" for name, rate in result.rates.rates.items()}


def compare_with_recorded(rates: Sequence[Mapping[str, str]], size: Size) -> list[str]:
    """Compare the rates of a demo with the recorded ones; return lines to print, none for another size.

    Args:
        rates: The printed rates of each victim, made with seed 0.
        size: The size of the demo.

    Example:
        >>> from fpatch.demo.recorded import compare_with_recorded, recorded_rates
        >>> from fpatch.demo.study import QUICK
        >>> (victim,) = recorded_rates(QUICK).victims
        >>> compare_with_recorded([victim | {"noise": "2.0"}], QUICK)[1]
        '  victim 0, noise: 2.0 % here, 1.3 % in the docs'
    """
    recorded = recorded_rates(size)
    if recorded is None:
        return []
    found = list(_differences(rates, recorded.victims))
    made = "torch {torch} on {model} with {threads} threads".format(**recorded.execution)
    if not found:
        return [f"All success rates equal those of the docs, recorded with {made}."]
    here: dict[str, Any] = Execution.current(0)._asdict()
    here["torch"] = here["torch"].partition("+")[0]  # without the name of the build
    others = [f"{name} {here[name]}" for name, value in recorded.execution.items() if here[name] != value]
    why = f"Here: {', '.join(others) or 'the same version, processor and number of threads'}. "
    why += (
        "Other kernels and other numbers of threads round last bits otherwise, and both trainings amplify it."
    )
    count = "1 success rate differs" if len(found) == 1 else f"{len(found)} success rates differ"
    return [f"{count} from those of the docs, recorded with {made}.", *found, why]


def _differences(here: Sequence[Mapping[str, str]], recorded: Sequence[Mapping[str, str]]) -> Iterator[str]:
    for number, (mine, theirs) in enumerate(zip(here, recorded, strict=True)):
        for name, rate in theirs.items():
            if mine[name] != rate:
                yield f"  victim {number}, {TITLES[name]}: {mine[name]} % here, {rate} % in the docs"
