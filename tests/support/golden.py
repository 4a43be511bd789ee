"""Digests of what every case draws and writes, and of a small study. A change of one is a change for users:
name it in the changelog, under Numerics, then run `python tests/golden.py`.

`golden.json` holds a digest, or the reason why another processor may find other last bits. The latter are not
compared with the file but with one another, within one process; see `test_golden.py`.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import torch
from cases import CASES, Case
from study_fixture import make_study
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from fpatch import random
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.samples import to_columns
from fpatch.runs.evaluating import evaluate_run
from fpatch.runs.folder import Run
from fpatch.runs.grid import evaluate_grid_run
from fpatch.runs.naming import grid_name
from fpatch.runs.training import resume, train
from fpatch.study.config import load_study

FILE = Path(__file__).with_suffix(".json")

PROCESSOR = {
    "fused multiply-add": (
        "grid_sampler_2d",
        "linspace",
        "upsample_bilinear2d",
        "_upsample_bicubic2d_aa",
        "_upsample_bilinear2d_aa",
    ),
    "functions of vector libraries": (
        *("atan2", "cos", "erf", "erfinv", "exp", "exp2", "expm1", "log", "log1p", "logsumexp", "normal_"),
        *("pow", "randn", "sigmoid", "silu", "sin", "_softmax", "_log_softmax", "softplus", "tan", "tanh"),
    ),
    "order of sums": ("cumsum", "linalg_vector_norm", "mean", "prod", "sum", "var"),
    "products of matrices": ("addmm", "baddbmm", "bmm", "linalg_inv_ex", "mm"),
    "convolutions": ("avg_pool2d", "convolution", "convolution_overrideable", "mkldnn_convolution"),
    "Fourier transforms": ("_fft_c2c", "_fft_c2r", "_fft_r2c"),
}
"""Operations of torch whose last bits depend on the processor, by the reason."""
ANSWERS = "what it reads was answered by a network"
KORNIA = "its arithmetic is that of the installed kornia"

STEPS = 20
GRID: dict[str, list[float]] = {"camera/exposure/stops": [-0.2, 0.1], "affine/angle_deg": [-3.0, 0.0, 2.0]}
GRID_TABLE = grid_name("test", "best", GRID)
GIVEN = ("image_id", "draw", "sample/", "grid/")
"""Beginnings of the columns that hold what was drawn or asked for, and nothing that was computed."""


def digest(tree: Any) -> str:
    """Of names, types, shapes and bits of all values; every NaN is the same one."""
    found = hashlib.sha256()
    for name, array in _arrays(tree):
        if array.dtype.kind == "f":
            array = np.where(np.isnan(array), array.dtype.type(np.nan), array)
        found.update(f"{name} {array.dtype} {array.shape}".encode() + array.tobytes())
    return found.hexdigest()


def _arrays(tree: Any, name: str = "") -> Iterator[tuple[str, np.ndarray]]:
    if isinstance(tree, Mapping):
        for key in sorted(tree):
            yield from _arrays(tree[key], f"{name}/{key}")
    else:
        array = tree.detach().numpy() if isinstance(tree, Tensor) else np.asarray(tree)
        yield name, array.astype(str) if array.dtype.kind == "O" else array


def digest_draws(case: Case) -> str:
    found = hashlib.sha256()
    for name, column in sorted(to_columns(case.subject.sample(random.key(0), case.batch)).items()):
        found.update(f"{name} {column.dtype} {column.shape}".encode() + column.tobytes())
    return found.hexdigest()


def digest_written(case: Case) -> str:
    """Of every value that a case writes, its patches included."""
    found = case.subject.apply(case.params, case.subject.sample(random.key(0), case.batch), case.batch)
    if isinstance(case.subject, Pipeline):
        names = {name for n in case.subject.values() for name in n.writes.values()}
    else:
        names = set(case.subject.definition.writes)
    return digest({name: found[name] for name in names & set(found)})


class Operations(TorchDispatchMode):
    """Notes the names of torch's operations that are called."""

    def __init__(self) -> None:
        super().__init__()
        self.names: set[str] = set()

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        self.names.add(operation.overloadpacket.__name__)
        return operation(*args, **(kwargs or {}))


def why_it_depends(case: Case) -> str | None:
    """Why another processor may find other last bits in what a case writes; None if it does not."""
    if any(s.definition.name == "compose.augmentation" for s in case.stages):
        return KORNIA
    if "detections" in case.batch:
        return ANSWERS
    with Operations() as called:
        digest_written(case)
    reasons = [why for why, names in PROCESSOR.items() if called.names & set(names)]
    return f"depends on the processor: {', '.join(reasons)}" if reasons else None


def all_draws() -> dict[str, str]:
    return {
        name: digest_draws(case)
        for name, case in CASES.items()
        if any(s.definition.fields for s in case.stages)
    }


class Interrupted(Exception):
    """By whoever watches a training."""


def train_study(folder: Path, stop_at: int | None = None, micro_batch: int | None = None) -> Run:
    """Train the tiny study; one that is stopped is then resumed, from the checkpoint before."""

    def watch(task: str, done: int, total: int, note: str) -> None:
        if task == "training" and done == stop_at:
            raise Interrupted

    path = make_study(folder, num_steps=STEPS, checkpoint_every=5, every=10)
    try:
        return train(load_study(path, {"train.micro_batch": micro_batch}), watch)
    except Interrupted:
        (stopped,) = (folder / "runs").iterdir()
        return resume(stopped)


def measure(run: Run) -> dict[str, dict[str, np.ndarray]]:
    """The tables that `fpatch evaluate` and `fpatch grid` make."""
    evaluate_run(run.folder)
    evaluate_grid_run(run.folder, GRID)
    tables = {"evaluated": run.load_table("test"), "grid": run.load_table(GRID_TABLE)}
    return {name: {c: v for c, v in table.items() if c != "path"} for name, table in tables.items()}


def digest_tables(tables: Mapping[str, Mapping[str, np.ndarray]]) -> dict[str, str]:
    """Of what does not depend on the processor: which columns there are, and what was drawn or asked for."""
    found = {}
    for name, table in tables.items():
        kinds = {c: np.array([str(v.dtype), str(len(v))]) for c, v in table.items()}
        found[f"{name}: names, types and lengths of all columns"] = digest(kinds)
        given = {c: v for c, v in table.items() if c.startswith(GIVEN)}
        found[f"{name}: columns that were drawn or asked for"] = digest(given)
    return found


def digest_all() -> dict[str, dict[str, str]]:
    torch.set_num_threads(1)
    with TemporaryDirectory() as folder:
        study = digest_tables(measure(train_study(Path(folder))))
    study["patch, and all other columns"] = f"depends on the processor: {', '.join(PROCESSOR)}"
    written = {name: why_it_depends(case) or digest_written(case) for name, case in CASES.items()}
    return {"draws": all_draws(), "written": written, "study": study}


if __name__ == "__main__":
    FILE.write_text(json.dumps(digest_all(), indent=2) + "\n")
