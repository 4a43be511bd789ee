"""Plain functions as a user's module holds them, which configs name."""

import torch

from fpatch import random


def wind(patch_params, key, batch, sample=None):
    """Blow the corners sideways by a drawn speed, in pixels."""
    sample = {"speed": random.uniform(key, (), 0.0, 4.0)} if sample is None else sample
    shift = torch.tensor([1.0, 0.0]) * sample["speed"][:, None, None, None]
    return {"quads": batch["quads"] + shift}, sample


def haze(patch_params, key, batch):
    """Lighten the image by a drawn share."""
    share = random.uniform(key, (), 0.0, 0.5)
    level = share[:, None, None, None]
    return {"image": batch["image"] * (1 - level) + level}, {"share": share}


def ink(values, patch_params):
    """The mean of the first patch, as a loss."""
    mean = next(iter(patch_params.values())).mean()
    return {"ink": mean.expand(len(values["image_id"]))}


class Holder:
    def method(self, patch_params, key, batch):
        return {}, {}
