"""Every law on every case, and on a stage that breaks it."""

import pytest
from broken import BROKEN
from cases import CASES
from laws import LAWS

APPLICABLE = [(rule, name) for rule, law in LAWS.items() for name, case in CASES.items() if law.applies(case)]
SLOW = {("compiled_equals_eager", "demo, train"), ("compiled_equals_eager", "demo, test")}


@pytest.mark.parametrize(
    ("rule", "case"),
    [pytest.param(*pair, marks=pytest.mark.slow if pair in SLOW else ()) for pair in APPLICABLE],
)
def test_law(rule, case):
    LAWS[rule].check(CASES[case])


@pytest.mark.parametrize("rule", LAWS)
def test_law_rejects_a_broken_stage(rule):
    assert LAWS[rule].applies(BROKEN[rule])
    with pytest.raises(AssertionError):
        LAWS[rule].check(BROKEN[rule])


@pytest.mark.parametrize("rule", LAWS)
def test_law_speaks_of_several_cases(rule):
    assert sum(law == rule for law, _ in APPLICABLE) >= 3
