"""The examples of docstrings: every public name has one, and shows what it prints."""

import doctest
import importlib
import inspect
import os
import tomllib
import typing
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

import fpatch
from fpatch.core.resource import Loader
from fpatch.graph.stage import Definition

ROOT = Path(fpatch.__file__).parents[1]
NAMES: dict[str, str] = tomllib.loads((ROOT / "docs/public-names.toml").read_text())


def documented(value: Any) -> Any:
    """The object whose docstring speaks for a public one: a config for a stage, a function for a loader."""
    if isinstance(value, Definition):
        return value.config
    return value.load if isinstance(value, Loader) else value


def find_public() -> Iterator[tuple[str, Any]]:
    """Address and object of every function, class, stage and loader."""
    for module, names in NAMES.items():
        made = importlib.import_module(module)
        for name in names.split():
            value = documented(getattr(made, name))
            is_alias = typing.get_origin(value) is not None or value is typing.Any
            ours = str(getattr(value, "__module__", "")).startswith("fpatch.")
            if ours and not is_alias and (inspect.isclass(value) or inspect.isroutine(value)):
                yield f"{module}.{name}", value


PUBLIC = dict(find_public())


def run_example(address: str, value: Any) -> str:
    """What differs from what the docstring shows; nothing if all is as shown."""
    text = inspect.getdoc(value) or ""
    test = doctest.DocTestParser().get_doctest(text, {"__name__": "example"}, address, address, 0)
    said: list[str] = []
    runner = doctest.DocTestRunner(optionflags=doctest.ELLIPSIS, verbose=False)
    runner.run(test, out=said.append, clear_globs=True)
    return "".join(said)


def test_every_public_name_has_an_example():
    assert len(PUBLIC) > 150
    missing = [address for address, value in PUBLIC.items() if ">>> " not in (value.__doc__ or "")]
    assert not missing, "\n".join(missing)


def test_no_example_is_skipped():
    skipped = [address for address, value in PUBLIC.items() if "+SKIP" in (value.__doc__ or "")]
    assert not skipped


@pytest.mark.parametrize("wing", sorted({value.__module__.split(".")[1] for value in PUBLIC.values()}))
def test_examples_print_what_they_show(wing, tmp_path, tmp_path_factory, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))
    wrong = [
        differs
        for address, value in PUBLIC.items()
        if value.__module__.split(".")[1] == wing and (differs := run_example(address, value))
    ]
    assert not wrong, "\n".join(wrong)
    assert os.listdir(tmp_path) == [], "an example writes into a temporary folder of its own"


def test_a_wrong_example_is_seen():
    def double(x: int) -> int:
        """Double a number.

        Example:
            >>> 2 * 2
            5
        """
        return 2 * x

    assert "Expected:\n    5\nGot:\n    4" in run_example("double", double)
