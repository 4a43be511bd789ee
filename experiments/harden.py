"""Does training against patches harden the detector of the demo?

    python experiments/harden.py              # the scenes of `fpatch demo --quick`, 150 of them held out
    python experiments/harden.py --beyond runs/<time>-demo-victim0-harden    # longer attacks, larger patches
    python experiments/harden.py --quick      # fewer scenes and steps: does it run?

The training of the detector of the quick demo goes on for 250 steps with a pool of eight patches on half of
the rows, and beside it for the same steps without patches. Then each is attacked from scratch: by two losses
with two keys each, with three times the steps of the demo. The patches that were trained against the start
are measured on the others too.

Numbers: the share of the held-out scenes whose truck is found at score 0.5, with 95 % intervals over scenes;
the worst of the fresh attacks decides. AP is COCO's over IoU 0.5 to 0.95, without a patch. No setting was
chosen by the held-out scenes.

Beyond these attacks, the hardened detector is attacked for 3,000 steps, and it and the start by patches that
are 1.3 times as wide as the panels, for 900.

The folder `runs/<time>-demo-victim0-harden/` keeps weights, patches, `harden.json` and `harden.png`.
"""

import argparse
import dataclasses
import string
import tomllib
from pathlib import Path

from safetensors.torch import load_file

import fpatch
from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.hardening import harden_table
from fpatch.cli.tables import percent
from fpatch.demo.study import QUICK, prepare_scenes, prepare_study
from fpatch.demo.victim import load_victim, save_victim
from fpatch.runs.hardening import harden
from fpatch.study.config import vary
from fpatch.study.hardening import load_harden_plan

SMALL = dataclasses.replace(
    QUICK, splits={"train": 60, "validation": 8, "test": 16}, victim_steps=30, num_steps=5
)

MORE = """
[pipeline.vanish_logit]                 # the second kind of attack
stage = "losses.vanish"
num_boxes = 12
writes = {vanish = "vanish_logit"}
phases = ["train"]

[pipeline.precision]
stage = "metrics.mean_average_precision"
phases = ["eval"]

[harden]
victim = "victim.toml"
pool = 8
share = 0.5
every = 50
losses = [
    {vanish = 1.0, total_variation = 0.2, non_printability = 0.02},
    {vanish_logit = 1.0, total_variation = 0.2, non_printability = 0.02},
]
"""

VICTIM = string.Template("""\
# The training of the detector of the demo.
name = "demo-detector"
seed = $seed

[data]
placements = "$scenes/placements.csv"
objects = "$scenes/objects.csv"
size = [$height, $width]
validation = false

[pipeline.mirror]
stage = "compose.horizontal_flip"

[pipeline.exposure]
stage = "compose.exposure"
stops = [-0.6, 0.6]
reads = {image = "scene"}

[pipeline.contrast]
stage = "compose.contrast"
factor = [0.8, 1.2]

[pipeline.disturb]
stage = "fpatch.demo.training:disturb"
reads = ["image", "boxes"]
writes = ["image"]

[pipeline.victim]
stage = "graph.module"
model = {loader = "demo.trainable_detector", weights = "$weights"}
trainable = true
reads = ["image"]
writes = {boxes = "found_boxes", logits = "found_logits"}

[pipeline.losses]
stage = "fpatch.demo.training:detection_losses"
reads = ["image", "found_boxes", "found_logits", "boxes", "labels", "box_valid"]
writes = ["focal", "overlap"]

[objective.weights]
focal = 1.0
overlap = 1.0

[optimizer]
name = "adamw"
learning_rate = 0.003
schedule = "one_cycle"
rise_frac = 0.2
betas = [0.95, 0.999]
peak_momentum = 0.85
weight_decay = 0.001
clip_norm = 10.0

[train]
num_steps = $num_steps
batch_size = 32
""")


def write_plan(runs: Path, small: bool, seed: int) -> Path:
    """Write the study of the attack with [harden], and that of the victim."""
    size = SMALL if small else QUICK
    with progress_bars() as report:
        scenes = prepare_scenes(size, seed, report)
        path = prepare_study(runs, "demo-victim0", scenes, size, False, seed, 0, report)
    study = path.read_text("utf-8")
    path.write_text(study + MORE, "utf-8")
    height, width = size.sizes_hw[0]
    text = VICTIM.substitute(
        seed=seed, scenes=scenes, weights=tomllib.loads(study)["pipeline"]["victim"]["model"]["weights"],
        height=height, width=width, num_steps=size.victim_steps,
    )  # fmt: skip
    (runs / "victim.toml").write_text(text, "utf-8")
    return path


def attack_beyond(runs: Path, folder: Path, quick: bool) -> None:
    """Attack the hardened detector for longer, and both by larger patches."""
    attack = tomllib.loads((runs / "demo-victim0.toml").read_text("utf-8"))
    start = attack["pipeline"]["victim"]["model"]["weights"]
    detector = load_victim(start)
    detector.load_state_dict(load_file(folder / "weights" / "hardened" / "victim.safetensors"))
    save_victim(runs / "hardened.safetensors", detector)
    wide = {"implant.scale.low": 1.1, "implant.scale.high": 1.4}
    wide |= {"implant_exactly.scale.low": 1.3, "implant_exactly.scale.high": 1.3}
    wider = {f"pipeline.{name}": value for name, value in wide.items()}
    study = load_harden_plan(runs / "demo-victim0.toml").attack
    for name, victim, num_steps, more in (
        ("3,000 steps", "hardened", 3000, {}),
        ("1.3 times as wide", "hardened", 900, wider),
        ("1.3 times as wide", "start", 900, wider),
    ):
        weights = start if victim == "start" else str(runs / "hardened.safetensors")
        num_steps = 5 if quick else num_steps
        own = {"train.num_steps": num_steps, "evaluate.every": num_steps, "name": f"beyond-{victim}"}
        run = fpatch.train(vary(study, own | more | {"pipeline.victim.model.weights": weights}))
        _, found = fpatch.evaluate_run(run.folder)
        patch, noise = (percent(found.rates[name]) for name in ("patch", "noise"))
        say(f"{name}, {victim}: not found {patch}, noise {noise}")


def main() -> None:
    """Harden, measure and print."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--quick", action="store_true", help="fewer scenes and steps: does it run?")
    parser.add_argument("--seed", type=int, default=0, help="of scenes, victim and patches (default: 0)")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the folder goes")
    parser.add_argument("--resume", type=Path, help="the folder of a hardening that was stopped")
    parser.add_argument("--beyond", type=Path, help="the folder of a hardening: attack it for longer")
    options = parser.parse_args()
    if options.beyond is not None:
        attack_beyond(options.runs, options.beyond, options.quick)
        return
    plan = load_harden_plan(write_plan(options.runs, options.quick, options.seed))
    done = harden(plan, folder=options.resume)
    console.print(harden_table(done))
    say(f"folder: {done.folder}")


if __name__ == "__main__":
    main()
