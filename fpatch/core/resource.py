"""Resources: live objects that a config names, such as models, generators and functions.

A `Loader` is a registered function `(weights, **arguments) -> object`. A `Resource` records a call of one:
the loader's id, its arguments, the weights file and its digest, and the digests of all other files that make
the object. Those are the files that an argument names, and those that the loader says it reads beside the
weights. The object is loaded at its first use, and only if every file still has its recorded digest.
"""

import dataclasses
import inspect
import os
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch

from fpatch.core.checks import nearest
from fpatch.core.files import file_digest
from fpatch.core.inputs import expand_home
from fpatch.core.plain import plain_torch
from fpatch.core.registry import identify, lookup, register
from fpatch.core.schema import OMIT_EMPTY


@dataclass(frozen=True)
class Loader:
    """A registered function that makes a live object; see `define_loader`.

    Attributes:
        name: Its id.
        module: The module that defines it.
        load: The function `(weights, **arguments) -> object`.
        files: `(weights, **arguments) -> names` of the other files that it reads from the folder of the
            weights; None: none.

    Example:
        >>> from fpatch.data import image_file
        >>> image_file.name, image_file.module
        ('data.image_file', 'fpatch.data.images')
    """

    name: str
    module: str
    load: Callable[..., Any]
    files: Callable[..., Iterable[str]] | None = None

    def __call__(self, weights: str | Path | None = None, **arguments: Any) -> "Resource":
        """Return a resource of this loader, with the current digests of its files.

        Raises:
            FileNotFoundError: If the weights file does not exist.
            TypeError: For an argument that the loader does not know, with the nearest.
        """
        known = inspect.signature(self.load).parameters
        for argument in arguments:
            if argument not in known and not any(p.kind is p.VAR_KEYWORD for p in known.values()):
                raise TypeError(f"{self.name}: no argument {argument!r}; {nearest(argument, known)}")
        path = None if weights is None else str(weights)
        files = _digests_of_named(arguments) | self.digests_beside(path, arguments)
        return Resource(self.name, path, None if path is None else file_digest(path), arguments, files)

    def __repr__(self) -> str:
        return self.name

    def digests_beside(self, weights: str | None, arguments: Mapping[str, Any]) -> dict[str, str]:
        """Return the digests of the other files in the folder of the weights, by name."""
        if weights is None or self.files is None:
            return {}
        folder = Path(weights).parent
        names = [name for name in self.files(weights, **arguments) if (folder / name).is_file()]
        return {name: file_digest(folder / name) for name in names}


@dataclass(frozen=True)
class Resource:
    """A live object, described by its loader and weights; `.value` is the object.

    Attributes:
        loader: The id of the loader.
        weights: The path of the weights file, or None.
        sha256: The digest of that file, or None.
        arguments: Keyword arguments of the loader.
        files: The digests of the other files: of those that an argument names, by that name, and of those in
            the folder of the weights. A record made before there were such digests has none.

    Example:
        >>> from fpatch import Resource
        >>> print(Resource("data.image_file", "folder/print.png"))
        data.image_file(print.png)
    """

    loader: str
    weights: str | None = None
    sha256: str | None = None
    arguments: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict, metadata=OMIT_EMPTY)

    def pinned(self, root: Path) -> "Resource":
        """Return the resource with an absolute path, which starts at `root`, and the digests of its files."""
        files = _digests_of_named(self.arguments)
        if self.weights is None:
            return dataclasses.replace(self, files=files | dict(self.files))
        if "\0" in self.weights:
            given = f"resource {self.loader!r}: weights {self.weights!r}"
            raise ValueError(f"{given} hold a null byte; correct the path")
        path = os.path.realpath(root / expand_home("weights", self.weights))
        if self.sha256 is not None:  # a record
            return dataclasses.replace(self, weights=path, files=files | dict(self.files))
        digest = file_digest(path)
        with suppress(ImportError, ValueError):  # an unknown loader is an error where it is used
            files |= lookup(self.loader, Loader, "resource").digests_beside(path, self.arguments)
        return dataclasses.replace(self, weights=path, sha256=digest, files=files)

    def __str__(self) -> str:
        beside = [name for name in self.files if name not in _texts(self.arguments)]
        weights = [] if self.weights is None else [" + ".join([Path(self.weights).name, *beside])]
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
        with torch.random.fork_rng(devices=[]), plain_torch(grad=True):  # a network draws initial weights
            return self._load(load)

    def _load(self, load: Callable[..., Any]) -> Any:
        given = () if self.weights is None else (self.weights,)
        if self.weights is not None and self.sha256 is not None:
            self._check(self.weights, self.sha256)
        for name, digest in self.files.items():
            beside = self.weights is not None and name not in _texts(self.arguments)
            self._check(Path(self.weights or "").parent / name if beside else name, digest)
        source = f" from {self.weights}" if given else ""
        try:
            inspect.signature(load).bind(*given, **self.arguments)
        except TypeError as error:
            raise ValueError(f"resource {self.loader!r} cannot be loaded{source}: {error}") from error
        try:
            return load(*given, **self.arguments)
        except (ImportError, OSError) as error:
            error.add_note(f"in resource {self.loader!r}{source}")
            raise
        except Exception as error:
            raise ValueError(f"resource {self.loader!r} cannot be loaded{source}: {error}") from error

    def _check(self, path: str | Path, digest: str) -> None:
        """Check that a file has its recorded digest."""
        if (found := file_digest(path)) != digest:
            raise ValueError(
                f"resource {self.loader!r}: {path} has changed: sha256 {found[:16]}..., "
                f"but {digest[:16]}... was recorded; restore the file or train again"
            )


