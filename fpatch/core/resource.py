"""Live objects that a config can only name: models, generators, functions.

A `Loader` is a registered function `(weights, **arguments) -> object`. A `Resource` is a call of one, held as
values: the loader's id, the file of weights and its digest. The object is made when it is first needed, and
only if the file is still the one that was recorded.
"""

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fpatch.core.files import file_digest
from fpatch.core.registry import identify, lookup, register


@dataclass(frozen=True)
class Loader:
    """A function that makes a live object, known to configs by its id."""

    name: str
    module: str
    load: Callable[..., Any]

    def __call__(self, weights: str | Path | None = None, **arguments: Any) -> "Resource":
        """A resource that this loader makes, with the digest of its weights as they are now."""
        path = None if weights is None else str(weights)
        return Resource(self.name, path, None if path is None else file_digest(path), arguments)


@dataclass(frozen=True)
class Resource:
    """A live object by its provenance; `.value` is the object."""

    loader: str
    weights: str | None = None
    sha256: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def pinned(self, root: Path) -> "Resource":
        """The same with an absolute path (relative ones start at `root`) and the digest of the file there."""
        if self.weights is None:
            return self
        path = (root / Path(self.weights).expanduser()).resolve()
        return dataclasses.replace(self, weights=str(path), sha256=self.sha256 or file_digest(path))

    def __str__(self) -> str:
        weights = [] if self.weights is None else [Path(self.weights).name]
        return f"{self.loader}({', '.join([*weights, *(f'{n}={v!r}' for n, v in self.arguments.items())])})"

    @cached_property
    def value(self) -> Any:
        """The object.

        Raises:
            ImportError: If a package is missing.
            OSError: If the weights are missing or cannot be read.
            ValueError: If the loader is unknown or fails, or the weights are not those that were recorded.
        """
        load = lookup(self.loader, Loader, "resource").load
        with torch.random.fork_rng(devices=[]):  # a network draws its weights before it is given others
            return self._load(load)

    def _load(self, load: Callable[..., Any]) -> Any:
        given = () if self.weights is None else (self.weights,)
        if given and self.sha256 is not None and (found := file_digest(*given)) != self.sha256:
            raise ValueError(
                f"resource {self.loader!r}: {self.weights} has changed: sha256 {found[:16]}..., "
                f"but {self.sha256[:16]}... was recorded; restore the file or train again"
            )
        source = f" from {self.weights}" if given else ""
        try:
            return load(*given, **self.arguments)
        except (ImportError, OSError) as error:
            error.add_note(f"in resource {self.loader!r}{source}")
            raise
        except Exception as error:
            raise ValueError(f"resource {self.loader!r} cannot be loaded{source}: {error}") from error


def define_loader(name: str, load: Callable[..., Any]) -> Loader:
    """Register `load(weights, **arguments)`; call the result to name an object in a config."""
    loader = Loader(identify(name, load.__module__), load.__module__, load)
    register(loader.name, loader)
    return loader


def resolve(value: Any) -> Any:
    """The object itself, whether it was given or is a `Resource`."""
    return value.value if isinstance(value, Resource) else value
