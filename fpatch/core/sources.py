"""The source files of the user's modules: those behind stages and loaders, and those that they import.

The digest of a module is that of the source that runs. A file may be edited after its import, as in a
notebook, so the sources are noted while a module that registers something is imported.
"""

import ast
import importlib.util
import marshal
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from contextlib import suppress
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path

from fpatch.core.files import digest

_LIBRARY = Path(__file__).parents[1]
_NOTED: dict[str, tuple[ModuleSpec, str]] = {}
"""The digest of a source as it was imported, by the name of its module; a reload makes another spec."""


def note_sources(module: str) -> None:
    """Note the digests of a module, and of those that it has imported, as they are imported.

    Example:
        >>> from fpatch.core.sources import edited_modules, note_sources
        >>> note_sources("my_stages")  # not imported: nothing to note
        >>> edited_modules(["my_stages"])
        []
    """
    if module.partition(".")[0] == "fpatch" or _is_noted(module):
        return
    for name, spec, content in _own_modules([module], loaded=True):
        if not _is_noted(name):
            _NOTED[name] = (spec, _digest(spec, content, name))


def module_digests(modules: Iterable[str]) -> dict[str, str]:
    """Return the digests of modules and of the modules of the user that they import, by name.

    Nothing is imported. Packages in which modules lie count, and so do modules without a source.

    Example:
        >>> from fpatch.core.sources import module_digests
        >>> module_digests(["json", "no_such_module"]).keys() >= {"json", "json.decoder"}
        True
    """
    found = {n: _NOTED[n][1] if _is_noted(n) else _digest(s, c, n) for n, s, c in _own_modules(modules)}
    return dict(sorted(found.items()))


def edited_modules(modules: Iterable[str]) -> list[str]:
    """Return the names of the modules whose files were edited after their import."""
    found = ((n, _digest(s, c, n)) for n, s, c in _own_modules(modules) if _is_noted(n))
    return sorted(name for name, now in found if _NOTED[name][1] != now)


def _is_noted(name: str) -> bool:
    return name in _NOTED and getattr(sys.modules.get(name), "__spec__", None) is _NOTED[name][0]


def _own_modules(modules: Iterable[str], loaded: bool = False) -> Iterator[tuple[str, ModuleSpec, bytes]]:
    """Yield modules, their packages and the user's modules that they import, of all or of those loaded."""
    waiting = list(modules)
    tops = {name.partition(".")[0] for name in waiting}
    seen: set[str] = set()
    while waiting:
        name = waiting.pop()
        if not name or name in seen or name.partition(".")[0] == "fpatch":
            continue
        seen.add(name)
        spec = _find_spec(name)
        if spec is None or (loaded and name not in sys.modules):
            continue
        waiting.append(name.rpartition(".")[0])
        content = _content(spec)
        if content is None or not (_is_own(Path(spec.origin or "")) or name.partition(".")[0] in tops):
            continue
        yield name, spec, content
        if (spec.origin or "").endswith(".py"):
            is_package = spec.submodule_search_locations is not None
            waiting += _imported(content, name if is_package else name.rpartition(".")[0])


def _find_spec(name: str) -> ModuleSpec | None:
    """Find a module without importing a package on the way to it."""
    if (module := sys.modules.get(name)) is not None:
        return getattr(module, "__spec__", None)
    package = name.rpartition(".")[0]
    if not package:
        with suppress(ImportError, ValueError, AttributeError):
            return importlib.util.find_spec(name)
        return None
    above = _find_spec(package)
    places = None if above is None else above.submodule_search_locations
    return None if places is None else PathFinder.find_spec(name, list(places))


def _content(spec: ModuleSpec) -> bytes | None:
    """Return the content of the file of a module, which may lie in an archive."""
    if not spec.has_location or spec.origin is None:
        return None
    if (path := Path(spec.origin)).is_file():
        return path.read_bytes()
    with suppress(OSError):
        return getattr(spec.loader, "get_data", lambda place: None)(spec.origin)
    return None


def _digest(spec: ModuleSpec, content: bytes, name: str) -> str:
    compiled = _other_code(spec, content) if name in sys.modules else b""
    return digest(content + compiled)[:32]


def _other_code(spec: ModuleSpec, source: bytes) -> bytes:
    """Return the compiled code that Python runs in place of a source that it is not made from.

    Python takes the code for that of a source of equal size that was written in the same second.
    """
    path, cached = Path(spec.origin or ""), Path(spec.cached or "")
    if path.suffix != ".py" or not path.is_file() or not cached.is_file():
        return b""
    data, state = cached.read_bytes(), path.stat()
    head = int(state.st_mtime) & 0xFFFFFFFF, state.st_size & 0xFFFFFFFF
    flags, *facts = (int.from_bytes(data[i : i + 4], "little") for i in (4, 8, 12))
    is_used = flags == 1 or (flags == 0 and tuple(facts) == head)
    if data[:4] != importlib.util.MAGIC_NUMBER or not is_used:
        return b""
    try:
        is_its_own = marshal.loads(data[16:]) == compile(source, str(path), "exec", dont_inherit=True)
    except (ValueError, EOFError, TypeError, SyntaxError):
        return b""
    return b"" if is_its_own else data[16:]


def _is_own(path: Path) -> bool:
    """Return whether a file is the user's: neither installed, nor Python's or this library's."""
    installed = {sysconfig.get_path(kind) for kind in ("stdlib", "platstdlib", "purelib", "platlib")}
    return not any(path.is_relative_to(folder) for folder in (*installed, _LIBRARY))


def _imported(source: bytes, package: str) -> list[str]:
    """Return the names of the modules that a source file of a package imports."""
    try:
        tree = ast.parse(source)
    except (SyntaxError, ValueError):
        return []
    names: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = _absolute("." * node.level + (node.module or ""), package)
            names += [base, *(f"{base}.{alias.name}" for alias in node.names)]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant):
            called = getattr(node.func, "attr", getattr(node.func, "id", None))
            if called in ("import_module", "__import__") and isinstance(node.args[0].value, str):
                names.append(_absolute(node.args[0].value, package))
    return names


def _absolute(name: str, package: str) -> str:
    """Return the name of a module that may be given relative to a package."""
    level = len(name) - len(name.lstrip("."))
    if not level:
        return name
    parts = package.split(".") if package else []
    return ".".join([*parts[: len(parts) - level + 1], *filter(None, [name[level:]])])
