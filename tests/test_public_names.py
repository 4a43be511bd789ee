"""What users may rely on: a change of this list is a change for them, and belongs in the changelog."""

import ast
import importlib
import inspect
import re
import resource
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from study_fixture import environment

import fpatch

ROOT = Path(fpatch.__file__).parents[1]
NAMES = {
    module: set(names.split())
    for module, names in tomllib.loads((ROOT / "docs/public-names.toml").read_text()).items()
}
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "SECURITY.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
SCRIPTS = sorted((ROOT / "experiments").glob("*.py"))
LEFT_OUT = (
    "docs/_build",
    "docs/reference/api",
    "docs/reference/stages/",
    "docs/reference/settings.md",
    "CHANGELOG.md",
)
"""Pages that are written from the code, and the past."""
IMPORTED = re.compile(r"^ *from (fpatch[\w.]*) import (\([^)]*\)|[^\n]+)", flags=re.M)
MENTIONED = re.compile(r"(?<![\w/.:@-])fpatch((?:\.[A-Za-z_]\w*)+)(?![\w/])")


def find_addresses(text: str) -> Iterator[str]:
    """Every `fpatch.x.y`, written out or imported."""
    for module, names in IMPORTED.findall(text):
        for name in re.findall(r"(\w+)(?: as \w+)?", re.sub(r"#.*", "", names)):
            yield f"{module}.{name}"
    for address in MENTIONED.findall(IMPORTED.sub("", text)):
        yield f"fpatch{address}"


def is_public(address: str) -> bool:
    """Whether an address is in the list: a module that has names there, a name, or what belongs to one."""
    if address in NAMES or any(module.startswith(f"{address}.") for module in NAMES):
        return True
    module = next(m for m in sorted(NAMES, key=len, reverse=True) if f"{address}.".startswith(f"{m}."))
    return address.removeprefix(f"{module}.").split(".")[0] in NAMES[module]


def find_strangers(path: Path) -> Iterator[str]:
    for address in find_addresses(path.read_text()):
        if not is_public(address):
            yield f"{path.relative_to(ROOT)}: {address}"


def test_pages_and_experiments_use_public_names_alone():
    read = [p for p in (*PAGES, *SCRIPTS) if not str(p.relative_to(ROOT)).startswith(LEFT_OUT)]
    wrong = [
        sentence for path in read if path.name.lower() != "changelog.md" for sentence in find_strangers(path)
    ]
    assert len(read) > 30
    assert not wrong, "declare them in docs/public-names.toml, or use others:\n" + "\n".join(wrong)


def test_other_names_are_seen():
    text = "from fpatch.graph.stage import Summary, brief  # both\nor `fpatch.compose.blurr`, `fpatch.fit`"
    assert [a for a in find_addresses(text) if not is_public(a)] == [
        "fpatch.graph.stage.brief",
        "fpatch.compose.blurr",
    ]


@pytest.mark.parametrize("module", NAMES)
def test_the_names_are_these(module):
    made = importlib.import_module(module)
    declared = getattr(made, "__all__", None)
    assert declared is None or set(declared) == NAMES[module]
    for name in NAMES[module]:
        value = getattr(made, name)
        is_ours = str(getattr(value, "__module__", "")).startswith("fpatch.")
        assert not is_ours or value.__doc__, name


def test_type_checkers_see_the_names_that_are_loaded_late():
    guarded = next(n for n in ast.parse(inspect.getsource(fpatch)).body if isinstance(n, ast.If))
    seen = {alias.name for n in guarded.body if isinstance(n, ast.ImportFrom) for alias in n.names}
    assert seen == set(fpatch.__all__) - {"__version__"}
    assert set(dir(fpatch)) >= seen


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="'fpatch' has no attribute 'patchify'"):
        _ = fpatch.patchify


def test_importing_it_imports_nothing_heavy():
    code = "import sys, fpatch; print({'torch', 'numpy', 'kornia', 'mlflow'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], env=environment(), capture_output=True, text=True)
    assert done.stdout == "set()\n", done.stderr


@pytest.mark.parametrize("words", [["--help"], ["train", "--help"], ["--version"]])
def test_help_answers_at_once(words):
    command = [sys.executable, "-m", "fpatch", *words]
    seconds = []  # of the processor, which others may use too
    for _ in range(3):
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        seconds.append(after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime)
    assert min(seconds) < 1.0
    assert "fpatch" in done.stdout
