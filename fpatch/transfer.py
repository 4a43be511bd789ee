"""Does a patch fool victims that it was not trained on? Every patch against every victim."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal, NamedTuple

from torch import Tensor

from fpatch import random
from fpatch.conditions import NONE, PATCH, Patches, check_control_name, make_controls, make_patches
from fpatch.core.files import write_atomic
from fpatch.core.progress import Report
from fpatch.core.tree import place
from fpatch.data import Dataset, TargetSet
from fpatch.evaluation import Evaluation, evaluate
from fpatch.graph.pipeline import Pipeline
from fpatch.log.values import to_json
from fpatch.metrics import Rate
from fpatch.rates import success
from fpatch.results import tensor_digest
from fpatch.run_evaluation import evaluation_key, load_trained
from fpatch.viz import HeatMap, plot_heat_maps


class Transfer(NamedTuple):
    """Who fools whom.

    Attributes:
        rates: `{evaluated on: {trained on: rate}}`, and a rate for each benign print.
        clean: Per victim, the share of objects found without a patch: the denominator of its rates.
        evaluations: Per victim; the condition "patch" is the patch that was trained on it.
    """

    rates: dict[str, dict[str, Rate]]
    clean: dict[str, Rate]
    evaluations: dict[str, Evaluation]


def transfer(
    pipelines: Mapping[str, Pipeline],
    patches: Mapping[str, Patches],
    dataset: Dataset,
    key: Tensor,
    *,
    metric: str = "found",
    num_draws: int = 1,
    block: int = 16,
    progress: Callable[[int, int], None] | None = None,
) -> Transfer:
    """Measure every patch in every pipeline.

    A pipeline brings its victim, camera and print; where these are alike but for the victim, all numbers are
    of the same images.

    Args:
        pipelines: Of the evaluated phase, by the name of their victim.
        patches: By the name of what they were trained on: for every pipeline its own, from
            `fpatch.conditions.make_patches`, which the benign prints are made after, and any others.
        dataset: The photographs.
        key: What samples are drawn from, the same in every pipeline.
        metric: The boolean metric whose failure is a success.
        num_draws: Samples per photograph.
        block: Rows that run together.
        progress: Called with the rows done and their total, over all pipelines.

    Raises:
        ValueError: For fewer than two patches, a pipeline without its own, a name that a condition has, or
            patches of other names.
    """
    _check_names(pipelines, patches)
    count = len(dataset.image_ids) * num_draws
    rates, clean, evaluations = {}, {}, {}
    for i, (name, pipeline) in enumerate(pipelines.items()):

        def report(done: int, _: int, before: int = i * count) -> None:
            if progress is not None:
                progress(before + done, count * len(pipelines))

        own = patches[name]
        others = {other: made for other, made in patches.items() if other != name}
        benign = make_controls(own, random.fold_in(key, "control"))
        result = evaluate(
            pipeline,
            {},
            dataset,
            key,
            num_draws=num_draws,
            block=block,
            conditions={PATCH: own, NONE: own, **others, **benign},
            progress=report,
        )
        found = success(result.table, metric)
        by_name = {name if c == PATCH else c: rate for c, rate in found.rates.items()}
        rates[name] = {c: by_name[c] for c in (*patches, *benign)}
        clean[name], evaluations[name] = found.clean, result
    return Transfer(rates, clean, evaluations)


def _check_names(pipelines: Mapping[str, Pipeline], patches: Mapping[str, Patches]) -> None:
    if len(patches) < 2 or not pipelines or not set(pipelines) <= set(patches):
        raise ValueError(
            "transfer: give a patch for every pipeline, and two at least, got the pipelines "
            f"{[*pipelines]} and the patches {[*patches]}"
        )
    first = next(iter(patches))
    for name, made in patches.items():
        check_control_name("transfer", name)
        if {n: set(v) for n, v in made.items()} != {n: set(v) for n, v in patches[first].items()}:
            raise ValueError(
                f"transfer: {name!r} has the patches {sorted(made.get('patch', made))}, but {first!r} has "
                f"{sorted(patches[first].get('patch', patches[first]))}; they must be called alike"
            )


def transfer_runs(
    folders: Sequence[str | Path],
    also: Sequence[str | Path] = (),
    split: Literal["test", "validation"] = "test",
    checkpoint: str = "best",
    report: Report = lambda task, done, total, note: None,
    resources: Mapping[str, Any] | None = None,
) -> Transfer:
    """The same for runs, by the names of their folders.

    Args:
        folders: Runs with the same photographs in the split; their patches meet their victims.
        also: Runs whose patches are measured too, as of one that was trained on several victims.
        split: Which.
        checkpoint: Name of a checkpoint, in every run.
        report: Told of progress.
        resources: Live objects by "path/setting" of the pipelines.

    Raises:
        ValueError: If two folders have one name, or the photographs differ.
    """
    names = [Path(folder).resolve().name for folder in (*folders, *also)]
    if len(set(names)) < len(names):
        raise ValueError(f"transfer: the names of the run folders must differ, got {names}")
    with ExitStack() as opened:
        found = [
            opened.enter_context(load_trained(folder, split, checkpoint, resources))
            for folder in (*folders, *also)
        ]
        runs = dict(zip(names, found, strict=True))
        photographs = {name: _photographs(trained.dataset) for name, trained in runs.items()}
        for name in names[1:]:
            if photographs[name] != photographs[names[0]]:
                raise ValueError(
                    f"transfer: {name!r} has other photographs in the {split} split than {names[0]!r}, or "
                    "other sizes, placements, objects or classes; train both on one data set"
                )
        study = found[0].study
        return transfer(
            {name: runs[name].pipeline.to(study.place) for name in names[: len(folders)]},
            place({n: make_patches(t.pipeline, t.params) for n, t in runs.items()}, study.place),
            found[0].dataset,
            evaluation_key(study, split),
            metric=study.evaluate.metric,
            num_draws=study.evaluate.num_draws,
            block=study.evaluate.block,
            progress=lambda done, total: report("transfer", done, total, ""),
        )


def save_transfer(path: str | Path, found: Transfer) -> list[Path]:
    """Write the rates as `<path>.json`, null for what there is not, and as a heat map, `<path>.png`."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = {
        name: {"clean": found.clean[name]._asdict(), "rates": {c: r._asdict() for c, r in rates.items()}}
        for name, rates in found.rates.items()
    }
    names = list(found.rates)
    conditions = list(found.rates[names[0]])
    panel = HeatMap(
        ("measured on", names),
        ("trained on", conditions),
        [[found.rates[name][condition] for name in names] for condition in conditions],
    )
    files = [path.with_name(f"{path.name}{suffix}") for suffix in (".json", ".png")]
    write_atomic(files[0], to_json(numbers))
    plot_heat_maps(files[1], [panel])
    return files


def _photographs(dataset: TargetSet) -> tuple[Any, ...]:
    """What must be equal where two runs are measured on the data of one."""
    ids = dataset.image_ids
    tables = [(name, tensor_digest(table[ids])) for name, table in sorted(dataset.tables.items())]
    photographs = [dataset.digest(i) for i in ids.tolist()]
    return dataset.size, dataset.names, dataset.class_names, photographs, tables
