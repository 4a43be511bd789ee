"""Attack x defense: the patch of every run behind every defense, each a table of its run folder."""

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from fpatch.core.display import shown
from fpatch.core.files import write_atomic
from fpatch.core.names import check_name, label
from fpatch.core.plain import plain_torch
from fpatch.core.progress import Progress
from fpatch.evaluation.conditions import PATCH, TITLES
from fpatch.evaluation.defenses import UNDEFENDED, Defended, compare_defenses
from fpatch.evaluation.rates import axis_label
from fpatch.log.values import to_json
from fpatch.metrics import Rate
from fpatch.runs.comparing import check_patches, check_same_data, folder_names, other_settings, titles_of
from fpatch.runs.evaluating import Trained, evaluate_run, load_trained
from fpatch.runs.naming import table_name
from fpatch.runs.places import relative_settings
from fpatch.study.config import vary
from fpatch.study.defense import SETTING
from fpatch.study.study import Study
from fpatch.viz import HeatMap, plot_heat_maps

_logger = logging.getLogger(__name__)


class Matrix(NamedTuple):
    """All attacks behind all defenses.

    Attributes:
        defenses: The comparison by defense; "none" is the victim alone.
        stages: The nodes of each defense.
        oblivious: The attacks whose patch was trained without a defense.
        tables: The table of each attack behind each defense, in the folder of the attack's run.
        steps: The updates that led to each patch.
        goal: The goal of a targeted attack, as in `Success`.
        warnings: For each attack, a sentence for every difference from the first that its rates rest on.
        titles: The names to show for attacks.
    """

    defenses: dict[str, Defended]
    stages: dict[str, dict[str, Any]]
    oblivious: list[str]
    tables: dict[str, dict[str, str]]
    steps: dict[str, int]
    goal: str | None = None
    warnings: dict[str, list[str]] = {}  # noqa: RUF012 (the default of a NamedTuple, never written to)
    titles: dict[str, str] = {}  # noqa: RUF012

    def controls(self, defense: str) -> dict[str, Rate]:
        """Return the success of the control patches of the first attack behind a defense."""
        rates = next(iter(self.defenses[defense].attacks.values())).rates
        return {name: rate for name, rate in rates.items() if name != PATCH}


