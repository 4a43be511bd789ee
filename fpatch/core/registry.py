"""Ids for what a config may name: stages, loaders, optimizers. Looked up, never evaluated.

Inside fpatch an id is `family.name` (`compose.exposure`), elsewhere `module:name`, so that whoever reads a
config knows which module to import for it.
"""

import importlib
from typing import Any, Protocol, runtime_checkable

from fpatch.core.checks import nearest


@runtime_checkable
class Registered(Protocol):
    """Anything that knows the module it was defined in."""

    @property
    def module(self) -> str:
        """Its full name."""
        ...


_REGISTRY: dict[str, Any] = {}


def identify(name: str, module: str) -> str:
    """The id of `name` as defined in `module`."""
    if module.startswith("fpatch."):
        return f"{module.split('.')[1]}.{name}"
    return f"{module}:{name}"


def register(identity: str, value: Registered) -> None:
    """Make `value` known under an id.

    Raises:
        ValueError: Where another module has taken the id.
    """
    known = _REGISTRY.get(identity)
    if known is not None and known.module != value.module:
        raise ValueError(f"{identity!r} is defined in {known.module} and again in {value.module}; rename one")
    _REGISTRY[identity] = value


def lookup(identity: str, kind: type, where: str) -> Any:
    """What an id stands for, importing the module that defines it.

    Raises:
        ValueError: If there is no such module, no such name in it, or it is of another kind.
    """
    module = identity.partition(":")[0] if ":" in identity else f"fpatch.{identity.partition('.')[0]}"
    there = all(module.split("."))
    try:
        if there:
            importlib.import_module(module)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{module}.".startswith(f"{error.name}."):
            raise  # of something that the module imports
        there = False
    if not there:
        raise ValueError(
            f"{where}: {identity!r} needs the module {module!r}, which cannot be imported; "
            "ids are 'family.name' inside fpatch and 'module:name' elsewhere: run from the folder of the "
            "module, or put that into PYTHONPATH"
        )
    value = _REGISTRY.get(identity)
    if not isinstance(value, kind):
        known = [name for name, other in _REGISTRY.items() if isinstance(other, kind)]
        hint = nearest(identity, known)
        if ":" in identity:
            hint = (
                f"{nearest(identity, [name for name in known if name.startswith(f'{module}:')])}; "
                "fpatch.define and define_loader make what can be found, in a module that can be imported: "
                "no plain function can, and nothing that a script defines"
            )
        raise ValueError(f"{where}: no {kind.__name__.lower()} {identity!r}; {hint}")
    return value
