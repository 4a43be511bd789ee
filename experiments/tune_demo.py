"""Are there better settings of the demo than its defaults?

    python experiments/tune_demo.py            # 24 trials, then three seeds of both on two victims
    python experiments/tune_demo.py --quick    # smaller: does it run?
    python experiments/tune_demo.py --sweep runs/<time>-tune-demo/<time>-victim0-sweep --seeds 4 5 6 7 8 9

First a sweep chooses. Each trial trains the demo's patch against victim 0 with other settings and its own
seed, as long as the demo does, and is measured on 300 validation scenes. The weights of total variation and
of non-printability stay: without them, success on pixels would rise and a print would lose.

Then the best trial's settings and the defaults are trained again with fresh seeds, against victim 0 and
against victim 1, which the sweep has not seen. All patches are measured on scenes that are rendered for this
comparison and drawn under a key of their own. No choice has seen these scenes.

Numbers: success is the share of the scenes whose truck a victim finds without a patch and not with it, at
score 0.5. The difference is paired: the same scenes and draws, with the patch of the same seed. Intervals are
95 %, over scenes with all their seeds and victims. They do not cover the spread over seeds, so the difference
has a second interval: Student's, over the pairs of patches, each of which counts once. The second interval
decides whether the settings are better for a new patch.

The folder `runs/<time>-tune-demo/` keeps the sweep, a run folder per patch, and `tune.json`.
"""

import argparse
import dataclasses
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from scipy import stats

import fpatch
from fpatch import Study, random
from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.tables import percent
from fpatch.demo.study import FULL, QUICK, open_scenes, prepare_scenes, prepare_study
from fpatch.evaluation.conditions import NONE, PATCH, make_controls, make_patches
from fpatch.evaluation.rates import Table
from fpatch.log.values import to_json
from fpatch.metrics import Rate
from fpatch.runs.evaluating import load_trained
from fpatch.study.config import vary
from fpatch.tune import Journal, find_entry, read_plan

SPACE = {
    "optimizer.learning_rate": (0.02, 0.4, "log"),
    "pipeline.vanish.on": ["probability", "logit"],
    "pipeline.vanish.num_boxes": (3, 48, "int"),
    "pipeline.implant.scale.low": (0.6, 1.0),
    "pipeline.implant.jitter_frac": (0.0, 0.06),
}
NUM_VICTIMS = 2
DEFAULTS, NOISE = "defaults", "noise"


def train_both(
    study: Study, settings: Mapping[str, Any], seed: int, folder: Path, report: Any
) -> dict[str, Path]:
    """A run with the defaults and one with other settings, from one seed."""
    runs = {}
    for name, changed in ((DEFAULTS, {}), ("best", settings)):
        named = f"{study.name}-{name}-seed{seed}"
        varied = dataclasses.replace(vary(study, {**changed, "seed": seed}), name=named)
        run = fpatch.train(varied, lambda task, *rest, named=named: report(f"{named}: {task}", *rest))
        runs[name] = run.folder.rename(folder / named)
    return runs


def compare(runs: Mapping[str, Path], scenes: Path, size: Any, seed: int) -> Table:
    """Rows of the scenes, with the patch of the best settings and that of the defaults as its control."""
    key = random.fold_in(random.key(seed), "tune the demo")
    with (
        load_trained(runs["best"], checkpoint="last") as best,
        load_trained(runs[DEFAULTS], checkpoint="last") as defaults,
    ):
        own = make_patches(best.pipeline, best.params)
        noise = make_controls(own, random.fold_in(key, "control"))[NOISE]
        others = {DEFAULTS: make_patches(defaults.pipeline, defaults.params), NOISE: noise}
        return fpatch.evaluate(
            best.pipeline,
            {},
            open_scenes(scenes, size).split("test"),
            key,
            block=best.study.evaluate.block,
            conditions={PATCH: own, NONE: own, **others},
        ).table


def joined(tables: list[Table]) -> dict[str, np.ndarray]:
    """Join tables; rows of one scene keep their scene."""
    return {name: np.concatenate([table[name] for table in tables]) for name in tables[0]}