@plain_torch(grad=True)
def matrix_runs(
    folders: Sequence[str | Path],
    defenses: Mapping[str, Mapping[str, Any]],
    split: Literal["test", "validation"] = "test",
    checkpoint: str = "best",
    on_progress: Progress | None = None,
    resources: Mapping[str, Any] | None = None,
    *,
    settings: Mapping[str, Any] | None = None,
    data_root: str | Path | None = None,
) -> Matrix:
    """Measure the patch of every run behind every defense, and behind none.

    Each is an evaluation with the setting `defense`, whose table lies in the run's folder and is replayed and
    verified like any other. All have the keys, samples and metric of the first run. A run whose patch was
    trained through a defense, in the phase `train`, is its adaptive attack.

    Args:
        folders: Run folders with the same images in the split and one victim; each gives a patch.
        defenses: The nodes of each by name, as in a study: `{"few": {"few": {"stage": "defend.bit_depth"}}}`.
        split: The split of the study's data.
        checkpoint: The name of a checkpoint in every run.
        on_progress: Called with the progress; None: bars or lines on standard error.
        resources: Live objects by "path/setting" of the pipelines.
        settings: As for `evaluate_run`, of all runs.
        data_root: As for `evaluate_run`, of all runs.

    Raises:
        ValueError: If a defense is none, two folders have one name, or the images of the runs differ.

    Example:
        >>> import tempfile
        >>> from fpatch import train
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.runs.matrix import matrix_runs
        >>> run = train(tiny_study(tempfile.mkdtemp()))
        >>> found = matrix_runs([run.folder], {"few": {"few": {"stage": "defend.bit_depth", "num_bits": 1}}})
        >>> behind = found.defenses["few"]
        >>> behind.clean.value, behind.attacks[run.folder.name].rates["patch"].value
        (1.0, 1.0)
        >>> found.tables["few"][run.folder.name]
        'test-defense-few-49197d'
    """
    names, asked = folder_names("matrix", folders), {UNDEFENDED: {}, **_checked(defenses)}
    if not names:
        raise ValueError("matrix: give the folder of at least one run")
    if any(name.partition(".")[0] == SETTING for name in settings or {}):
        raise ValueError("matrix: its defenses are those that are listed; give the setting as one of them")
    places = dict(zip(names, folders, strict=True))
    with shown(on_progress) as show:
        runs: dict[str, Trained] = {}
        for name, folder in places.items():
            with load_trained(folder, split, checkpoint, resources, settings, data_root) as trained:
                runs[name] = trained
        check_patches("matrix", runs)
        check_same_data("matrix", runs, split)
        cells = {defense: _cells(runs, nodes, split, settings, resources) for defense, nodes in asked.items()}
        tables: dict[str, dict[str, str]] = {}
        columns: dict[str, dict[str, Any]] = {}
        for defense, options in cells.items():
            tables[defense], columns[defense] = {}, {}
            for name, own in options.items():

                def report(task: str, *rest: Any, what: str = f"{name}, {defense}") -> None:
                    show(f"{what}: {task}", *rest)

                where = {"resources": resources, "data_root": data_root}
                run, found = evaluate_run(places[name], split, checkpoint, report, settings=own, **where)
                table = table_name(split, checkpoint, relative_settings(own, run.folder))
                tables[defense][name], columns[defense][name] = table, run.load_table(table)
    adaptive = {
        d: [name for name, trained in runs.items() if _went_through(trained.study, nodes, resources)]
        for d, nodes in asked.items()
    }
    return Matrix(
        compare_defenses(columns, adaptive, runs[names[0]].study.evaluate.metric),
        asked,
        adaptive[UNDEFENDED],
        tables,
        {name: trained.step for name, trained in runs.items()},
        found.goal,
        _warnings(runs, split, resources),
        titles_of({name: trained.study.name for name, trained in runs.items()}),
    )


