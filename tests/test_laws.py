"""Every law on every case, and on a stage that breaks it."""

import dataclasses

import pytest
from broken import BROKEN
from cases import CASES
from laws import LAWS
from test_layout import STAGES

from fpatch.core.types import Range

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


ANSWERS = {"detections", "logits"}
FINITE, TYPES, PAIRS = (
    "answers_that_are_not_finite_never_count",
    "dtypes_of_user_models_never_reach_geometry",
    "a_pair_is_a_range",
)


MIXED, SEPARATE = (
    {
        s.definition.name
        for case in CASES.values()
        for s in case.stages
        if s.definition.traits.mixes_rows == mixes
    }
    for mixes in (True, False)
)
"""Stages whose rows depend on their neighbors, with some settings, and those whose rows do not."""


def laws_of(definition) -> set[str]:
    """The laws that a stage must have a case of, by its role and by what it reads."""
    answers = bool(ANSWERS & {*definition.reads})
    ranges = any(isinstance(f.default, Range) for f in dataclasses.fields(definition.config))
    chosen = {
        FINITE: definition.role == "metric",
        TYPES: definition.role in ("metric", "victim") or (definition.role == "loss" and answers),
        PAIRS: ranges,
        "same_key_same_sample": True,
        "config_rebuilds_it": True,
        "opacity_0_is_the_clean_scene": "opacity" in definition.fields,
        "rows_do_not_see_their_neighbors": definition.name in SEPARATE or definition.name not in MIXED,
        "a_batch_repeats_its_bits": definition.name in MIXED,
    }
    return {rule for rule, due in chosen.items() if due}


def test_a_new_stage_inherits_the_laws():
    """A stage needs one line in `CASES`, which a test of the layout asks for; its contract gives its laws."""
    checked = {(rule, s.definition.name) for rule, name in APPLICABLE for s in CASES[name].stages}
    due = {(rule, name) for name, definition in STAGES.items() for rule in laws_of(definition)}
    assert due - checked == set()
    assert {rule for rule, _ in due} >= {FINITE, TYPES, PAIRS}
