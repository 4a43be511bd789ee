"""Scenes: images decoded and letterboxed to one size, in threads, and kept in memory or on a device."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import UInt8
from torch import Tensor

from fpatch.data.decoding import decode_pil, read_bytes
from fpatch.data.images import image_digest, letterbox

_MAX_THREADS = 8


class Scenes:
    """The scenes of image files, as bytes, by image id; each file is read at its first use.

    Attributes:
        held: The scenes kept, each with the SHA-256 of its file.
    """

    def __init__(
        self,
        sizes_hw: dict[Path, tuple[int, int]],
        size: tuple[int, int],
        resident: Literal["device", "host", "disk"],
    ) -> None:
        """Name the files; none is read.

        Args:
            sizes_hw: Height and width of each file, in pixels, in the order of image ids.
            size: Height and width of the scenes, in pixels.
            resident: The place where scenes are kept; "disk" reads the file at every use.
        """
        self._paths, self._sizes_hw = tuple(sizes_hw), tuple(sizes_hw.values())
        self._size, self._resident = size, resident
        self.held: dict[int, tuple[UInt8[Tensor, "3 h w"], str]] = {}

    def __call__(
        self, image_ids: Sequence[int], device: torch.device | str | None
    ) -> UInt8[Tensor, "b 3 h w"]:
        """Return scenes, on the device if they are resident there, else in memory.

        Raises:
            FileNotFoundError: If a file does not exist any more.
            ValueError: If a file cannot be read, or its size has changed.
        """
        missing = [i for i in dict.fromkeys(image_ids) if i not in self.held]
        read = {}
        if missing:
            with ThreadPoolExecutor(min(_MAX_THREADS, len(missing), os.cpu_count() or 1)) as pool:
                read = dict(zip(missing, pool.map(self._read, missing), strict=True))
        if self._resident == "device":  # a synchronous copy: any stream may read it later
            read = {i: (scene.to(device), digest) for i, (scene, digest) in read.items()}
        if self._resident != "disk":
            self.held.update(read)
        found = [read[i][0] if i in read else self.held[i][0] for i in image_ids]
        return torch.stack([scene.to(device) for scene in found] if self._resident == "device" else found)

    def digest(self, image_id: int) -> str:
        """Return the SHA-256 of a file: of the content that was read, if its scene is kept."""
        return self.held[image_id][1] if image_id in self.held else image_digest(self._paths[image_id])

    def _read(self, image_id: int) -> tuple[UInt8[Tensor, "3 h w"], str]:
        path = self._paths[image_id]
        data = read_bytes(path)
        image = decode_pil(data, path)
        if (image.height, image.width) != self._sizes_hw[image_id]:
            raise ValueError(
                f"{path}: the image is {[image.height, image.width]} px, but its header said "
                f"{list(self._sizes_hw[image_id])}; it has changed, or its EXIF follows the pixels: "
                "save it again and start again"
            )
        return letterbox(image, self._size)[0], hashlib.sha256(data).hexdigest()
