"""What the package declares is what it imports, and what the lowest pins prove."""

import ast
import importlib.metadata
import re
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = next(p for p in Path(__file__).resolve().parents if (p / "pyproject.toml").is_file())
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
EXTRAS = PROJECT["optional-dependencies"]
DISTRIBUTIONS = {"cv2": "opencv-python", "PIL": "pillow", "sklearn": "scikit-learn", "yaml": "pyyaml"}
"""Of modules whose package has another name."""


def split(requirement: str) -> tuple[str, str]:
    """The name and the lowest version; no version for an extra of our own."""
    found = re.fullmatch(r"([\w.-]+)(?:\[[\w,]+\])?(?:>=([\d.]+))?(?:,<\d+)?", requirement)
    assert found, f"{requirement}: write NAME>=LOWEST, so that the lowest version can be proved"
    return found[1].lower(), found[2] or ""


def expand(requirements: list[str]) -> Iterator[tuple[str, str]]:
    """Names and lowest versions, with those of the extras that are named."""
    for requirement in requirements:
        if of_ours := re.fullmatch(r"fpatch\[([\w,]+)\]", requirement):
            for extra in of_ours[1].split(","):
                yield from expand(EXTRAS[extra])
        else:
            yield split(requirement)


def imported(path: Path) -> set[str]:
    """Top-level modules that a file imports, by a statement or by a literal name."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and not node.level:
            found.add(node.module or "")
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module"):
            found |= {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
    return {name.partition(".")[0] for name in found} - {"fpatch", ""} - sys.stdlib_module_names


def test_every_import_is_declared():
    declared = {name for name, _ in expand(PROJECT["dependencies"])}
    declared |= {n for extra, asked in EXTRAS.items() if extra != "test" for n, _ in expand(asked)}
    paths = sorted((ROOT / "fpatch").rglob("*.py"))
    missing = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in paths
        for name in sorted(imported(path))
        if DISTRIBUTIONS.get(name, name).replace("_", "-").lower() not in declared
    ]
    assert len(paths) > 100
    assert not missing, f"declare them in pyproject.toml: {missing}"


def test_every_dependency_is_imported():
    """By name in the library, or by another of its dependencies on its behalf."""
    used = {DISTRIBUTIONS.get(n, n) for p in (ROOT / "fpatch").rglob("*.py") for n in imported(p)}
    used = {name.replace("_", "-").lower() for name in used}
    declared = {name for name, _ in expand(PROJECT["dependencies"])}
    declared |= {
        n for e, asked in EXTRAS.items() if e not in ("test", "docs", "victims") for n, _ in expand(asked)
    }
    on_behalf = {
        "faster-coco-eval",  # the backend of torchmetrics
        "submitit",  # cluster/slurm.py
        "ultralytics",
    }
    assert declared - used <= on_behalf


@pytest.mark.parametrize("extra", ["dependencies", *(e for e in EXTRAS if e != "docs")])
def test_every_lower_bound_is_pinned(extra):
    pins = dict(
        line.split("==")
        for line in (ROOT / "constraints-oldest.txt").read_text().splitlines()
        if line and not line.startswith("#")
    )
    asked = PROJECT["dependencies"] if extra == "dependencies" else EXTRAS[extra]
    for name, lowest in expand(asked):
        assert lowest, f"{name} has no lowest version"
        assert pins.get(name) == lowest, f"{name}>={lowest} is declared, {pins.get(name)} is pinned"


def test_nothing_else_is_pinned():
    lines = (ROOT / "constraints-oldest.txt").read_text().splitlines()
    pinned = {line.partition("==")[0] for line in lines if line and not line.startswith("#")}
    every = [PROJECT["dependencies"], *EXTRAS.values()]
    assert pinned <= {name for asked in every for name, _ in expand(asked)}


def test_versions_agree():
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text())
    assert citation["version"] == PROJECT["version"] == importlib.metadata.version("fpatch")
    assert citation["license"] == PROJECT["license"]


def test_what_runs_before_a_commit_is_what_lint_runs():
    hooks = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"][0]["hooks"]
    makefile = (ROOT / "Makefile").read_text()
    rules = re.search(r"^lint:.*\n((?:\t.*\n)+)", makefile, re.MULTILINE)
    assert rules
    tools = {line.split()[0].removeprefix("$(BIN)/") for line in rules[1].splitlines()}
    assert {hook["entry"].split()[0].removeprefix(".venv/bin/") for hook in hooks} == tools
    assert all(hook["language"] == "system" for hook in hooks)  # they need no network


def test_the_workflow_runs_every_supported_python():
    jobs = yaml.safe_load((ROOT / ".github" / "workflows" / "test.yml").read_text())["jobs"]
    supported = [c.split()[-1] for c in PROJECT["classifiers"] if re.search(r":: 3\.\d+$", c)]
    assert jobs["newest"]["strategy"]["matrix"]["python"] == supported
    assert PROJECT["requires-python"] == f">={supported[0]}"
    assert jobs["lowest"]["steps"][1]["with"]["python-version"] == supported[0]
    targets = {step["run"] for job in jobs.values() for step in job["steps"] if "run" in step}
    assert {"make test", "make test-oldest", "make docs"} <= targets
