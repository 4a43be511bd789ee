"""Hide a toy car from a presence classifier on camera images, cross-validated by viewpoint.

    python experiments/toycar.py --data ../shared/data/toycar

19 images of a toy car come with the corners of flat panels on it (`warp.csv`); not every image shows every
panel. Three 64x64 gray patches (`hood`, `roof`, `door`) are trained to turn the answer "toy car" of a small
classifier into "no toy car", through random shear, scale, rotation, brightness, contrast, saturation, hue and
noise. The corners mark the middle of each panel, about a tenth of the car in all: this is scale 1. At scale
1.7 the patches fill the panels and reach over an edge here and there.

The images are frames of two videos. Frames at most `NEAR_FRAMES` apart are nearly one image: they make a
*viewpoint*, and a viewpoint is never split between training and testing. The viewpoints are dealt to five
folds. In each fold, classifier and patches see only the images of the other four, and the patches are
measured on the fold's own. Every image is held out once, and the rows of all folds are pooled.

The numbers, per scale:
- success: the share of held-out rows (an image under one draw of the camera) answered "toy car" without a
  patch and not with it. Control patches of the same size and place stand beside it: noise, a flat print, the
  patch's own pixels shuffled. "patch minus it" is the paired difference: the effect.
- lead: the mean distance of the logit of "toy car" above the other. It shows effects too small for success.
- intervals are 95 %, over images, and over viewpoints, which are fewer but nearer to independent.
- clean accuracy, without any patch, on held-out car crops and on held-out crops of the background.

No setting was chosen by a held-out result; settings were chosen by success and loss on the training images of
one fold. The folder `runs/<time>-toycar/` keeps the crops, a classifier per fold, a run folder per fold
and scale, `summary.json` and `examples.png`. With this file's folder on PYTHONPATH,
`fpatch replay RUN --verify` reruns the rows of a run.
"""

import argparse
import csv
import itertools
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import fpatch
from fpatch import Range, Run, Study, compose, create, implant, infer, losses, metrics, node, random, viz
from fpatch.cli.console import console, progress_bars, say
from fpatch.cli.tables import percent, success_table
from fpatch.core.progress import Progress
from fpatch.core.tree import to_device
from fpatch.core.types import Params, Sample, Values
from fpatch.data import Loader, TargetSet, letterbox, move_points, targets, write_image
from fpatch.evaluation.blocks import measure
from fpatch.evaluation.conditions import CONTROLS, NONE, PATCH, TITLES
from fpatch.evaluation.rates import Success
from fpatch.log.values import to_json
from fpatch.metrics import Rate, bootstrap_mean, wilson
from fpatch.ops.geometry import box_corners
from fpatch.runs.evaluating import load_trained
from fpatch.study.settings import DataConfig, EvaluateConfig, LogConfig, ObjectiveConfig, TrainConfig

PANELS = ("hood", "roof", "door")
BACKGROUND, CAR = 0, 1
MARGIN = 5.0

NEAR_FRAMES = 10
PHOTO_PX, CROP_PX = 640, 128
CAR_ZOOM = 2.0  # side of a car crop over that of the box around its panels: about the whole car
GROUNDS_PER_PHOTO = 8
GROUND_PX = (100, 240)  # sides of background crops
PRINTED_FRAC = 0.5  # of the panels that a classifier sees, so that no control patch fools it
PATCH_PX, SEEN_PX = 64, 32  # at these distances a camera averages over the finest pixels of a print


class Settings(NamedTuple):
    """The size of an experiment."""

    patches: tuple[str, ...] = PANELS
    seed: int = 0
    folds: tuple[int, ...] = (0, 1, 2, 3, 4)
    classifier_steps: int = 400
    patch_steps: int = 150
    scales: tuple[float, ...] = (1.0, 1.7)
    num_draws: int = 8
    mlflow: bool = True


QUICK = Settings(folds=(1,), classifier_steps=40, patch_steps=10, scales=(1.0,), num_draws=2)
NUM_FOLDS = 5

# -- a stage of this experiment ---------------------------------------------------------------------------


@dataclass(frozen=True)
class TrueClass:
    """The class that every row shows."""

    label: int


