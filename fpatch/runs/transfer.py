"""Transfer between runs: the patch of every run against the victim of every other."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Literal

from fpatch.core.display import shown
from fpatch.core.files import write_atomic
from fpatch.core.names import label, typed
from fpatch.core.plain import plain_torch
from fpatch.core.progress import Progress
from fpatch.core.tree import to_device
from fpatch.evaluation.conditions import TITLES, make_patches
from fpatch.evaluation.rates import axis_label
from fpatch.evaluation.transfer import Transfer, transfer
from fpatch.log.values import to_json
from fpatch.runs.comparing import check_patches, check_same_data, folder_names, other_settings, titles_of
from fpatch.runs.evaluating import load_trained
from fpatch.study.splits import evaluation_key
from fpatch.viz import HeatMap, plot_heat_maps

_logger = logging.getLogger(__name__)


@plain_torch(grad=True)
def transfer_runs(
    folders: Sequence[str | Path],
    also: Sequence[str | Path] = (),
    split: Literal["test", "validation"] = "test",
    checkpoint: str = "best",
    on_progress: Progress | None = None,
    resources: Mapping[str, Any] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
) -> Transfer:
    """Measure the patch of every run on the victim of every run, by the names of their folders.

    Args:
        folders: Run folders with the same images in the split; each gives a patch and a victim.
        also: Run folders that give a patch alone, such as one trained on several victims.
        split: The split of the study's data.
        checkpoint: The name of a checkpoint in every run.
        on_progress: Called with the progress; None: bars or lines on standard error.
        resources: Live objects by "path/setting" of the pipelines.
        settings: As for `evaluate_run`, of all runs.
        data_root: As for `evaluate_run`, of all runs.

    Raises:
        ValueError: If two folders have the same name, or the images of the runs differ.

    Example:
        >>> import tempfile
        >>> from fpatch import train
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.runs.transfer import transfer_runs
        >>> folder, settings = tempfile.mkdtemp(), {"data.validation": False}
        >>> long = train(tiny_study(folder, settings | {"name": "long"})).folder
        >>> short = train(tiny_study(folder, settings | {"name": "short", "train.num_steps": 1})).folder
        >>> rates = transfer_runs([short, long]).rates[short.name]
        >>> rates[short.name].value, rates[long.name].value
        (0.0, 1.0)
    """
    names = folder_names("transfer", (*folders, *also))
    if len(names) < 2:
        raise ValueError(
            "transfer: give two runs or more, whose patches meet each other's victims; one alone is measured "
            f"by fpatch evaluate {typed(folders[0] if folders else 'RUN')}"
        )
    with ExitStack() as opened:
        found = [
            opened.enter_context(load_trained(folder, split, checkpoint, resources, settings, data_root))
            for folder in (*folders, *also)
        ]
        runs = dict(zip(names, found, strict=True))
        check_patches("transfer", runs)
        check_same_data("transfer", runs, split)
        study, show = found[0].study, opened.enter_context(shown(on_progress))
        measured = transfer(
            {name: runs[name].pipeline.to(study.place) for name in names[: len(folders)]},
            to_device({n: make_patches(t.pipeline, t.params) for n, t in runs.items()}, study.place),
            found[0].dataset,
            evaluation_key(study, split),
            metric=study.evaluate.metric,
            num_draws=study.evaluate.num_draws,
            block=study.evaluate.block,
            progress=lambda done, total: show("transfer", done, total, ""),
        )
        for name in names[1 : len(folders)]:
            if said := other_settings(runs[names[0]].study, runs[name].study, names[0], split):
                measured.warnings.setdefault(name, []).extend(said)
        steps = {name: trained.step for name, trained in runs.items()}
        return measured._replace(steps=steps, titles=titles_of({n: t.study.name for n, t in runs.items()}))


def save_transfer(path: str | Path, found: Transfer) -> list[Path]:
    """Write the rates as `<path>.json`, null where one is missing, and as a heat map, `<path>.png`.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch.evaluation.transfer import Transfer
        >>> from fpatch.metrics import Rate
        >>> from fpatch.runs.transfer import save_transfer
        >>> rates = {"small": {"small": Rate(0.9, 0.8, 1.0, 40, 40), "large": Rate(0.4, 0.3, 0.5, 40, 40)}}
        >>> found = Transfer(rates, {"small": Rate(1.0, 0.9, 1.0, 40, 40)}, {})
        >>> files = save_transfer(Path(tempfile.mkdtemp(), "transfer"), found)
        >>> [path.name for path in files]
        ['transfer.json', 'transfer.png']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers, names = transfer_facts(found), list(found.rates)
    conditions = list(found.rates[names[0]])
    titles = {condition: TITLES.get(condition, condition) for condition in conditions} | found.titles
    controls = [i for i, condition in enumerate(conditions) if condition in TITLES]
    panel = HeatMap(
        ("victim of", [label(titles.get(name, name)) for name in names]),
        ("patch of", [label(titles[condition]) for condition in conditions]),
        [[found.rates[name][condition] for name in names] for condition in conditions],
        framed=[(conditions.index(name), i) for i, name in enumerate(names) if name in conditions],
        frame="the victim that the patch was trained on",
        rule=controls[0] if controls else None,
    )
    files = [path.with_name(f"{path.name}{suffix}") for suffix in (".json", ".png")]
    if files[0].is_file() and files[0].read_bytes() != to_json(numbers):
        _logger.warning("%s: other numbers are replaced", files[0])
    write_atomic(files[0], to_json(numbers))
    plot_heat_maps(files[1], [panel], axis_label(found.goal))
    return files


def transfer_facts(found: Transfer) -> dict[str, Any]:
    """Return the rates on every victim as JSON values."""
    return {
        name: {"clean": found.clean[name]._asdict(), "rates": {c: r._asdict() for c, r in rates.items()}}
        | ({"study": found.titles[name]} if name in found.titles else {})
        | ({"warnings": found.warnings[name]} if name in found.warnings else {})
        | ({"steps": found.steps} if found.steps else {})
        for name, rates in found.rates.items()
    }
