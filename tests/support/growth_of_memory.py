"""Print how many bytes an evaluation, and then its replay, grows by with each row; for a fresh process."""

import tempfile
from dataclasses import dataclass

import torch

from fpatch import evaluate, keep_freed_memory, metrics, random, replay
from fpatch.core.types import Params, Sample, Values
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.conditions import NONE, PATCH, make_conditions
from fpatch.graph.pipeline import Pipeline
from fpatch.graph.stage import define, deterministic

SIDE, ROWS = 128, 320
IMAGE = 3 * SIDE * SIDE * 4
"""Bytes of an image of floats."""


@dataclass(frozen=True)
class Twenty:
    """A victim that finds every object twenty times, for metrics that gather detections."""


def apply(config: Twenty, patch_params: Params, sample: Sample, values: Values) -> Values:
    boxes = values["boxes"].repeat(1, 20, 1)
    scores = values["image"].mean((1, 2, 3))[:, None].expand(-1, boxes.shape[1])
    valid = torch.ones_like(scores, dtype=torch.bool)
    final = {"boxes": boxes, "scores": scores, "labels": torch.zeros_like(scores).long(), "valid": valid}
    return {"detections": {"final": final}}


twenty = define(
    "twenty", Twenty, deterministic, apply, reads=("image", "boxes"), writes=("detections",),
    gives=("detections/final",),
)  # fmt: skip


def make_pipeline(test: Pipeline) -> Pipeline:
    """Replace the victim of the tiny study by one whose detections are counted and gathered."""
    hits = {"hit": metrics.object_hit(), "precision": metrics.mean_average_precision()}
    return test.without("victim", "hit") | {"victim": twenty(), **hits}


def main() -> None:
    """Measure the last three quarters of the rows, after which the first quarter has warmed up."""
    torch.set_num_threads(1)
    keep_freed_memory()  # as the command line does
    held: dict[int, int] = {}

    def look(done: int, total: int) -> None:
        with open("/proc/self/status", encoding="utf-8") as file:
            held[done] = 1024 * int(next(line for line in file if line.startswith("VmRSS")).split()[1])

    def grown() -> float:
        return (held[ROWS] - held[ROWS // 4]) / (ROWS - ROWS // 4)

    with tempfile.TemporaryDirectory() as folder:
        study = tiny_study(folder, {"data.size": [SIDE, SIDE]})
        test, scenes = make_pipeline(study.pipeline.at("test")), study.data.open().split("test")
        made = make_conditions(test, test.init(random.key(0)), random.key(1))
        shown = {c: made[c] for c in (PATCH, NONE)}
        result = evaluate(
            test, {}, scenes, random.key(2), num_draws=ROWS // len(scenes), conditions=shown, progress=look
        )
        print(grown())
        replay(test, shown, scenes, result.table, progress=look)
        print(grown())


if __name__ == "__main__":
    main()