def named_files(value: Any) -> list[str]:
    """Return the names of files in a setting, in its lists and its tables; a name has a suffix.

    Names start at the working directory, as where loaders and stages open them.

    Example:
        >>> from fpatch.core.resource import named_files
        >>> named_files({"parts": ["no-such-file.npz"], "factor": 2.0})
        []
    """
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [name for part in value for name in named_files(part)]
    is_name = isinstance(value, str) and "\0" not in value and bool(Path(value).suffix)
    with suppress(OSError):  # a text that is too long for a name
        return [value] if is_name and Path(value).is_file() else []
    return []


def _digests_of_named(arguments: Mapping[str, Any]) -> dict[str, str]:
    """Return the digests of the files that arguments name."""
    return {name: file_digest(name) for name in named_files(arguments)}


def _texts(value: Any) -> list[str]:
    """Return all texts in a setting."""
    if isinstance(value, Mapping):
        value = list(value.values())
    if isinstance(value, list | tuple):
        return [text for part in value for text in _texts(part)]
    return [value] if isinstance(value, str) else []


def define_loader(
    name: str, load: Callable[..., Any], files: Callable[..., Iterable[str]] | None = None
) -> Loader:
    """Register a loader; a call of it gives a `Resource`, which a config can name.

    Args:
        name: Its name; the id is `module:name`.
        load: `(weights, **arguments) -> object`, where a resource without weights passes none.
        files: `(weights, **arguments) -> names` of the other files that it reads in the folder of the
            weights, such as a description or external data. Those that exist are recorded with digests too.

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
    loader = Loader(identify(name, load.__module__), load.__module__, load, files)
    taken = inspect.signature(load).replace(return_annotation="Resource")
    object.__setattr__(loader, "__signature__", taken)
    call = f"{loader.name}{taken}".replace("'Resource'", "Resource")
    object.__setattr__(loader, "__doc__", f"{call}\n\n{inspect.getdoc(load) or ''}\n")
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


def find_networks(config: Any) -> dict[str, torch.nn.Module]:
    """Return the networks among the fields of a dataclass, loaded, by field.

    Example:
        >>> import torch
        >>> from fpatch import infer
        >>> from fpatch.core.resource import find_networks
        >>> find_networks(infer.classifier(torch.nn.Linear(2, 3).eval()).config)
        {'model': Linear(in_features=2, out_features=3, bias=True)}
    """
    settings = {f.name: resolve(getattr(config, f.name)) for f in dataclasses.fields(config)}
    return {name: model for name, model in settings.items() if isinstance(model, torch.nn.Module)}
