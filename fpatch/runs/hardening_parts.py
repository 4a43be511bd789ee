"""The parts of a hardening on disk: each is kept when it is done, and read when the hardening continues.

A part is bound to the settings, the data and the weights from which it was made, so that a hardening that
was stopped never continues from others.
"""

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from fpatch.core.files import digest
from fpatch.core.inputs import parse_json, read_text
from fpatch.core.names import typed
from fpatch.core.tree import tensor_bytes
from fpatch.data import TargetSet
from fpatch.log.values import to_json
from fpatch.ops.intervals import Rate
from fpatch.runs.checkpoints import tensors_digest
from fpatch.runs.files import read_tensors, write_file
from fpatch.runs.hardened import Curve
from fpatch.runs.locks import RunError
from fpatch.runs.record import describe_data, describe_images
from fpatch.study.setup import Setup
from fpatch.study.study import Study

Part = tuple[list[dict[str, Tensor]], list[Curve]]
"""The parameters that a part of the work made, and its validations."""


def describe_inputs(study: Study, made: Setup) -> dict[str, str]:
    """Describe by digests what a study reads: tables, classes, images, and the parameters it begins with."""
    images = digest(to_json({"images": _contents(made.dataset)}))
    return {
        **describe_data(study, made.dataset),
        "images": images,
        "start": tensors_digest(made.initial.all_params),
    }


def _contents(dataset: TargetSet) -> list[dict[str, Any]]:
    """Describe the images; the time of a change, which a copy does not keep, is left out."""
    return [{n: v for n, v in one.items() if n != "modified_ns"} for one in describe_images(dataset)]


class Parts:
    """The parts in `steps/`, and `inputs.json`, the digests of all that they were made from.

    Raises:
        RunError: If the folder was begun with other data or weights.
    """

    def __init__(self, folder: Path, inputs: Mapping[str, Mapping[str, str]]) -> None:
        self.folder = folder
        path = folder / "inputs.json"
        if not path.is_file():
            if any((folder / "steps").glob("*.safetensors")):
                raise RunError(f"{typed(folder)}: it lacks inputs.json; restore it, or begin a new hardening")
            write_file(path, to_json(inputs))
        recorded = parse_json(read_text(path))
        for study, own in inputs.items():
            for name, value in own.items():
                if recorded[study].get(name) != value:
                    raise RunError(
                        f"{typed(folder)}: the {_TITLES.get(name, name)} of the {study} have changed since "
                        "the hardening began; restore them, or begin a new hardening"
                    )
        self._bound = digest((folder / "config.json").read_bytes() + path.read_bytes())

    def keep(self, name: str, make: Callable[[], Part]) -> Part:
        """Read a part that is done, or do it and keep it.

        Raises:
            RunError: If the file of the part is broken, or that of another hardening.
        """
        path = self.folder / "steps" / f"{name}.safetensors"
        if not path.is_file():
            params, curves = make()
            named = {f"{i}:{key}": value for i, one in enumerate(params) for key, value in one.items()}
            facts = {"curves": json.dumps(curves), "part": name, "inputs": self._bound}
            write_file(path, tensor_bytes(named, {**facts, "digest": _digest(facts, named)}))
            return params, curves
        tensors, facts = read_tensors(path.parent, path.name)
        recorded = facts.pop("digest", None)
        if facts.get("inputs") != self._bound or facts.get("part") != name:
            raise RunError(f"{path} is a part of another hardening; remove it, and it is made again")
        if recorded != _digest(facts, tensors):
            raise RunError(f"{path} is broken (not the recorded digest); remove it, and it is made again")
        found: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            number, _, own = key.partition(":")
            found.setdefault(int(number), {})[own] = value
        curves = [
            Curve(victim, step, Rate(*clean), Rate(*robust))
            for victim, step, clean, robust in json.loads(facts["curves"])
        ]
        return [found[i] for i in sorted(found)], curves


def _digest(facts: Mapping[str, str], tensors: Mapping[str, Tensor]) -> str:
    return digest((json.dumps(facts, sort_keys=True) + tensors_digest(tensors)).encode())


_TITLES = {"photographs": "names or sizes of the images", "start": "parameters at the start"}
