"""Images that are not held out: one split for two phases, copies of an image in two, and misspelt splits."""

from collections import Counter, defaultdict
from collections.abc import Iterator
from pathlib import Path

from fpatch.core.files import file_digest
from fpatch.data import TargetSet
from fpatch.study.study import Study

_MOST_BYTES = 4 * 2**30
"""Contents of files of one size are compared up to this sum."""

_WHY = {
    ("train", "validation"): "the best checkpoint is chosen by images that the {trained} was trained on",
    ("train", "test"): "the {trained} is measured on images that it was trained on",
    ("validation", "test"): "the best checkpoint is chosen by images that it is measured on",
}


def find_leaks(study: Study, dataset: TargetSet) -> Iterator[tuple[str, str]]:
    """Yield a setting of the data and a sentence for each way in which images are not held out.

    Args:
        study: The study.
        dataset: The images of all splits.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.leaks import find_leaks
        >>> study = tiny_study(tempfile.mkdtemp(), {"data.test": "train"})
        >>> for where, sentence in find_leaks(study, study.data.open()):
        ...     print(where, sentence.partition(";")[0])
        data.test it is 'train', as data.train is: the patch is measured on images that it was trained on
    """
    splits = {"train": study.data.train, "validation": study.data.validation, "test": study.data.test}
    for (one, other), why in _WHY.items():
        if splits[one] is not None and splits[one] == splits[other]:
            what = f"it is {splits[other]!r}, as data.{one} is: {why.format(trained=study.trained)}"
            yield f"data.{other}", f"{what}; give the two phases different splits"
    used = {split for split in splits.values() if split is not None}
    for where, what, why in _find_copies(dataset, splits):
        put = "leave the copies out, or put them into one split"
        yield where, f"{what}: {why.format(trained=study.trained)}; {put}"
    for name, count in Counter(dataset.splits).items():
        if name not in used and (meant := _nearest(name, used)) is not None:
            what = f"{count} of {len(dataset.paths)} images are in the split {name!r}, which no phase reads"
            yield "data.placements", f"{what}; did you mean {meant!r}?"


def find_shared(victim: Study, own: TargetSet, attack: Study, attacked: TargetSet) -> Iterator[str]:
    """Yield a sentence for each split on which an attack is measured, and whose images train its victim.

    Args:
        victim: The study that trains the victim.
        own: Its images.
        attack: The study of the attack.
        attacked: Its images.

    Example:
        >>> import tempfile
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.study.leaks import find_shared
        >>> study = tiny_study(tempfile.mkdtemp(), {"data.train": "test"})
        >>> for sentence in find_shared(study, study.data.open(), study, study.data.open()):
        ...     print(sentence.partition(" (")[2])
        and 3 more): the victim is measured on images that it was trained on; give it other images
    """
    trained = [p for p, split in zip(own.paths, own.splits, strict=True) if split == victim.data.train]
    for phase in ("validation", "test"):
        split = getattr(attack.data, phase)
        held = [p for p, name in zip(attacked.paths, attacked.splits, strict=True) if name == split]
        pairs: list[tuple[Path, Path]] = []
        for copies in _equal_files([*((p, "train") for p in trained), *((p, phase) for p in held)]):
            first = next(path for path, own_phase in copies if own_phase == "train")
            pairs += [(first, path) for path, own_phase in copies if own_phase == phase]
        if pairs:
            a, b = pairs[0]
            more = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
            yield (
                f"{b} of the attack's data.{phase} has the content of {a}, which trains the victim{more}: "
                "the victim is measured on images that it was trained on; give it other images"
            )


def _find_copies(dataset: TargetSet, splits: dict[str, str | None]) -> Iterator[tuple[str, str, str]]:
    """Yield a setting, the images with equal content in two splits that are read, and why it matters."""
    phases = {split: phase for phase, split in reversed(splits.items()) if split is not None}
    files = zip(dataset.paths, dataset.splits, strict=True)
    found: dict[tuple[str, str], list[tuple[Path, Path]]] = defaultdict(list)
    for copies in _equal_files([(path, phases[split]) for path, split in files if split in phases]):
        first = dict(reversed([(phase, path) for path, phase in copies]))
        for one, other in _WHY:
            if one in first:
                found[one, other] += [(first[one], path) for path, phase in copies if phase == other]
    for (one, other), pairs in found.items():
        if not pairs:
            continue
        a, b = pairs[0]
        what = f"{b} has the content of {a}, an image of data.{one}"
        more = f" (and {len(pairs) - 1} more)" if len(pairs) > 1 else ""
        yield f"data.{other}", f"{what}{more}", _WHY[one, other]


def _equal_files(files: list[tuple[Path, str]]) -> Iterator[list[tuple[Path, str]]]:
    """Yield the files of equal content; only those are read whose size another phase's file has."""
    by_size: dict[int, list[tuple[Path, str]]] = defaultdict(list)
    for path, phase in files:
        if path.is_file():
            by_size[path.stat().st_size].append((path, phase))
    alike = {size: group for size, group in by_size.items() if len({phase for _, phase in group}) > 1}
    if sum(size * len(group) for size, group in alike.items()) > _MOST_BYTES:
        return
    for group in alike.values():
        by_content: dict[str, list[tuple[Path, str]]] = defaultdict(list)
        for path, phase in group:
            by_content[file_digest(path)].append((path, phase))
        yield from (copies for copies in by_content.values() if len({phase for _, phase in copies}) > 1)


def _nearest(name: str, used: set[str]) -> str | None:
    """Return the split that is read and that a name was meant to be; None if it is a name of its own.

    A name that differs in case or in the order of its letters was meant to be another one; "test2" was not.
    """
    return next((s for s in sorted(used) if sorted(s.casefold()) == sorted(name.casefold())), None)
