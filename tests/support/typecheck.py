"""The checker of annotations that `conftest.py` switches on: beartype, with an int for a float (PEP 484).

`jaxtyping` offers a checker of its own, which binds and checks the arguments of a call twice. That costs two
fifths of all tests' time. The one here checks once, and compares axes only in functions that name some.
"""

import dataclasses
import functools
import inspect
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import CodeType
from typing import Any, get_args, get_type_hints
from unittest.mock import patch

import jaxtyping
from beartype import BeartypeConf, beartype

Function = Callable[..., Any]
checked = beartype(conf=BeartypeConf(is_pep484_tower=True))
in_new_scope = jaxtyping.jaxtyped
"""With "context": names of axes mean what they mean in one call."""


def install() -> None:
    """Check every function and dataclass of fpatch that is imported from now on."""
    jaxtyping.install_import_hook("fpatch", "typecheck.checked")
    jaxtyping.jaxtyped = decorate  # what the hook puts before a definition


def decorate(typechecker: Any = None) -> Callable[[Any], Any]:
    return check


def check(definition: Any) -> Any:
    """The same function or class, whose calls are checked unless `unchecked` says otherwise."""
    if inspect.isclass(definition):
        if dataclasses.is_dataclass(definition):
            definition.__init__ = check(definition.__init__)
        return definition
    find = find_inner if "<locals>" in definition.__qualname__ else make_strict
    strict, has_axes = find(definition)
    config = jaxtyping.config

    @functools.wraps(definition)
    def generate(*args: Any, **kwargs: Any) -> Any:
        """A generator function itself: torch.compile refuses another one in a context manager."""
        __tracebackhide__ = True
        return (yield from (definition if config.jaxtyping_disable else strict)(*args, **kwargs))

    if inspect.isgeneratorfunction(definition) and not has_axes:
        return generate

    @functools.wraps(definition)
    def call(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        if config.jaxtyping_disable:
            return definition(*args, **kwargs)
        if has_axes:
            with in_new_scope("context"):
                return strict(*args, **kwargs)
        return strict(*args, **kwargs)

    return call


def make_strict(definition: Function) -> tuple[Function, bool]:
    """The function checked by beartype, and whether its annotations name axes."""
    own = definition.__annotations__
    hints = {name: resolve(definition, hint) for name, hint in own.items()}
    definition.__annotations__ = hints
    try:
        return checked(definition), any(names_axes(hint) for hint in hints.values())
    finally:
        definition.__annotations__ = own


INNER: dict[CodeType, tuple[dict[str, Any], Function, bool]] = {}
awaited = threading.local()
"""The function behind the checks of its code."""


def find_inner(definition: Function) -> tuple[Function, bool]:
    """As `make_strict`, a millisecond, once for all functions that one `def` inside another makes."""
    hints, strict, has_axes = INNER.get(definition.__code__, (None, definition, False))
    if hints != definition.__annotations__:

        @functools.wraps(definition)
        def relay(*args: Any, **kwargs: Any) -> Any:
            return awaited.function(*args, **kwargs)

        hints = definition.__annotations__
        strict, has_axes = make_strict(relay)
        INNER[definition.__code__] = hints, strict, has_axes

    def behind(*args: Any, **kwargs: Any) -> Any:
        __tracebackhide__ = True
        awaited.function = definition  # arguments are checked by no other code of fpatch
        return strict(*args, **kwargs)

    return behind, has_axes


def resolve(definition: Function, hint: Any) -> Any:
    """An annotation without names as strings; Any if a name is not defined yet, or only for type checkers."""
    if isinstance(hint, type):
        return hint

    def one(value: Any) -> None: ...

    one.__annotations__["value"] = hint
    try:
        return get_type_hints(one, definition.__globals__, include_extras=True)["value"]
    except NameError:
        return Any


def names_axes(hint: Any) -> bool:
    is_array = isinstance(hint, type) and issubclass(hint, jaxtyping.AbstractArray)
    return is_array or any(names_axes(part) for part in get_args(hint))


@contextmanager
def unchecked() -> Iterator[None]:
    """Without checks, which draw from python's generator (which item to look at) and do not compile."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with patch("jaxtyping.jaxtyped", lambda typechecker: lambda function: function):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
