"""Images, CSV tables of placements and objects, and the loader."""

from fpatch.data.images import (
    image_digest,
    image_file,
    letterbox,
    move_boxes,
    move_points,
    read_image,
    write_image,
)
from fpatch.data.loader import Loader, indices, rows
from fpatch.data.target_set import Dataset, TargetSet, draws
from fpatch.data.targets import targets

__all__ = [
    "Dataset",
    "Loader",
    "TargetSet",
    "draws",
    "image_digest",
    "image_file",
    "indices",
    "letterbox",
    "move_boxes",
    "move_points",
    "read_image",
    "rows",
    "targets",
    "write_image",
]