def show(title: str, table: Table) -> dict[str, Any]:
    """Print the rates of both, and how far the best is ahead."""
    rates = fpatch.success(table)

    def line(rate: Rate) -> str:
        return " ".join(percent(rate).split())

    say(
        f"{title}: best {line(rates.rates[PATCH])}, defaults {line(rates.rates[DEFAULTS])}, "
        f"noise {line(rates.rates[NOISE])}; best - defaults {line(rates.over[DEFAULTS])} points"
    )
    return rates.to_json()


def over_pairs(differences: list[float]) -> tuple[float, float, float]:
    """The mean of paired differences and its 95 % interval, by Student's t."""
    mean = float(np.mean(differences))
    if len(set(differences)) == 1:
        return mean, mean, mean
    low, high = stats.t.interval(0.95, len(differences) - 1, mean, stats.sem(differences))
    return mean, float(low), float(high)


def main() -> None:
    """Sweep, train again, compare."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller scenes, four trials of a few steps")
    parser.add_argument("--trials", type=int, default=24, help="(default: 24)")
    parser.add_argument("--sweep", type=Path, metavar="FOLDER", help="of a sweep that is there already")
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3], help="of patches (default: 1 2 3)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, victims and the sweep (default: 0)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of results (default: runs)")
    options = parser.parse_args()
    size = dataclasses.replace(FULL, splits={**FULL.splits, "validation": 300})
    if options.quick:
        size = dataclasses.replace(QUICK, num_steps=6)
        options.trials, options.seeds = 4, [1]
    folder = options.runs.resolve() / f"{time.strftime('%Y%m%d-%H%M%S')}-tune-demo"
    seed, fresh = options.seed, dataclasses.replace(size, splits={"test": size.splits["test"]})
    with progress_bars() as report:
        scenes, unseen = prepare_scenes(size, seed, report), prepare_scenes(fresh, seed + 1, report)
        studies = []
        for i in range(NUM_VICTIMS):
            file = prepare_study(folder, f"victim{i}", scenes, size, False, seed, i, report)
            changes = {"evaluate.every": size.num_steps, "log.tensorboard": False}
            studies.append(fpatch.load_study(file, changes))
        if options.sweep is None:
            found = fpatch.sweep(
                studies[0], SPACE, num_trials=options.trials, search="noisy_gp", seed=seed, on_progress=report
            )
        else:
            found = Journal.open(options.sweep)
            if (other := read_plan(found).study.data) != studies[0].data:
                parser.error(f"--sweep {options.sweep} is of other scenes: {other.placements}")
        entry = find_entry(found, read_plan(found))
        settings = dict(entry.trial.settings)
        tables: list[list[Table]] = [[] for _ in studies]
        for i, study in enumerate(studies):
            for other in options.seeds:
                runs = train_both(study, settings, other, folder, report)
                tables[i].append(compare(runs, unseen, size, seed))
    console.print(f"best of {len(found.names())}: trial {entry.trial.name}, validation {entry.value:.3f}")
    console.print_json(data=settings)
    result: dict[str, Any] = {"settings": settings, "trial": entry.trial.name, "validation": entry.value}
    for i, rows in enumerate(tables):
        for other, table in zip(options.seeds, rows, strict=True):
            result[f"victim {i}, seed {other}"] = show(f"victim {i}, seed {other}", table)
        result[f"victim {i}"] = show(f"victim {i}", joined(rows))
    result["all"] = show("all", joined([table for rows in tables for table in rows]))
    pairs = [[fpatch.success(table).over[DEFAULTS].value for table in rows] for rows in tables]
    groups = {f"victim {i}": rows for i, rows in enumerate(pairs)} | {
        "all": [x for rows in pairs for x in rows]
    }
    for name, differences in groups.items():
        if len(differences) > 1:
            mean, low, high = result[f"{name}, over pairs"] = over_pairs(differences)
            console.print(
                f"{name}, best - defaults over {len(differences)} pairs of patches: "
                f"{100 * mean:.1f} [{100 * low:.1f}, {100 * high:.1f}] points",
                markup=False,
            )
    (folder / "tune.json").write_bytes(to_json(result))
    say(f"  {folder}")


if __name__ == "__main__":
    main()
