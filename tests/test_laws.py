"""Every law on every case, and on a stage that breaks it."""

import pytest
from broken import BROKEN
from cases import CASES, Case
from laws import LAWS, Law

APPLICABLE = {
    f"{rule}-{name}": (law, case)
    for rule, law in LAWS.items()
    for name, case in CASES.items()
    if law.applies(case)
}


@pytest.mark.parametrize(("law", "case"), APPLICABLE.values(), ids=APPLICABLE)
def test_law(law: Law, case: Case):
    law.check(case)


@pytest.mark.parametrize("rule", LAWS)
def test_law_rejects_a_broken_stage(rule):
    assert LAWS[rule].applies(BROKEN[rule])
    with pytest.raises(AssertionError):
        LAWS[rule].check(BROKEN[rule])


@pytest.mark.parametrize("rule", LAWS)
def test_law_speaks_of_several_cases(rule):
    assert sum(law is LAWS[rule] for law, _ in APPLICABLE.values()) >= 3
