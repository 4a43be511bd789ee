"""A small world for first trials: rendered scenes and a detector, made in a few seconds."""

from fpatch.core.progress import silent
from fpatch.data import TargetSet
from fpatch.demo.study import Size, cache_folder, cached_victim, open_scenes
from fpatch.demo.victim import TinyDetector, load_victim
from fpatch.demo.world.scenes import cached_scenes
from fpatch.runtime.execution import with_threads

SMALL = Size(
    {"train": 200, "test": 80}, ((96, 96),), victim_steps=120, num_victims=1, num_steps=100, sides=()
)


def small_world(size: Size = SMALL, seed: int = 0) -> tuple[TargetSet, TinyDetector]:
    """Render scenes of a truck and train a detector on them; read both from the cache if it has them.

    The cache is that of `fpatch demo`, whose detectors are trained longer: this one is good enough for a
    trial, and easily fooled.

    Args:
        size: Number of scenes by split, their size in pixels and the training steps of the detector.
        seed: Seed of the scenes and of the detector.

    Returns:
        scenes: Target set with quads for the patches "side" and "rear".
        detector: In evaluation mode, with frozen parameters.

    Example:
        >>> from dataclasses import replace
        >>> from fpatch.demo.small import SMALL, small_world
        >>> trucks, detector = small_world(replace(SMALL, splits={"train": 4, "test": 2}, victim_steps=1))
        >>> trucks.split("test").batch([4])["scene"].shape, detector.training
        (torch.Size([1, 3, 96, 96]), False)
    """
    cache = cache_folder()
    scenes = cached_scenes(cache, seed, size.splits, size.sizes_hw, workers=1)
    with with_threads(1):  # the same weights on every number of cores, and soon on a busy machine
        weights = cached_victim(cache, scenes, size, seed, "detector", silent)
    return open_scenes(scenes, size), load_victim(weights)
