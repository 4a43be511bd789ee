"""Who may import whom, as `docs/design.md` says, and the form of a stage file."""

import ast
import dataclasses
import importlib
import inspect
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cases import CASES

import fpatch
from fpatch.core import registry
from fpatch.graph.stage import Definition, deterministic

ROOT = Path(fpatch.__file__).parent
DESIGN = (ROOT.parent / "docs/design.md").read_text().partition("## Who may import whom")[2]
WINGS = dict(re.findall(r"^- `(\w+)`: (.+)$", DESIGN, flags=re.M))
"""Sentences by wing; a wing imports only from wings above it."""
ORDER = {wing: i for i, wing in enumerate([*WINGS, "__main__"])}
FAMILIES = ("create", "implant", "compose", "infer", "defend", "losses", "metrics", "viz")
HEAVY = {
    *("captum", "jax", "matplotlib", "mlflow", "onnx", "onnxruntime", "optuna", "pandas", "plotly", "ray"),
    *(
        "pytorch_metric_learning",
        "scipy",
        "sklearn",
        "tensorboard",
        "timm",
        "torchmetrics",
        "transformers",
        "ultralytics",
        "umap",
    ),
}
MODE_FLAGS = {"training", "train", "evaluate", "phase", "control", "is_control"}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")

for family in FAMILIES:
    importlib.import_module(f"fpatch.{family}")
STAGES = {
    name: value
    for name, value in registry._REGISTRY.items()
    if isinstance(value, Definition) and value.module.startswith("fpatch.")
}
STAGE_MODULES = {definition.module for definition in STAGES.values()}