def apply_true_class(config: TrueClass, patch_params: Params, sample: Sample, values: Values) -> Values:
    """Write `target` [b]."""
    return {"target": torch.full_like(values["image_id"], config.label)}


true_class = fpatch.define(
    "true_class", TrueClass, fpatch.deterministic, apply_true_class, reads=("image_id",), writes=("target",)
)

# -- crops, viewpoints and folds ----------------------------------------------------------------------------


class Crop(NamedTuple):
    """A square crop on disk, the number of its image, and its quads by patch."""

    image: str
    photo: int
    quads: dict[str, Tensor]


class Crops(NamedTuple):
    """Crops around the car and of the background, and the files and viewpoints of the images."""

    folder: Path
    cars: list[Crop]
    grounds: list[Crop]
    photos: list[Path]
    viewpoint: np.ndarray


def cut_crops(data: Path, folder: Path, patches: Sequence[str], key: Tensor) -> Crops:
    """Write the crops of every image that shows one of the patches."""
    whole = targets(data / "warp.csv", size=(PHOTO_PX, PHOTO_PX))
    ids = targets(data / "warp.csv", size=(PHOTO_PX, PHOTO_PX), patches=patches).image_ids.tolist()
    cars, grounds = [], []
    for photo, image_id in enumerate(ids):
        row = {name: value[0] for name, value in whole.batch([image_id]).items()}
        placed = zip(row["quad_patch"].tolist(), row["quads"], row["quad_valid"], strict=True)
        quads = {whole.names[patch]: quad for patch, quad, valid in placed if valid}
        car = find_car([quads[name] for name in PANELS if name in quads])
        chosen = {name: quads[name] for name in patches if name in quads}
        cars.append(_cut(row["scene"], car, folder / f"car-{photo:02d}.png", photo, chosen))
        own = random.fold_in(random.fold_in(key, "grounds"), photo)
        for i, window in enumerate(find_grounds(own, car)):
            squares = place_squares(random.fold_in(random.fold_in(own, "squares"), i), window, len(patches))
            path = folder / f"ground-{photo:02d}-{i}.png"
            grounds.append(_cut(row["scene"], window, path, photo, dict(zip(patches, squares, strict=True))))
    photos = [whole.paths[i] for i in ids]
    return Crops(folder, cars, grounds, photos, find_viewpoints(photos))


