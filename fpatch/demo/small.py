"""A small world for examples: rendered scenes and a detector, made in a few seconds."""

from pathlib import Path

from fpatch.data import TargetSet, targets
from fpatch.demo.victim import TinyDetector, load_victim, save_victim, train_victim
from fpatch.demo.world.scenes import write_scenes

SPLITS = {"train": 400, "test": 100}
SIZE_HW = (96, 96)


def small_world(folder: str | Path, seed: int = 0) -> tuple[TargetSet, TinyDetector]:
    """Render 500 scenes of a truck and train a detector on 400 of them, or read both from the folder.

    Args:
        folder: The folder of scenes and weights.
        seed: The seed of the scenes and of the detector.

    Returns:
        The scenes, with the splits "train" and "test" and places for the patches "side" and "rear"; and the
        detector, in evaluation mode and with frozen parameters.
    """
    scenes, weights = Path(folder, "scenes"), Path(folder, "detector.safetensors")
    if not scenes.is_dir():
        scenes.parent.mkdir(parents=True, exist_ok=True)
        write_scenes(scenes, seed, SPLITS, (SIZE_HW,), workers=1)
    trucks = targets(
        scenes / "placements.csv", scenes / "objects.csv", size=SIZE_HW, patches=("side", "rear")
    )
    if not weights.is_file():
        train = trucks.split("train")
        batch = train.batch(train.image_ids)
        images = (batch["scene"] * 255).round().byte()
        model = train_victim(images, batch["boxes"], batch["labels"], batch["box_valid"], seed, steps=200)
        save_victim(weights, model)
    return trucks, load_victim(weights)
