"""The digests of the user's modules are those of the code that runs, wherever and however it is imported."""

import importlib
import os
import py_compile
import sys
import zipfile
from pathlib import Path

import pytest

from fpatch.core.files import digest
from fpatch.core.sources import edited_modules, module_digests


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder that is searched for modules; what was imported from it is forgotten."""
    monkeypatch.syspath_prepend(str(tmp_path))
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        del sys.modules[name]


def write(folder: Path, **modules: str) -> None:
    for name, source in modules.items():
        path = folder / f"{name.replace('__in__', '/')}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(source)
    importlib.invalidate_caches()


def changed(before: dict[str, str], after: dict[str, str]) -> set[str]:
    return {name for name in before.keys() | after.keys() if before.get(name) != after.get(name)}


USES = "import importlib\n{0}\ndef use():\n    pass\n"


@pytest.mark.parametrize(
    "imports",
    [
        "import whole.part", "from whole import part", "from whole.part import GAIN",
        "importlib.import_module('whole.part')", "__import__('whole.part')",
    ],
)  # fmt: skip
def test_a_package_counts_with_its_modules(folder, imports):
    write(folder, user=USES.format(imports), whole__in____init__="", whole__in__part="GAIN = 1\n")
    before = module_digests(["user"])
    assert set(before) == {"user", "whole", "whole.part"}
    write(folder, whole__in____init__="import builtins\n")
    assert changed(before, module_digests(["user"])) == {"whole"}
    assert set(module_digests(["whole.part"])) == {"whole", "whole.part"}


def test_imports_within_a_package_are_followed(folder):
    write(
        folder, inner__in____init__="from .one import GAIN\n", inner__in__three="GAIN = 1\n",
        inner__in__one="from importlib import import_module\nfrom . import two\n"
        "import_module('.three', 'inner')\nGAIN = 1\n",
        inner__in__two="",
    )  # fmt: skip
    assert set(module_digests(["inner"])) == {"inner", "inner.one", "inner.two", "inner.three"}


def test_nothing_is_imported_to_find_a_source(folder):
    """A script that a function would import is not run, nor is a package that cannot be imported."""
    write(
        folder,
        user="def later():\n    from script import main\n    import faulty.part\n",
        script="raise SystemError('it ran')\n",
        faulty__in____init__="raise SystemError('it ran')\n",
        faulty__in__part="",
    )
    assert set(module_digests(["user"])) == {"user", "script", "faulty", "faulty.part"}
    assert "script" not in sys.modules


def test_a_module_without_a_source_and_one_in_an_archive_count(folder, monkeypatch):
    write(folder, plain="GAIN = 1\n")
    py_compile.compile(str(folder / "plain.py"), cfile=str(folder / "compiled.pyc"))
    with zipfile.ZipFile(folder / "modules.zip", "w") as archive:
        archive.writestr("zipped.py", "import plain\n")
    monkeypatch.syspath_prepend(str(folder / "modules.zip"))
    found = module_digests(["compiled", "zipped"])
    assert found["compiled"] == digest((folder / "compiled.pyc").read_bytes())[:32]
    assert found["zipped"] == digest(b"import plain\n")[:32]
    assert set(found) == {"compiled", "zipped", "plain"}


def test_a_file_that_is_edited_after_its_import_is_not_the_source_that_runs(folder):
    write(
        folder,
        theirs="from fpatch import define_loader\nimport gain\ndef load():\n    return gain.GAIN\n"
        "gained = define_loader('gained', load)\n",
        gain="GAIN = 1\n",
    )
    importlib.import_module("theirs")
    before = module_digests(["theirs"])
    assert before["gain"] == digest(b"GAIN = 1\n")[:32]
    write(folder, gain="GAIN = 20\n")
    assert module_digests(["theirs"]) == before
    assert edited_modules(["theirs"]) == ["gain"]
    importlib.reload(sys.modules["gain"])
    assert module_digests(["theirs"])["gain"] == digest(b"GAIN = 20\n")[:32]
    assert edited_modules(["theirs"]) == []


@pytest.mark.parametrize("mode", ["TIMESTAMP", "UNCHECKED_HASH"])
def test_compiled_code_that_runs_in_place_of_a_source_counts(folder, mode):
    """A source of equal size that is written in the same second does not run; Python takes the older code."""
    write(folder, quick="GAIN = 1\n")
    path = folder / "quick.py"
    state = path.stat()
    py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode[mode])
    write(folder, quick="GAIN = 2\n")
    os.utime(path, ns=(state.st_atime_ns, state.st_mtime_ns))
    assert importlib.import_module("quick").GAIN == 1
    assert module_digests(["quick"])["quick"] != digest(b"GAIN = 2\n")[:32]
    py_compile.compile(str(path), invalidation_mode=py_compile.PycInvalidationMode[mode])
    assert module_digests(["quick"])["quick"] == digest(b"GAIN = 2\n")[:32]
