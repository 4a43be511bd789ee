"""The checker of annotations that `conftest.py` switches on: beartype, with an int for a float (PEP 484)."""

from collections.abc import Iterator
from contextlib import contextmanager
from unittest.mock import patch

import jaxtyping
from beartype import BeartypeConf, beartype

checked = beartype(conf=BeartypeConf(is_pep484_tower=True))


@contextmanager
def unchecked() -> Iterator[None]:
    """Without checks, which draw from python's generator (which item to look at) and do not compile."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        with patch("jaxtyping.jaxtyped", lambda typechecker: lambda function: function):
            yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
