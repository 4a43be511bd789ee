"""The one reader of numbers and values that a person types."""

import copy
import json
import pickle
import re

import pytest

from fpatch.core.inputs import check_file, parse_json, parse_toml, read_text
from fpatch.core.schema import decode
from fpatch.core.text import Real, Whole, read_number, read_value, read_whole

NUMBERS = {
    ".1": 0.1,
    "1.": 1.0,
    "1e3": 1000.0,
    "1_000": 1000.0,
    "+5": 5.0,
    "-.5": -0.5,
    " 0.25 ": 0.25,
    "1E-2": 0.01,
}
NO_NUMBERS = (
    "",
    "x",
    "nan",
    "inf",
    "1e999",
    "0x10",
    "1,5",
    "\u0663",
    "1__0",
    "_1",
    "1_",
    ".",
    "1e",
    "--1",
    "1" * 500,
)


@pytest.mark.parametrize("text", NUMBERS)
def test_a_number_reads_alike_everywhere(text):
    assert read_number("--x", text) == NUMBERS[text]
    assert read_value(text) == NUMBERS[text]
    assert decode(float, read_value(text), "x") == NUMBERS[text]


@pytest.mark.parametrize("text", NO_NUMBERS)
def test_no_number_is_refused(text):
    with pytest.raises(ValueError, match=r"--x must be a finite number such as 12\.5, got"):
        read_number("--x", text)
    with pytest.raises(ValueError, match="--x must be a whole number"):
        read_whole("--x", text)


def test_whole_numbers():
    assert [read_whole("--x", t) for t in ("1e3", "1_000", "+7", "-2", "6.0")] == [1000, 1000, 7, -2, 6]
    assert read_whole("--x", "123456789012345678901") == 123456789012345678901
    for text in ("1.5", "0"):
        with pytest.raises(
            ValueError, match=re.escape(f"--x must be a whole number from 1 such as 12, got {text!r}")
        ):
            read_whole("--x", text, 1)


def test_a_setting_of_text_takes_what_was_typed():
    """A number or a date is text where text is asked; in a file it needs quotes."""
    for text in ("1_000", "1e3", "0x10", "2026-01-01", "10:30:00", "adam", "1.50"):
        assert decode(str, read_value(text), "log.experiment") == text
    with pytest.raises(
        ValueError, match=r'log.experiment: expected a string, got 3; write it in quotes: "3"'
    ):
        decode(str, 3, "log.experiment")


def test_a_setting_of_whole_numbers_takes_1e3_from_an_option():
    assert decode(int, read_value("1e3"), "train.num_steps") == 1000
    for value in (read_value("1.5"), 1000.0, True, "1e3"):
        with pytest.raises(ValueError, match=r"train\.num_steps: expected a whole number"):
            decode(int, value, "train.num_steps")


def test_lists_tables_and_odd_texts():
    assert read_value("[.5, 1., 1e3]") == [0.5, 1.0, 1000.0]
    assert read_value("{a = .1}") == {"a": 0.1}
    assert read_value("['.5']") == [".5"]
    for text in ("[[", "a = b", "1\nother = 2", "[" * 20_000):
        assert read_value(text) == text


def test_typed_numbers_survive_copies():
    for value in (Whole(5, "05"), Real(0.5, ".5")):
        for made in (copy.deepcopy(value), pickle.loads(pickle.dumps(value))):
            assert (made, made.text, type(made)) == (value, value.text, type(value))
        assert json.loads(json.dumps(value)) == value


def test_deep_nesting_is_an_error_of_the_text():
    for parse, text in ((parse_json, "[" * 100_000), (parse_toml, "x = " + "[" * 5000 + "]" * 5000)):
        with pytest.raises(ValueError, match="nested too deeply"):
            parse(text)


def test_files_must_be_regular(tmp_path):
    import os

    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "loop").symlink_to("loop")
    (tmp_path / "bad.txt").write_bytes(b"a\xff")
    for name, what in {
        "pipe": "it is a pipe",
        ".": "it is a folder",
        "none": "no such file",
        "loop": "links",
    }.items():
        with pytest.raises((ValueError, OSError), match=what):
            check_file(tmp_path / name)
    with pytest.raises(ValueError, match=r"bad.txt: not text in UTF-8 \(byte 1 is 0xff\)"):
        read_text(tmp_path / "bad.txt")
    with pytest.raises(ValueError, match="a path cannot hold the character NUL"):
        check_file("a\0b")