def find_car(panels: Sequence[Tensor]) -> tuple[int, int, int]:
    """The window (x, y, side) that holds the whole car, given its panels."""
    corners = torch.cat(list(panels)).round().int()
    (low_x, low_y), (high_x, high_y) = corners.amin(0).tolist(), corners.amax(0).tolist()
    side = min(round(CAR_ZOOM * max(high_x - low_x, high_y - low_y)), PHOTO_PX)
    x, y = (min(max((a - side) // 2, 0), PHOTO_PX - side) for a in (low_x + high_x, low_y + high_y))
    return x, y, side


def find_grounds(key: Tensor, car: tuple[int, int, int]) -> list[tuple[int, int, int]]:
    """Random windows (x, y, side) that do not overlap the car's."""
    side = random.randint(random.fold_in(key, "side"), (1000,), *GROUND_PX)
    corner = (random.uniform(random.fold_in(key, "corner"), (1000, 2)) * (PHOTO_PX - side)[:, None]).long()
    low, high = torch.tensor(car[:2]), torch.tensor(car[:2]) + car[2]
    overlaps = ((corner < high) & (corner + side[:, None] > low)).all(1)
    free = torch.cat([corner, side[:, None]], dim=1)[~overlaps].tolist()
    assert len(free) >= GROUNDS_PER_PHOTO, "the car leaves no room for background crops"
    return free[:GROUNDS_PER_PHOTO]


def place_squares(key: Tensor, window: tuple[int, int, int], count: int) -> Tensor:
    """Quads [count, 4, 2] in a window, about as large as panels: places of patches on the background."""
    x, y, side = window
    corner = random.uniform(random.fold_in(key, "corner"), (count, 2), 0.0, 0.7)
    size = random.uniform(random.fold_in(key, "size"), (count, 1), 0.1, 0.3)
    return box_corners(torch.cat([corner, corner + size], dim=1) * side + torch.tensor([x, y, x, y]))


def _cut(
    scene: Tensor, window: tuple[int, int, int], path: Path, photo: int, quads: Mapping[str, Tensor]
) -> Crop:
    x, y, side = window
    pixels = (scene[:, y : y + side, x : x + side] * 255.0).round().to(torch.uint8)
    crop, scale, offset = letterbox(pixels, (CROP_PX, CROP_PX))
    write_image(path, crop)
    moved = {n: move_points(q - torch.tensor([x, y]), scale, offset) for n, q in quads.items()}
    return Crop(path.name, photo, moved)


def find_viewpoints(photos: Sequence[Path]) -> np.ndarray:
    """The viewpoint of each image: frames of one video without a wide gap between them."""
    order = sorted(range(len(photos)), key=lambda i: (photos[i].parent, int(photos[i].stem)))
    viewpoint = np.zeros(len(photos), dtype=np.int64)
    for before, after in itertools.pairwise(order):
        gap = int(photos[after].stem) - int(photos[before].stem)
        is_near = photos[after].parent == photos[before].parent and gap <= NEAR_FRAMES
        viewpoint[after] = viewpoint[before] + (not is_near)
    return viewpoint


def deal(viewpoint: np.ndarray, num_folds: int = NUM_FOLDS) -> np.ndarray:
    """The fold of each image: viewpoints by size, each to the fold that has the fewest so far."""
    sizes, filled = np.bincount(viewpoint), np.zeros(num_folds, dtype=np.int64)
    fold_of = np.zeros(len(viewpoint), dtype=np.int64)
    for v in np.argsort(-sizes, kind="stable"):
        fold = filled.argmin()
        fold_of[viewpoint == v] = fold
        filled[fold] += sizes[v]
    return fold_of


def write_targets(path: Path, crops: Sequence[Crop], held_out: np.ndarray) -> Path:
    """The placements file of one fold; crops have the same ids in all of them."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["image", "patch", "split", "ulx", "uly", "urx", "ury", "lrx", "lry", "llx", "lly"])
        for crop in crops:
            split = "test" if held_out[crop.photo] else "train"
            for patch, quad in crop.quads.items():
                writer.writerow([crop.image, patch, split, *quad.flatten().tolist()])
    return path


# -- the victim ---------------------------------------------------------------------------------------------


class PresenceNet(nn.Sequential):
    """Images [b, 3, h, w] in 0..1 -> logits [b, 2] of "no toy car" and "toy car"; 60,000 parameters."""

    def __init__(self) -> None:
        layers: list[nn.Module] = []
        for channels, wider, kernel in ((3, 16, 5), (16, 32, 3), (32, 64, 3), (64, 64, 3)):
            convolution = nn.Conv2d(channels, wider, kernel, stride=2, padding=kernel // 2)
            layers += [convolution, nn.GroupNorm(8, wider), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 2))

    def forward(self, images: Tensor) -> Tensor:
        """Logits."""
        return super().forward(4.0 * images - 2.0)


def load_presence(weights: str | Path) -> PresenceNet:
    """The classifier that was saved as safetensors, in evaluation mode and frozen."""
    model = PresenceNet()
    model.load_state_dict(load_file(weights))
    return model.eval().requires_grad_(False)


presence = fpatch.define_loader("presence", load_presence)


def make_augmentation(patches: tuple[str, ...]) -> fpatch.Pipeline:
    """The augmentations of the classifier. Hue is free, so yellow alone is no toy car."""
    return fpatch.pipeline(
        {
            "affine": compose.affine(Range(-45, 45), Range(-15, 15), Range(0.8, 1.3), Range(-0.15, 0.15)),
            "prints": implant.warp(scale=Range(0.8, 2.0), jitter_frac=0.2, names=patches),
            "exposure": compose.exposure(Range(-1.0, 1.0)),
            "contrast": compose.contrast(Range(0.6, 1.5)),
            "saturation": compose.saturation(Range(0.0, 1.5)),
            "hue": compose.hue(Range(-180.0, 180.0)),
            "blur": compose.blur(Range(0.0, 1.0)),
            "noise": compose.read_noise(Range(0.0, 0.05)),
        }
    )


def train_classifier(
    cars: TargetSet, grounds: TargetSet, key: Tensor, num_steps: int, report: Progress
) -> PresenceNet:
    """Train on equally many car and background crops; half of the panels and squares carry a print."""
    half = 12
    augmentation = make_augmentation(cars.names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(int(random.bits(random.fold_in(key, "weights"))))
        model = PresenceNet()
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, weight_decay=1e-2)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, total_steps=num_steps)
    loaders = [Loader(c, random.fold_in(key, i), half) for i, c in enumerate((cars, grounds))]
    answers = torch.tensor([CAR, BACKGROUND]).repeat_interleave(half)
    for step in range(num_steps):
        own = random.fold_in(random.fold_in(key, "step"), step)
        of_cars, of_grounds = (loader.batch(step) for loader in loaders)
        of_grounds["image_id"] += len(cars.paths)
        batch: Values = {n: torch.cat([of_cars[n], of_grounds[n]]) for n in of_cars}
        batch |= mirror(batch["scene"], batch["quads"], random.fold_in(own, "mirror"))
        batch["patch"] = {n: make_prints(random.fold_in(own, n), 2 * half) for n in cars.names}
        sample = augmentation.sample(own, batch)
        printed = random.bernoulli(random.fold_in(own, "printed"), PRINTED_FRAC, batch["quad_valid"].shape)
        sample["prints"]["opacity"] = printed.float()
        seen = augmentation.apply({}, sample, batch, want=["image"])["image"]
        loss = F.cross_entropy(model(seen), answers)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        schedule.step()
        report("training the classifier", step + 1, num_steps, f"loss {loss.item():.4f}")
    return model.eval()


def mirror(scene: Tensor, quads: Tensor, key: Tensor) -> dict[str, Tensor]:
    """Mirror about half of the scenes, quads included."""
    coin = random.bernoulli(key, 0.5, (len(scene), 1, 1, 1))
    mirrored = quads * quads.new_tensor([-1, 1]) + quads.new_tensor([scene.shape[-1], 0])
    return {"scene": torch.where(coin, scene.flip(-1), scene), "quads": torch.where(coin, mirrored, quads)}


def make_prints(key: Tensor, count: int) -> Tensor:
    """Random prints [count, 3, h, w]: flat, blocks or noise, in color or gray."""
    levels = random.uniform(random.fold_in(key, "levels"), (count, 3, SEEN_PX, SEEN_PX))
    sizes = (1, 4, SEEN_PX)
    kinds = torch.stack([F.interpolate(levels[..., :n, :n], size=(SEEN_PX, SEEN_PX)) for n in sizes])
    prints = kinds[random.randint(random.fold_in(key, "kind"), (count,), 0, len(sizes)), torch.arange(count)]
    is_gray = random.bernoulli(random.fold_in(key, "gray"), 0.5, (count, 1, 1, 1))
    return torch.where(is_gray, prints[:, :1], prints)


# -- one fold -----------------------------------------------------------------------------------------------


def make_pipeline(patches: tuple[str, ...], scale: float, weights: Path) -> fpatch.Pipeline:
    """From gray pixels to the classifier's answer; the camera is the same in training and testing."""
    return fpatch.pipeline(
        {
            "pixels": create.pixels({name: (1, PATCH_PX, PATCH_PX) for name in patches}),
            "total_variation": losses.total_variation(),
            "stack": create.stack(3),
            "resize": create.resize({name: (SEEN_PX, SEEN_PX) for name in patches}),
            "affine": compose.affine(Range(-10, 10), Range(-8, 8), Range(0.9, 1.15)),
            "warp": implant.warp(Range(0.95 * scale, 1.05 * scale), jitter_frac=0.03),
            "camera": {
                "exposure": compose.exposure(Range(-0.5, 0.5)),
                "contrast": compose.contrast(Range(0.8, 1.25)),
                "saturation": compose.saturation(Range(0.7, 1.3)),
                "hue": compose.hue(Range(-10.0, 10.0)),
                "noise": compose.read_noise(Range(0.0, 0.02)),
            },
            "victim": infer.classifier(presence(weights)),
            "true_class": true_class(CAR),
            "misclassify": losses.misclassify(margin=MARGIN),
            "hit": node(metrics.class_hit(), phases={"eval"}),
        }
    )


class Trial(NamedTuple):
    """One fold at one scale: its study and run, its held-out rows, and those of held-out background."""

    study: Study
    run: Run
    table: dict[str, np.ndarray]
    grounds: dict[str, np.ndarray]


def run_fold(fold: int, crops: Crops, folder: Path, settings: Settings, report: Progress) -> list[Trial]:
    """Train a classifier, and patches of each scale, on the other folds, and measure on this one."""

    def tell(task: str, done: int, total: int, note: str = "") -> None:
        report(f"fold {fold}: {task}", done, total, note)

    key = random.fold_in(random.fold_in(random.key(settings.seed), "fold"), fold)
    held_out = deal(crops.viewpoint) == fold
    files = [
        write_targets(crops.folder / f"{name}-{fold}.csv", some, held_out)
        for name, some in (("cars", crops.cars), ("grounds", crops.grounds))
    ]
    cars, grounds = (targets(file, size=(CROP_PX, CROP_PX), patches=settings.patches) for file in files)
    seen = (cars.split("train"), grounds.split("train"))
    model = train_classifier(*seen, random.fold_in(key, "classifier"), settings.classifier_steps, tell)
    weights = folder / f"classifier-{fold}.safetensors"
    save_file(model.state_dict(), weights)

    def try_scale(scale: float) -> Trial:
        study = Study(
            name=f"fold-{fold}-scale-{scale:g}",
            data=DataConfig(str(files[0]), (CROP_PX, CROP_PX), patches=settings.patches, validation=None),
            pipeline=make_pipeline(settings.patches, scale, weights),
            objective=ObjectiveConfig({"misclassify": 1.0, "total_variation": 0.5}),
            seed=int(random.bits(random.fold_in(key, "study"))),
            optimizer=fpatch.Optimizer(learning_rate=0.05),
            train=TrainConfig(settings.patch_steps, batch_size=16),
            evaluate=EvaluateConfig(num_draws=settings.num_draws),
            log=LogConfig(str(folder), mlflow=settings.mlflow, experiment="toycar"),
        )
        run = fpatch.train(study, tell)
        fpatch.evaluate_run(run.folder, on_progress=tell)
        own = random.fold_in(key, "grounds")
        with load_trained(run.folder) as trained:
            patches = to_device(run.load_conditions("test"), trained.study.place)
            on_grounds = fpatch.evaluate(trained.pipeline, {}, grounds.split("test"), own, conditions=patches)
        return Trial(study, run, run.load_table("test"), on_grounds.table)

    return [try_scale(scale) for scale in settings.scales]


def make_examples(trial: Trial, num_rows: int = 1) -> list[list[viz.Panel]]:
    """Held-out crops under four conditions, rerun from the logged rows, with the classifier's answers."""
    rows = {name: column[:num_rows] for name, column in trial.table.items()}
    sample = {n.removeprefix("sample/"): c for n, c in rows.items() if n.startswith("sample/")}
    batch = trial.study.data.open().batch(rows["image_id"].tolist(), rows["draw"].tolist())
    pipeline, patches = trial.study.pipeline.at("test"), trial.run.load_conditions("test")
    shown = measure(
        pipeline, patches, fpatch.from_columns(sample), batch, trial.study.evaluate.block, ("image",)
    )

    def panel(condition: str, i: int) -> viz.Panel:
        title, car = TITLES.get(condition, "no patch"), float(shown[condition]["confidence"][i])
        return viz.Panel(shown[condition]["image"][i], f"{title}: toy car {car:.2f}")

    return [[panel(c, i) for c in (NONE, "noise", "flat", PATCH)] for i in range(num_rows)]


# -- all folds ----------------------------------------------------------------------------------------------


class Pooled(NamedTuple):
    """Results over the held-out rows of all folds, at one scale; `lead` in logits, by condition."""

    by_photograph: Success
    by_viewpoint: Success
    lead: dict[str, Rate]
    background: Rate


def pool(trials: Sequence[Trial], viewpoint: np.ndarray) -> Pooled:
    """Rates and leads with their intervals."""
    table = {n: np.concatenate([t.table[n] for t in trials]) for n in trials[0].table}
    grounds = {n: np.concatenate([t.grounds[n] for t in trials]) for n in ("image_id", f"answer/{NONE}")}
    lead = {c: table[f"misclassify/{c}"] - MARGIN for c in (NONE, *CONTROLS, PATCH)}
    lead["noise minus patch"] = lead["noise"] - lead[PATCH]
    return Pooled(
        fpatch.success(table),
        fpatch.success(table | {"image_id": viewpoint[table["image_id"]]}),
        {c: bootstrap_mean(values, table["image_id"]) for c, values in lead.items()},
        wilson(grounds[f"answer/{NONE}"] == BACKGROUND, grounds["image_id"] // GROUNDS_PER_PHOTO),
    )


def run_experiment(data: Path, runs: Path, settings: Settings, report: Progress) -> tuple[Path, list[Pooled]]:
    """Run the folds and pool them by scale, in a new folder under `runs`."""
    start = time.monotonic()
    folder = (runs / f"{time.strftime('%Y%m%d-%H%M%S')}-toycar").resolve()
    crops = cut_crops(data, folder / "crops", settings.patches, random.key(settings.seed))
    folds = [run_fold(fold, crops, folder, settings, report) for fold in settings.folds]
    figure = viz.side_by_side([row for fold in folds for t in fold for row in make_examples(t)], panel_px=240)
    write_image(folder / "examples.png", figure)
    pooled = [pool(trials, crops.viewpoint) for trials in zip(*folds, strict=True)]
    dealt = zip(crops.photos, crops.viewpoint.tolist(), deal(crops.viewpoint).tolist(), strict=True)
    facts = {
        "settings": settings._asdict(),
        "seconds": round(time.monotonic() - start, 1),
        "scales": [
            {
                "scale": scale,
                "by_photograph": p.by_photograph.to_json(),
                "by_viewpoint": p.by_viewpoint.to_json(),
                "lead": {c: rate._asdict() for c, rate in p.lead.items()},
                "background": p.background._asdict(),
            }
            for scale, p in zip(settings.scales, pooled, strict=True)
        ],
        "photographs": [{"path": str(p), "viewpoint": v, "fold": f} for p, v, f in dealt],
    }
    (folder / "summary.json").write_bytes(to_json(facts))
    return folder, pooled


def main(argv: Sequence[str] | None = None) -> None:
    """Read the command line, run, and print the results."""
    parser = argparse.ArgumentParser(description="Hide a toy car from a classifier.")
    parser.add_argument("--data", type=Path, required=True, help="folder with warp.csv and its images")
    parser.add_argument("--runs", type=Path, default=Path("runs"), help="where the results go")
    parser.add_argument("--patches", nargs="+", choices=PANELS, default=PANELS, help="panels that carry one")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--quick", action="store_true", help="one fold, a few steps: does it run?")
    parser.add_argument("--no-mlflow", action="store_true")
    options = parser.parse_args(argv)
    settings = (QUICK if options.quick else Settings())._replace(
        patches=tuple(options.patches), seed=options.seed, mlflow=not options.no_mlflow
    )
    with progress_bars() as report:
        folder, pooled = run_experiment(options.data, options.runs, settings, report)
    for scale, p in zip(settings.scales, pooled, strict=True):
        conditions, over = list(p.by_photograph.rates), p.by_viewpoint.over
        extra = {
            "by viewpoint": [percent(over[c]) if c in over else "" for c in conditions],
            "lead": [f"{p.lead[c].value:.2f}" for c in conditions],
        }
        console.print(success_table(f"held out, scale {scale:g}", p.by_photograph, extra))
        low, high = p.lead["noise minus patch"][1:3]
        say(
            f"lead without patch {p.lead[NONE].value:.2f}; noise minus patch "
            f"{p.lead['noise minus patch'].value:.2f} [{low:.2f}, {high:.2f}]"
        )
    console.print(f"clean accuracy, car crops: {pooled[0].by_photograph.clean}", soft_wrap=True)
    console.print(f"clean accuracy, background crops: {pooled[0].background}", soft_wrap=True)
    for name in ("summary.json", "examples.png"):
        console.print(f"  {folder / name}", soft_wrap=True)


if __name__ == "__main__":
    from toycar import main  # the module by its own name, which configs hold, and not as __main__

    main()
