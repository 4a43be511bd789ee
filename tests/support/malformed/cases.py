"""All cases: fast ones, which are refused or soon done, and slow ones, which run a command to its end."""

from malformed.engine import Case
from malformed.files_of_studies import study_cases
from malformed.folders import folder_cases, slow_folder_cases
from malformed.options import option_cases, slow_option_cases

_EVERY = {
    **dict.fromkeys(("values", "resume", "open", "analyze", "sweep", "score"), 7),
    **dict.fromkeys(("folder", "records", "checkpoint", "override", "options"), 3),
}
"""Of these groups the fast part has one case of so many; the slow one has all."""


def all_cases() -> list[Case]:
    """Return all cases; the working folder is a project."""
    makers = (study_cases, folder_cases, option_cases, slow_folder_cases, slow_option_cases)
    return [case for maker in makers for case in maker()]


def fast_cases() -> list[Case]:
    """Return the cases of the fast part."""
    cases = [case for maker in (study_cases, folder_cases, option_cases) for case in maker()]
    return [c for i, c in enumerate(cases) if not i % _EVERY.get(c.name.partition(":")[0], 1)]
