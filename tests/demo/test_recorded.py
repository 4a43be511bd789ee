"""The recorded success rates of the demo: those of the docs, and the comparison that `fpatch demo` prints."""

import re
from pathlib import Path

import pytest

from fpatch.demo.recorded import compare_with_recorded, recorded_rates
from fpatch.demo.study import FULL, QUICK, Size
from fpatch.evaluation.conditions import TITLES
from fpatch.runtime.execution import with_threads

ROOT = Path(__file__).parents[2]
SMALL = Size({"train": 4, "validation": 2, "test": 2}, ((96, 96),), 1, 1, 1, ())


@pytest.mark.parametrize("size", [QUICK, FULL], ids=["quick", "full"])
def test_equal_rates_are_said_in_one_line(size):
    (line,) = compare_with_recorded(recorded_rates(size).victims, size)
    assert line.startswith("All success rates equal those of the docs, recorded with torch 2.")


def test_each_rate_that_differs_is_named_with_both_numbers():
    one, other = recorded_rates(FULL).victims
    first, named, why = compare_with_recorded([one, other | {"noise": "12.3"}], FULL)
    assert first.startswith("1 success rate differs from those of the docs, recorded with torch 2.")
    assert named == f"  victim 1, noise: 12.3 % here, {other['noise']} % in the docs"
    assert why.startswith("Here: ")


def test_another_number_of_threads_is_named():
    """It changes the rates as another processor does."""
    (victim,) = recorded_rates(QUICK).victims
    with with_threads(1):
        _, _, why = compare_with_recorded([victim | {"noise": "12.3"}], QUICK)
    assert "threads 1" in why.partition(". Other kernels")[0]


def test_a_demo_of_another_size_is_not_compared():
    assert compare_with_recorded([], SMALL) == []


def test_the_docs_report_the_recorded_rates():
    text = (ROOT / "docs/explanation/results.md").read_text("utf-8")
    table = text[text.index("| condition | victim 0") :]
    for name in recorded_rates(FULL).victims[0]:
        row = next(line for line in table.splitlines() if line.startswith(f"| {TITLES[name]}"))
        rates = re.findall(r"\| (\d+\.\d) \[", row)
        assert rates == [victim[name] for victim in recorded_rates(FULL).victims], row
    quick = recorded_rates(QUICK).victims[0]
    assert re.search(rf"success {quick['patch']} \[.*noise {quick['noise']} \[", text)
    readme = (ROOT / "README.md").read_text("utf-8")
    assert f"{recorded_rates(FULL).victims[0]['patch']} % [" in readme
    for size in (FULL, QUICK):
        assert f"torch {recorded_rates(size).execution['torch']}" in text
