"""The registry of stages, loaders and optimizers, which a config names by their ids.

Inside fpatch an id is `family.name`, such as `compose.exposure`. Elsewhere it is `module:name`, and a lookup
imports that module. Ids are looked up, never evaluated.
"""

import importlib
from typing import Any, Protocol, runtime_checkable

from fpatch.core.checks import nearest
from fpatch.core.sources import note_sources


@runtime_checkable
class Registered(Protocol):
    """A value that names the module that defines it."""

    @property
    def module(self) -> str:
        """The full name of the module."""
        ...


_REGISTRY: dict[str, Any] = {}


def identify(name: str, module: str) -> str:
    """Return the id of `name`, defined in `module`.

    Example:
        >>> from fpatch.core.registry import identify
        >>> identify("exposure", "fpatch.compose.color.exposure"), identify("glare", "my_stages")
        ('compose.exposure', 'my_stages:glare')
    """
    if module.startswith("fpatch."):
        return f"{module.split('.')[1]}.{name}"
    return f"{module}:{name}"


def register(identity: str, value: Registered) -> None:
    """Register `value` under an id.

    Raises:
        ValueError: If another module has registered the id.
    """
    known = _REGISTRY.get(identity)
    if known is not None and known.module != value.module:
        raise ValueError(f"{identity!r} is defined in {known.module} and again in {value.module}; rename one")
    _REGISTRY[identity] = value
    note_sources(value.module)


def lookup(identity: str, kind: type, where: str) -> Any:
    """Return the value with an id; import the module that defines it.

    Args:
        identity: The id.
        kind: The type of the value.
        where: The start of an error message.

    Raises:
        ValueError: If the module cannot be imported, or does not register the id with a value of this type.

    Example:
        >>> from fpatch.core.registry import lookup
        >>> from fpatch.graph.stage import Definition
        >>> lookup("compose.exposure", Definition, "pipeline.camera").module
        'fpatch.compose.color.exposure'
    """
    module = identity.partition(":")[0] if ":" in identity else f"fpatch.{identity.partition('.')[0]}"
    there = all(module.split("."))
    try:
        if there:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # an import of the module fails
        there = False
    if not there:
        raise ValueError(
            f"{where}: {identity!r} needs the module {module!r}, which cannot be imported; "
            "ids are 'family.name' inside fpatch and 'module:name' elsewhere: run from the folder of the "
            "module, or add that folder to PYTHONPATH"
        )
    value = _REGISTRY.get(identity)
    if not isinstance(value, kind):
        known = [name for name, other in _REGISTRY.items() if isinstance(other, kind)]
        hint = nearest(identity, known)
        if ":" in identity:
            hint = (
                f"{nearest(identity, [name for name in known if name.startswith(f'{module}:')])}; "
                "fpatch.define and define_loader register ids, in a module that can be imported: "
                "a plain function has none, nor has a value that a script defines"
            )
        raise ValueError(f"{where}: no {kind.__name__.lower()} {identity!r}; {hint}")
    return value
