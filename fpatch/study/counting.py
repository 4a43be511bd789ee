"""The training images that a loss term does not count, because they have no object."""

from collections.abc import Iterator
from typing import NamedTuple

import torch

from fpatch.study.setup import Setup
from fpatch.study.study import Study


class Uncounted(NamedTuple):
    """A weighted term that does not count some of the training images.

    Attributes:
        term: The loss term.
        num: The training images that it does not count.
        total: All training images.
    """

    term: str
    num: int
    total: int

    def __str__(self) -> str:
        share = f"{100 * self.num / self.total:.0f} %"
        return (
            f"{self.num} of {self.total} training images ({share}) have no object for the loss term "
            f"{self.term!r}; they are left out of its mean"
        )


def find_uncounted(study: Study, parts: Setup) -> Iterator[Uncounted]:
    """Yield each weighted term that does not count some of the training images.

    Stages that move boxes may lose more objects later; the records of training count those too.

    Raises:
        ValueError: If a term counts no image at all.
    """
    dataset = parts.dataset.split(study.data.train)
    for term, sources in parts.objective.sources.items():
        names = {source.name for source in sources}
        if not study.objective.weights.get(term) or not names <= set(dataset.tables):
            continue
        masks = [dataset.tables[name][dataset.image_ids].flatten(1).any(1) for name in names]
        num, total = int((~torch.stack(masks).any(0)).sum()), len(dataset)
        if num == total:
            raise ValueError(
                f"objective.weights: none of the {total} training images has an object for the loss term "
                f"{term!r} ({', '.join(sorted(names))}); add objects to the data, or leave the term out"
            )
        if num:
            yield Uncounted(term, num, total)
