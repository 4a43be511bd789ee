"""Runs side by side: their names, and whether they are measured on the same images in the same way."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fpatch.core.schema import flatten
from fpatch.data import TargetSet
from fpatch.evaluation.columns import tensor_digest
from fpatch.runs.evaluating import Trained
from fpatch.study.study import Study


def folder_names(command: str, folders: Sequence[str | Path]) -> list[str]:
    """Return the names of run folders, which tell the runs apart.

    Raises:
        ValueError: If two are equal.
    """
    names = [Path(folder).resolve().name for folder in folders]
    if len(set(names)) < len(names):
        raise ValueError(
            f"{command}: the names of the run folders must differ, got {names}; give each run once, and "
            "rename one of two folders of one name"
        )
    return names


def check_patches(command: str, runs: Mapping[str, Trained]) -> None:
    """Refuse runs that trained a network and made no patch.

    Raises:
        ValueError: Naming the first of them.
    """
    for name, trained in runs.items():
        if not trained.study.makes_patch:
            raise ValueError(
                f"{command}: {name!r} trained a network and made no patch; leave it out, and measure it by "
                "fpatch evaluate"
            )


def check_same_data(command: str, runs: Mapping[str, Trained], split: str) -> None:
    """Refuse runs whose images, sizes, placements, objects or classes in a split differ.

    Raises:
        ValueError: Naming the first run that differs.
    """
    data = {name: _describe_data(trained.dataset) for name, trained in runs.items()}
    first, *others = data
    for name in others:
        if data[name] != data[first]:
            raise ValueError(
                f"{command}: {name!r} has other images in the {split} split than {first!r}, or other "
                "sizes, placements, objects or classes; train both on one data set"
            )


def _describe_data(dataset: TargetSet) -> tuple[Any, ...]:
    """Return the facts that must be equal for runs to be measured on the same data."""
    ids = dataset.image_ids
    tables = [(name, tensor_digest(table[ids])) for name, table in sorted(dataset.tables.items())]
    images = [dataset.digest(i) for i in ids.tolist()]
    return dataset.size, dataset.names, dataset.class_names, images, tables


def other_settings(
    first: Study, other: Study, named: str, split: str, roles: Sequence[str] = ("victim", "loss")
) -> list[str]:
    """Return a sentence if two studies differ in more than their patches and the stages of some roles.

    Their rates then differ for other reasons, such as a darker camera.

    Args:
        first: The study whose settings count.
        other: The study that is compared with it.
        named: The name of the first.
        split: The phase that is compared.
        roles: The roles of the stages that may differ.
    """

    def settings(study: Study) -> dict[str, Any]:
        nodes = study.pipeline.at(split)
        shared = [
            path
            for path, n in nodes.items()
            if n.stage.definition.role not in roles and path not in nodes.parameterizations
        ]
        return flatten({path: nodes.config[path] for path in shared})

    before, here = settings(first), settings(other)
    said = []
    if differing := [name for name in {**before, **here} if before.get(name) != here.get(name)]:
        name, more = differing[0], len(differing) - 1
        what = f"pipeline.{name} is {here.get(name)!r}, but {before.get(name)!r} in {named}"
        more = f", and {more} other settings differ" if more else ""
        than = "the victim" if "victim" in roles else "the patch"
        said.append(f"{what}{more}: its rates differ for more reasons than {than}")
    for name in ("metric", "num_draws"):
        was, now = getattr(first.evaluate, name), getattr(other.evaluate, name)
        if was != now:
            said.append(f"evaluate.{name} is {now!r} in its study; {was!r}, that of {named}, counts for all")
    return said


def titles_of(studies: Mapping[str, str]) -> dict[str, str]:
    """Return the study's name for each run folder; the rest of the folder's name tells equal ones apart."""
    counts = Counter(studies.values())
    return {
        folder: study if counts[study] == 1 else f"{study} ({folder.removesuffix(f'-{study}')})"
        for folder, study in studies.items()
    }
