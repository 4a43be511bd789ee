"""Every law on every case, and on a stage that breaks it."""

import pytest
from broken import BROKEN
from cases import CASES
from laws import LAWS

APPLICABLE = [(rule, name) for rule, law in LAWS.items() for name, case in CASES.items() if law.applies(case)]
TRACED, COMPILED = "traced_equals_eager", "compiled_equals_eager"


def find_slow() -> set[tuple[str, str]]:
    """Every stage is compiled in its first case, and traced in all others; the other way round is slow."""
    seen: set[str] = set()
    slow = {(rule, f"demo, {phase}") for rule in (TRACED, COMPILED) for phase in ("train", "test")}
    for name in [name for rule, name in APPLICABLE if rule == COMPILED and (rule, name) not in slow]:
        stages = {s.definition.name for s in CASES[name].stages}
        slow.add((TRACED if stages - seen else COMPILED, name))
        seen |= stages
    return slow


SLOW = find_slow()


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
