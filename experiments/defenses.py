"""Does a filter before the victim stop a patch, if the patch is trained through it?

    python experiments/defenses.py            # 450 steps per patch, small scenes of the demo, 150 held out
    python experiments/defenses.py --quick    # fewer steps and one defense: does it run?

The victim is that of `fpatch demo --quick`. One patch is trained without a defense, the oblivious attack, and
one through each filter, the adaptive attacks. All have the same seed, steps and losses. Every patch is
measured behind every filter and behind none, on the same held-out scenes under the same draws.

Numbers: success is the share of the scenes whose truck the victim finds without a patch and not with it, both
behind the filter, at score 0.5; intervals are 95 %, over scenes. Each filter has one strength, chosen
beforehand. The last checkpoint of each patch is measured, so no choice has seen a held-out scene.

The folder `runs/<time>-defenses/` keeps a run folder per patch, `matrix.json` and `matrix.png`.
"""

import argparse
import time
from pathlib import Path
from typing import Any

import fpatch
from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.defenses import matrix_table
from fpatch.demo.study import QUICK, prepare_scenes, prepare_study
from fpatch.runs.matrix import matrix_runs, save_matrix

DEFENSES: dict[str, dict[str, Any]] = {
    "jpeg": {"stage": "compose.jpeg", "quality": [20, 20]},
    "resample": {"stage": "compose.resample", "scale": [0.5, 0.5]},
    "median": {"stage": "defend.median", "size_px": 5},
    "smoothing": {"stage": "defend.gradient_smoothing"},
    "bits": {"stage": "defend.bit_depth", "num_bits": 3},
    "mask": {"stage": "defend.frequency_mask"},
}


def main() -> None:
    """Train the patches, measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="one defense, 60 steps")
    parser.add_argument("--steps", type=int, default=450, help="of each patch (default: 450)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, victim and patches (default: 0)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of results (default: runs)")
    options = parser.parse_args()
    names = ["bits"] if options.quick else list(DEFENSES)
    steps = 60 if options.quick else options.steps
    folder = options.runs / f"{time.strftime('%Y%m%d-%H%M%S')}-defenses"
    with progress_bars() as report:
        scenes = prepare_scenes(QUICK, options.seed, report)
        file = prepare_study(folder, "plain", scenes, QUICK, False, options.seed, 0, report)
        settings = {"train.num_steps": steps, "evaluate.every": steps, "log.tensorboard": False}
        runs = []
        for name in ("plain", *names):
            through = {} if name == "plain" else {"defense": {name: DEFENSES[name]}}
            study = fpatch.load_study(file, {**settings, **through, "name": name})
            run = fpatch.train(study, lambda task, *rest, name=name: report(f"{name}: {task}", *rest))
            runs.append(run.folder.rename(folder / name))
        found = matrix_runs(runs, {n: {n: DEFENSES[n]} for n in names}, checkpoint="last", on_progress=report)
    console.print(matrix_table(found))
    for file in save_matrix(folder / "matrix", found):
        say(f"  {file}")


if __name__ == "__main__":
    main()
