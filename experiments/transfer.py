"""Does a patch fool a victim that it was not trained on?

    python experiments/transfer.py            # the scenes of the demo, 300 of them held out
    python experiments/transfer.py --quick    # smaller: does it run?

The victims are those of `fpatch demo` and one more, equal but for the seed of their weights and of the order
of their training images. For each victim a patch is trained as the demo does. For each pair one patch is
trained against both, with as many steps, on the mean of both losses (`--how worst`: the larger one). Neither
that patch nor any choice has seen the third victim. All patches and the control patches are measured on all
victims, on the same held-out scenes under the same draws.

Numbers: success is the share of the scenes whose truck a victim finds without a patch and not with it, at
score 0.5; intervals are 95 %, over scenes. The control patches are made from the patch that was trained on
the victim. Equal architecture and training data make transfer as easy as possible: the numbers say nothing
about victims that differ more.

The folder `runs/<time>-transfer/` keeps a run folder per patch, `transfer.json` and `transfer.png`.
"""

import argparse
import dataclasses
import itertools
import time
from pathlib import Path
from typing import Literal

import fpatch
from fpatch import Study, infer, losses
from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.tables import transfer_table
from fpatch.demo.study import FULL, QUICK, prepare_scenes, prepare_study
from fpatch.runs.transfer import save_transfer, transfer_runs
from fpatch.study.settings import ObjectiveConfig

NUM_VICTIMS = 3


def against_both(studies: tuple[Study, Study], name: str, how: Literal["mean", "worst"]) -> Study:
    """The first study with the victims of both, and their losses joined."""
    first = studies[0]
    stages = {stage: first.pipeline[stage] for stage in ("vanish", "suppress", "hit")}
    victims = [study.pipeline["victim"] for study in studies]
    pipeline = first.pipeline.without("victim", *stages) | {
        "victims": infer.ensemble(victims, stages),
        "joined": losses.ensemble(("victims/0/vanish", "victims/1/vanish"), how),
    }
    weights = {"ensemble" if term == "vanish" else term: w for term, w in first.objective.weights.items()}
    return dataclasses.replace(
        first,
        name=name,
        pipeline=pipeline,
        objective=ObjectiveConfig(weights),
        evaluate=dataclasses.replace(first.evaluate, metric="victims/0/found"),
    )


def main() -> None:
    """Train the missing patches, measure, print and save."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="smaller scenes, fewer steps")
    parser.add_argument("--how", choices=("mean", "worst"), default="mean", help="(default: mean)")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, victims and patches (default: 0)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="folder of results (default: runs)")
    options = parser.parse_args()
    size = QUICK if options.quick else FULL
    folder = options.runs / f"{time.strftime('%Y%m%d-%H%M%S')}-transfer"
    with progress_bars() as report:
        scenes = prepare_scenes(size, options.seed, report)
        studies = {}
        for i in range(NUM_VICTIMS):
            name = f"victim{i}"
            file = prepare_study(folder, name, scenes, size, False, options.seed, i, report)
            studies[name] = fpatch.load_study(
                file, {"evaluate.every": size.num_steps, "log.tensorboard": False}
            )
        both = {
            f"{a}+{b}": against_both((studies[a], studies[b]), f"{a}+{b}", options.how)
            for a, b in itertools.combinations(studies, 2)
        }
        runs = {}
        for name, study in (studies | both).items():
            run = fpatch.train(study, lambda task, *rest, name=name: report(f"{name}: {task}", *rest))
            runs[name] = run.folder.rename(folder / name)
        found = transfer_runs(
            [runs[name] for name in studies],
            [runs[name] for name in both],
            checkpoint="last",
            on_progress=report,
        )
    console.print(transfer_table(found))
    for file in save_transfer(folder / "transfer", found):
        say(f"  {file}")


if __name__ == "__main__":
    main()