def parse(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


def module_of(file: Path) -> str:
    return ".".join(["fpatch", *file.with_suffix("").parts]).removesuffix(".__init__")


MODULES = {module_of(file) for file in FILES}


def imported(tree: ast.AST) -> set[str]:
    """Full names of what is imported anywhere below."""
    names: set[str] = set()
    for found in ast.walk(tree):
        if isinstance(found, ast.Import):
            names |= {alias.name for alias in found.names}
        elif isinstance(found, ast.ImportFrom):
            assert found.level == 0, "imports are absolute"
            names |= {f"{found.module}.{alias.name}" for alias in found.names}
    return names


def imported_on_import(tree: ast.Module) -> set[str]:
    """The same for statements that run when the module is imported."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef)
    for found in ast.walk(tree):
        for name, value in ast.iter_fields(found):
            if isinstance(value, list):
                setattr(found, name, [v for v in value if not isinstance(v, functions)])
        if isinstance(found, ast.If) and ast.unparse(found.test) == "TYPE_CHECKING":
            found.body = []
    return imported(tree)


def module_in(name: str) -> str:
    """The module that an imported name is, or is in."""
    return name if name in MODULES else name.rpartition(".")[0]


def find_wrong_imports(file: Path, names: set[str]) -> Iterator[str]:
    """A sentence for each import that the order of the wings forbids."""
    wing = file.parts[0].removesuffix(".py")
    if wing not in ORDER:
        yield f"{file} is in no wing"
        return
    for name in sorted(name for name in names if name == "fpatch" or name.startswith("fpatch.")):
        other = name.split(".")[1] if "." in name else name
        private = [part for part in name.split(".") if part.startswith("_") and part != "__version__"]
        if other not in ORDER:
            yield f"{file} imports {name}, which is in no wing"
        elif other == wing:
            if file.name != "__init__.py" and module_in(name) in STAGE_MODULES:
                yield f"{file} imports its sibling {name}"
        elif ORDER[other] > ORDER[wing]:
            yield f"{file} imports {name}, which is not above it"
        elif private:
            yield f"{file} imports {name}, and {private[0]} is private to another wing"


def find_circles(imports: dict[str, set[str]]) -> Iterator[str]:
    """A sentence for each module that imports itself by way of others, late imports included."""
    for start in imports:
        seen: set[str] = set()
        reached = set(imports[start])
        while reached - seen:
            seen |= reached
            reached = {name for module in reached for name in imports.get(module, ())}
        if start in seen:
            yield f"{start} imports itself by way of {', '.join(sorted(imports[start] & seen))}"


def test_a_wing_imports_only_from_wings_above():
    wrong = [sentence for file in FILES for sentence in find_wrong_imports(file, imported(parse(file)))]
    assert not wrong, "\n".join(wrong)


def test_no_module_imports_itself():
    imports = {
        module_of(file): {module_in(name) for name in imported(parse(file)) if name.startswith("fpatch.")}
        - {module_of(file)}
        for file in FILES
    }
    assert not list(find_circles(imports))
    assert list(find_circles({"a": {"b"}, "b": {"c"}, "c": {"b"}})) == [
        "b imports itself by way of c",
        "c imports itself by way of b",
    ]


def test_every_wing_says_what_it_is_as_the_design_does():
    folders = {path.name for path in ROOT.iterdir() if (path / "__init__.py").is_file()}
    assert folders == set(WINGS)
    for wing, sentence in WINGS.items():
        doc = ast.get_docstring(parse(Path(wing, "__init__.py")))
        assert doc is not None
        assert doc.partition("\n")[0] == sentence, wing


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("compose/camera/blur.py", "from fpatch.compose.color.hue import hue"),
        ("compose/camera/blur.py", "from fpatch import losses"),
        ("random/draws.py", "import fpatch.graph.stage"),
        ("graph/stage.py", "from fpatch.legacy import old"),
        ("graph/stage.py", "from fpatch import __version__"),
        ("runs/folder.py", "from fpatch.create._shapes import check_shapes"),
        ("stage.py", "import json"),
    ],
)
def test_a_wrong_import_is_refused(file, line):
    assert list(find_wrong_imports(Path(file), imported(ast.parse(line))))


def test_heavy_packages_are_imported_where_they_are_needed():
    """Inside functions; or in a module that is itself imported inside functions only."""
    on_import = {file: imported_on_import(parse(file)) for file in FILES}
    early = {module_in(name) for names in on_import.values() for name in names}
    wrong = [
        file
        for file, names in on_import.items()
        if module_of(file) in early and {name.split(".")[0] for name in names} & HEAVY
    ]
    assert not wrong


@pytest.mark.parametrize(
    ("before", "modules", "late"),
    [
        ("sys", "fpatch fpatch.cli.main", ("torch", "numpy")),
        (
            "torch",
            "fpatch.runs.training fpatch.runs.replaying fpatch.doctor.examine fpatch.compose fpatch.infer",
            ("torchvision", "torch._dynamo"),
        ),
    ],
    ids=["help", "study"],
)
def test_what_takes_a_second_is_imported_when_it_is_needed(before, modules, late):
    code = f"import sys, {before}\nbefore = set(sys.modules)\nimport {', '.join(modules.split())}\n"
    code += "print(*(set(sys.modules) - before))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "fpatch" in done.stdout.split()
    assert set(done.stdout.split()) & set(late) == set()


def test_imports_in_functions_alone_are_late():
    code = """
import os
class A:
    import json
    def f(self):
        import ray
try:
    import umap
finally:
    pass
"""
    assert imported_on_import(ast.parse(code)) == {"os", "json", "umap"}


def find_wrong_stages(stage: Definition[...]) -> Iterator[str]:
    """What keeps a stage from being one file: a config, a typed sample, `sample`, `apply`, one line."""
    module = importlib.import_module(stage.module)
    family, name = stage.name.split(".")
    parts = stage.module.split(".")
    if parts[1] != family or parts[-1] != name:
        yield f"{stage.name} must be in the file {name}.py of its family, and is in {stage.module}"
    if [d for d in STAGES.values() if d.module == stage.module] != [stage]:
        yield f"{stage.module} defines more than one stage"
    if getattr(module, name, None) is not stage or module.apply is not stage.apply:
        yield f"{stage.module} must define {name}, with a function `apply`"
    if stage.config.__module__ != stage.module or not dataclasses.is_dataclass(stage.config):
        yield f"{stage.module} must define the config of its stage, a dataclass"
    if not stage.config.__doc__:
        yield f"{stage.module}: the config must have a docstring"
    if stage.sample is not deterministic and (
        module.sample is not stage.sample
        or inspect.signature(stage.sample).return_annotation.__module__ != stage.module
    ):
        yield f"{stage.module} must define `sample`, and what it draws"
    tree = ast.parse(inspect.getsource(module))
    if not (
        isinstance(tree.body[-1], ast.Assign)
        and ast.unparse(tree.body[-1]).startswith(f"{name} = define('{name}', ")
    ):
        yield f"{stage.module} must end with {name} = define({name!r}, ...)"
    arguments = {found.arg for found in ast.walk(tree) if isinstance(found, ast.arg)}
    settings = {f.name for f in dataclasses.fields(stage.config)}  # type: ignore[arg-type]
    if flags := (arguments | settings) & MODE_FLAGS:
        yield f"{stage.module}: a stage has no mode flag, got {sorted(flags)}"


def test_a_stage_is_one_file_of_four_parts_without_mode_flags():
    wrong = [sentence for stage in STAGES.values() for sentence in find_wrong_stages(stage)]
    assert not wrong, "\n".join(wrong)


def test_a_stage_of_another_form_is_refused():
    exposure, hue = STAGES["compose.exposure"], STAGES["compose.hue"]
    assert list(find_wrong_stages(dataclasses.replace(exposure, name="compose.gamma")))
    assert list(find_wrong_stages(dataclasses.replace(exposure, module=hue.module)))


def test_every_stage_has_a_case():
    assert set(STAGES) - {s.definition.name for case in CASES.values() for s in case.stages} == set()
    assert len(STAGES) >= 22