def _checked(defenses: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Check the names of defenses, and that each has nodes."""
    for name, nodes in defenses.items():
        check_name("matrix: a defense", name)
        if name == UNDEFENDED or not nodes:
            raise ValueError(
                f"matrix: the defense {name!r} must have nodes, and a name other than {UNDEFENDED!r}, which "
                "is the victim alone and always measured"
            )
    return {name: dict(nodes) for name, nodes in defenses.items()}


def _cells(
    runs: Mapping[str, Trained],
    nodes: Mapping[str, Any],
    split: str,
    settings: Mapping[str, Any] | None,
    resources: Mapping[str, Any] | None,
) -> dict[str, dict[str, Any]]:
    """Return the settings by which each run is measured behind a defense; without `defense` it is its own."""
    first = next(iter(runs.values())).study
    found = {}
    for name, trained in runs.items():
        study = trained.study
        same = {n: value for n, value in _counting(first).items() if _counting(study)[n] != value}
        is_own = _stages(_behind(study, nodes, resources), split) == _stages(study, split)
        found[name] = {**(settings or {}), **same, **({} if is_own else {SETTING: dict(nodes)})}
    return found


def _went_through(
    study: Study, nodes: Mapping[str, Mapping[str, Any]], resources: Mapping[str, Any] | None
) -> bool:
    """Return whether the patch was trained through a defense, whatever stands there in other phases."""
    alive = {name: {n: value for n, value in node.items() if n != "phases"} for name, node in nodes.items()}
    return _stages(_behind(study, alive, resources), "train") == _stages(study, "train")


def _counting(study: Study) -> dict[str, Any]:
    """The settings of a study that must be those of the first run, so that rows can be paired."""
    counted = {f"evaluate.{name}": getattr(study.evaluate, name) for name in ("metric", "num_draws")}
    return {"seed": study.seed, **counted}


def _behind(study: Study, nodes: Mapping[str, Any], resources: Mapping[str, Any] | None) -> Study:
    """The study with another defense, or none."""
    return vary(study, {SETTING: dict(nodes)}, resources)


def _stages(study: Study, split: str) -> list[dict[str, Any]]:
    """The stages of a phase with their settings and wiring, in order, by whatever names."""
    nodes = study.pipeline.at(split).config.values()
    return [{name: value for name, value in node.items() if name != "phases"} for node in nodes]


def _warnings(
    runs: Mapping[str, Trained], split: str, resources: Mapping[str, Any] | None
) -> dict[str, list[str]]:
    """Return what else differs between the runs than their patches."""
    plain = {name: _behind(trained.study, {}, resources) for name, trained in runs.items()}
    first, *others = plain
    said = {name: other_settings(plain[first], plain[name], first, split, ("loss",)) for name in others}
    return {name: sentences for name, sentences in said.items() if sentences}


def save_matrix(path: str | Path, found: Matrix) -> list[Path]:
    """Write the comparison as `<path>.json`, and as heat maps, `<path>.png`.

    The second map holds the change by each defense. Adaptive attacks are framed.

    Example:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from fpatch import train
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.runs.matrix import matrix_runs, save_matrix
        >>> run = train(tiny_study(tempfile.mkdtemp()))
        >>> found = matrix_runs([run.folder], {"few": {"few": {"stage": "defend.bit_depth"}}})
        >>> [path.name for path in save_matrix(Path(tempfile.mkdtemp(), "matrix"), found)]
        ['matrix.json', 'matrix.png']
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    facts, columns = to_json(matrix_facts(found)), list(found.defenses)
    attacks = list(found.steps)
    controls = list(found.controls(columns[0]))
    shown = [*((attack, PATCH) for attack in attacks), *((attacks[0], control) for control in controls)]
    rates = [[found.defenses[d].attacks[a].rates[c] for d in columns] for a, c in shown]
    change: list[list[Rate | None]] = [
        [None if d == UNDEFENDED else found.defenses[d].change[a][c] for d in columns] for a, c in shown
    ]
    titles = [*(found.titles.get(a, a) for a in attacks), *(TITLES.get(c, c) for c in controls)]
    panel = HeatMap(
        ("defense", [label(d) for d in columns]),
        ("patch", [label(title) for title in titles]),
        rates,
        change,
        [[found.defenses[d].clean for d in columns] for _ in shown],
        "no defense",
        framed=[(attacks.index(a), i) for i, d in enumerate(columns) for a in found.defenses[d].adaptive],
        frame="the patch was trained through this defense",
        rule=len(attacks),
    )
    files = [path.with_name(f"{path.name}{suffix}") for suffix in (".json", ".png")]
    if files[0].is_file() and files[0].read_bytes() != facts:
        _logger.warning("%s: other numbers are replaced", files[0])
    write_atomic(files[0], facts)
    plot_heat_maps(files[1], [panel], axis_label(found.goal))
    return files


def matrix_facts(found: Matrix) -> dict[str, Any]:
    """Return the comparison as JSON values."""
    return {
        defense: {
            "stages": found.stages[defense],
            "clean": behind.clean._asdict(),
            "cost": behind.cost._asdict(),
            "adaptive": behind.adaptive,
            "attacks": {
                name: {
                    "rates": {c: rate._asdict() for c, rate in rates.rates.items()},
                    "over": {c: rate._asdict() for c, rate in rates.over.items()},
                    "change": {c: rate._asdict() for c, rate in behind.change[name].items()},
                    "gain": behind.gain[name]._asdict() if name in behind.gain else None,
                    "table": found.tables[defense][name],
                    "step": found.steps[name],
                    "warnings": [*rates.warnings(), *found.warnings.get(name, ())],
                }
                for name, rates in behind.attacks.items()
            },
        }
        for defense, behind in found.defenses.items()
    }
