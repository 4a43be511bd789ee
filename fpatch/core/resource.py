"""Resources: live objects that a config names, such as models, generators and functions.

A `Loader` is a registered function `(weights, **arguments) -> object`. A `Resource` records a call of one:
the loader's id, its arguments, the weights file and its digest. The object is loaded at its first use, and
only if the weights file still has the recorded digest.
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
    """A registered function that makes a live object; see `define_loader`.

    Attributes:
        name: Its id.
        module: The module that defines it.
        load: The function `(weights, **arguments) -> object`.

    Example:
        >>> from fpatch.data import image_file
        >>> image_file.name, image_file.module
        ('data.image_file', 'fpatch.data.images')
    """

    name: str
    module: str
    load: Callable[..., Any]

    def __call__(self, weights: str | Path | None = None, **arguments: Any) -> "Resource":
        """Return a resource of this loader, with the current digest of its weights file.

        Raises:
            FileNotFoundError: If the weights file does not exist.
        """
        path = None if weights is None else str(weights)
        return Resource(self.name, path, None if path is None else file_digest(path), arguments)


@dataclass(frozen=True)
class Resource:
    """A live object, described by its loader and weights; `.value` is the object.

    Attributes:
        loader: The id of the loader.
        weights: The path of the weights file, or None.
        sha256: The digest of that file, or None.
        arguments: Keyword arguments of the loader.

    Example:
        >>> from fpatch import Resource
        >>> print(Resource("data.image_file", "folder/print.png"))
        data.image_file(print.png)
    """

    loader: str
    weights: str | None = None
    sha256: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def pinned(self, root: Path) -> "Resource":
        """Return the resource with an absolute path, which starts at `root`, and the digest of that file."""
        if self.weights is None:
            return self
        path = (root / Path(self.weights).expanduser()).resolve()
        return dataclasses.replace(self, weights=str(path), sha256=self.sha256 or file_digest(path))

    def __str__(self) -> str:
        weights = [] if self.weights is None else [Path(self.weights).name]
        return f"{self.loader}({', '.join([*weights, *(f'{n}={v!r}' for n, v in self.arguments.items())])})"

    @cached_property
    def value(self) -> Any:
        """The object, loaded at its first use.

        Raises:
            ImportError: If a package is missing.
            OSError: If the weights file is missing or cannot be read.
            ValueError: If the loader is unknown or fails, or the digest of the weights differs.
        """
        load = lookup(self.loader, Loader, "resource").load
        with torch.random.fork_rng(devices=[]):  # a network draws initial weights
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
    """Register a loader; a call of it gives a `Resource`, which a config can name.

    Args:
        name: Its name; the id is `module:name`.
        load: `(weights, **arguments) -> object`, where a resource without weights passes none.

    Raises:
        ValueError: If another module has registered the id.

    Example:
        >>> import fpatch
        >>> def load_scale(factor: float) -> float:
        ...     return 2.0 * factor
        >>> scale = fpatch.define_loader("scale", load_scale)
        >>> scale(factor=3.0).arguments
        {'factor': 3.0}
    """
    loader = Loader(identify(name, load.__module__), load.__module__, load)
    register(loader.name, loader)
    return loader


def resolve(value: Any) -> Any:
    """Return the object of a `Resource`; any other value is returned as it is.

    Example:
        >>> from fpatch.core.resource import resolve
        >>> resolve("a live object")
        'a live object'
    """
    return value.value if isinstance(value, Resource) else value
