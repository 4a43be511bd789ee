"""All cases, and the fast part, which is a share of each group."""

from collections import Counter
from collections.abc import Iterator

from malformed.engine import Case
from malformed.files_of_studies import study_cases
from malformed.folders import folder_cases, slow_folder_cases
from malformed.options import option_cases, slow_option_cases

_EVERY = {
    **dict.fromkeys(("study", "tables", "images", "further", "space", "words", "places"), 2),
    **dict.fromkeys(("folder", "records", "checkpoint", "override", "options"), 5),
    **dict.fromkeys(("sweep", "score"), 11),
    **dict.fromkeys(("values", "analyze", "open"), 23),
    "resume": 61,
}
"""The fast part has one of this number of cases of a group, 1 where none is named."""


def all_cases() -> list[Case]:
    """Return all cases; the working folder is a project."""
    makers = (study_cases, folder_cases, option_cases, slow_folder_cases, slow_option_cases)
    return [case for maker in makers for case in maker()]


def fast_cases() -> list[Case]:
    """Return the cases of the fast part."""
    return list(_share(case for maker in (study_cases, folder_cases, option_cases) for case in maker()))


def _share(cases: Iterator[Case]) -> Iterator[Case]:
    """Yield the first case of each group, and then one of so many."""
    counts: Counter[str] = Counter()
    for case in cases:
        group = case.name.partition(":")[0]
        if not counts[group] % _EVERY.get(group, 1):
            yield case
        counts[group] += 1
