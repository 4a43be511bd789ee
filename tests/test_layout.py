"""Who may import whom, and the form of a stage file (DESIGN, sections 1 and 8)."""

import ast
import dataclasses
import importlib
import inspect
import subprocess
import sys
from pathlib import Path

import pytest
from cases import CASES

import fpatch
from fpatch import registry
from fpatch.stage import Definition, deterministic

ROOT = Path(fpatch.__file__).parent
ROWS = """
    types
    checks memory parallel progress
    tree device interpolation products
    geometry color spectrum registry schema columns threefry
    random region patches detections
    resource
    stage
    nodes
    wiring
    graph
    create implant compose infer
    losses metrics
    schedules
    descent
    objective optim data
    loop
    population conditions execution diagnosis
    results
    evaluation
    rates rerun
    log
    analysis viz export
    runs
    config sections
    study
    parts reopen run_log pictures
    run_evaluation
    rehearsal run_replay
    training symptoms
    causes
    doctor stratified transfer
    tune
    launch console
    demo
    commands
    cli
    __main__
"""
"""DESIGN section 8, with a line more wherever units of one row use each other."""
ROW = {unit: i for i, row in enumerate(ROWS.strip().splitlines()) for unit in row.split()}
FAMILIES = ("create", "implant", "compose", "infer", "losses", "metrics")
HEAVY = {
    *("captum", "jax", "matplotlib", "mlflow", "onnx", "onnxruntime", "optuna", "pandas", "plotly", "ray"),
    *("scipy", "sklearn", "tensorboard", "timm", "torchmetrics", "transformers", "ultralytics", "umap"),
}
FILES = sorted(path.relative_to(ROOT) for path in ROOT.rglob("*.py") if path != ROOT / "__init__.py")

for family in FAMILIES:
    importlib.import_module(f"fpatch.{family}")
STAGES = {
    name: value
    for name, value in registry._REGISTRY.items()
    if isinstance(value, Definition) and value.module.startswith("fpatch.")
}


def parse(file: Path) -> ast.Module:
    return ast.parse((ROOT / file).read_text())


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


def refuse_imports(unit: str, file: Path, names: set[str]) -> None:
    stage_modules = {d.module for d in STAGES.values()}
    for name in sorted(name for name in names if name.startswith("fpatch.") and name != "fpatch.__version__"):
        other = name.split(".")[1]
        assert other in ROW, f"{file} imports {name}, which is in no row"
        if other == unit:
            sibling = ".".join(name.split(".")[:3])
            assert file.name == "__init__.py" or sibling not in stage_modules, (
                f"{file} imports its sibling {name}"
            )
        else:
            assert ROW[other] < ROW[unit], f"{file} imports {name}, which is not above it"


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_unit_imports_only_from_rows_above(file):
    unit = file.parts[0].removesuffix(".py")
    assert unit in ROW, f"{file} is in no row"
    refuse_imports(unit, file, imported(parse(file)))


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("compose/blur.py", "from fpatch.compose.hue import hue"),
        ("compose/blur.py", "from fpatch import losses"),
        ("random.py", "import fpatch.stage"),
        ("stage.py", "from fpatch.legacy import old"),
    ],
)
def test_a_wrong_import_is_refused(file, line):
    with pytest.raises(AssertionError, match="imports"):
        refuse_imports(Path(file).parts[0].removesuffix(".py"), Path(file), imported(ast.parse(line)))


def test_heavy_packages_are_imported_where_they_are_needed():
    """Inside functions; or in a module that is itself imported inside functions only."""
    on_import = {file: imported_on_import(parse(file)) for file in FILES}
    early = {".".join(name.split(".")[:3]) for names in on_import.values() for name in names}
    for file, names in on_import.items():
        module = ".".join(["fpatch", *file.with_suffix("").parts])
        assert module not in early or not {name.split(".")[0] for name in names} & HEAVY, file


@pytest.mark.parametrize(
    ("before", "modules", "late"),
    [
        ("sys", "fpatch fpatch.cli", ("torch", "numpy")),
        (
            "torch",
            "fpatch.training fpatch.run_replay fpatch.doctor fpatch.compose fpatch.infer",
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


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_stage_is_one_file_of_four_parts(stage):
    """A frozen config, a typed sample, `sample`, `apply`, and the line that makes the factory."""
    module = importlib.import_module(stage.module)
    name = stage.name.partition(".")[2]
    assert stage.module == f"fpatch.{stage.name}"
    assert [d for d in STAGES.values() if d.module == stage.module] == [stage]
    assert getattr(module, name) is stage
    assert stage.config.__module__ == stage.module
    assert dataclasses.is_dataclass(stage.config)
    assert stage.config.__doc__
    assert module.apply is stage.apply
    if stage.sample is not deterministic:
        assert module.sample is stage.sample
        assert inspect.signature(stage.sample).return_annotation.__module__ == stage.module
    last = ast.parse(inspect.getsource(module)).body[-1]
    assert isinstance(last, ast.Assign)
    assert ast.unparse(last).startswith(f"{name} = define('{name}', ")


@pytest.mark.parametrize("stage", STAGES.values(), ids=STAGES)
def test_a_stage_has_no_mode_flags(stage):
    tree = ast.parse(inspect.getsource(importlib.import_module(stage.module)))
    arguments = {found.arg for found in ast.walk(tree) if isinstance(found, ast.arg)}
    settings = {f.name for f in dataclasses.fields(stage.config)}
    assert not (arguments | settings) & {"training", "train", "evaluate", "phase", "control", "is_control"}


def test_every_stage_has_a_case():
    assert set(STAGES) - {s.definition.name for case in CASES.values() for s in case.stages} == set()
    assert len(STAGES) >= 22
