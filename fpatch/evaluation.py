"""Measure a patch against its controls on the same samples.

A condition is a set of patches: the trained one, noise, a flat print, the patch's own pixels shuffled, and
any picture of the user's. They replace the *output of the parameterization*, so that all pass the same print,
size, place and camera. The condition "none" is the trained patch with every opacity 0.

Rows run in blocks of a fixed number, one condition per block, because a network's rows have other last bits
in a batch of another size. `measure` is the only code that does so; `evaluate` hands it fresh samples and
`replay` hands it logged ones.
"""

import hashlib
import platform
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import numpy as np
import optree
import PIL
import torch
import torch.nn.functional as F
from torch import Tensor

from fpatch import __version__, random
from fpatch.checks import check_number
from fpatch.color import luma
from fpatch.columns import to_columns
from fpatch.data import Dataset, rows
from fpatch.graph import Pipeline, control
from fpatch.loop import take_rows
from fpatch.stage import Summary, row_keys
from fpatch.tree import device_of, place
from fpatch.types import Batch, Params, Sample, Values

PATCH, NONE = "patch", "none"
"""The conditions that every evaluation has: the trained patch, and no patch."""
CONTROLS = ("noise", "flat", "shuffled")

Patches = Mapping[str, Any]
"""What the parameterizations wrote: names to pytrees of patches."""


class Execution(NamedTuple):
    """What images and results depend on beside their sample, in the last bits.

    Attributes:
        block: Rows that run together.
        threads: Threads of the math library.
        cpu: Instruction set that it chose.
        device: Where it ran: "cpu", or the name of a GPU.
        torch: Version.
        torchvision: Version.
        numpy: Version.
        pillow: Version.
        python: Version.
        fpatch: Version.
    """

    block: int
    threads: int
    cpu: str
    device: str
    torch: str
    torchvision: str
    numpy: str
    pillow: str
    python: str
    fpatch: str

    @staticmethod
    def current(block: int, device: str = "cpu") -> "Execution":
        """This process's."""
        import torchvision  # takes a second, and most victims do without

        return Execution(
            block=block,
            threads=torch.get_num_threads(),
            cpu=torch.backends.cpu.get_cpu_capability(),
            device=device,
            torch=torch.__version__,
            torchvision=torchvision.__version__,
            numpy=np.__version__,
            pillow=PIL.__version__,
            python=platform.python_version(),
            fpatch=__version__,
        )

    def differences(self, other: "Execution") -> list[str]:
        """What is not the same, a sentence each."""
        pairs = zip(self._asdict().items(), other, strict=True)
        return [
            f"{name}: {mine} was recorded, {theirs} is here"
            for (name, mine), theirs in pairs
            if mine != theirs
        ]

    @contextmanager
    def recreated(self, device: str = "cpu") -> Iterator[list[str]]:
        """Run as recorded, as far as this process can; yields what is not the same, a sentence each.

        Args:
            device: Where it will run.
        """
        threads = torch.get_num_threads()
        torch.set_num_threads(self.threads)
        try:
            yield self.differences(Execution.current(self.block, device))
        finally:
            torch.set_num_threads(threads)


def make_patches(pipeline: Pipeline, patch_params: Params) -> Patches:
    """What the parameterizations of a pipeline write for these parameters."""
    values: Values = {}
    for path in pipeline.parameterizations:
        n = pipeline[path]
        written = n.stage.written(patch_params, {}, n.inputs(values))
        values |= {n.writes[own]: value for own, value in written.items()}
    return optree.tree_map(lambda x: x.detach(), values)  # type: ignore[return-value]


def check_control_name(field: str, name: str) -> None:
    """Refuse a name that another condition has, or that would look like something else in a table.

    Raises:
        ValueError: With the name.
    """
    taken = (PATCH, NONE, *CONTROLS, "delta", "clean")
    if name in taken or not name or "/" in name:
        raise ValueError(
            f"{field}: a control cannot be called {name!r}; choose a name without '/' that is none of "
            f"{', '.join(taken)}"
        )


def make_controls(
    patches: Patches, key: Tensor, pictures: Mapping[str, Tensor] | None = None
) -> dict[str, Patches]:
    """Benign prints of each patch's size: uniform noise, its mean color, its own pixels in random order.

    Args:
        patches: What the parameterizations wrote.
        key: Of the noise and the order of pixels, from which each patch has its own by its name.
        pictures: Further prints, [3, h, w] in 0..1 by the name of the control; every patch becomes the
            picture, stretched to its size, in gray where it is.
    """
    for name in pictures or {}:
        check_control_name("make_controls(pictures)", name)
    on_host = place(patches, "cpu")  # whose bits they have on every device
    paths, leaves, tree = optree.tree_flatten_with_path(on_host)
    made: dict[str, list[Tensor]] = {name: [] for name in (*CONTROLS, *(pictures or {}))}
    for path, patch in zip(paths, leaves, strict=True):
        own = key
        for segment in path:
            own = random.fold_in(own, str(segment))
        order = random.permutation(random.fold_in(own, "shuffled"), patch.shape[-2] * patch.shape[-1])
        made["noise"].append(random.uniform(random.fold_in(own, "noise"), tuple(patch.shape)))
        made["flat"].append(patch.mean((-2, -1), keepdim=True).expand_as(patch).contiguous())
        made["shuffled"].append(patch.flatten(-2)[..., order].unflatten(-1, patch.shape[-2:]))
        for name, picture in (pictures or {}).items():
            made[name].append(_fit_picture(picture, patch))
    controls = {name: optree.tree_unflatten(tree, entries) for name, entries in made.items()}
    return place(controls, device_of(patches))


def _fit_picture(picture: Tensor, patch: Tensor) -> Tensor:
    """A picture [3, h, w] in the shape of a patch [..., c, h, w]."""
    colored = picture if patch.shape[-3] == 3 else luma(picture)
    size = [int(side) for side in patch.shape[-2:]]
    fitted = F.interpolate(colored[None], size, mode="bilinear", antialias=True)[0].clamp(0.0, 1.0)
    return fitted.expand_as(patch).contiguous()


def make_conditions(
    pipeline: Pipeline, patch_params: Params, key: Tensor, pictures: Mapping[str, Tensor] | None = None
) -> dict[str, Patches]:
    """The trained patch first, then no patch, then the benign prints of `make_controls`."""
    patches = make_patches(pipeline, patch_params)
    return {PATCH: patches, NONE: patches, **make_controls(patches, key, pictures)}


def metric_names(pipeline: Pipeline) -> tuple[str, ...]:
    """What the metric and loss nodes of a pipeline write: one number per row, or per object, each."""
    measured = (n for n in pipeline.values() if n.stage.definition.role in ("loss", "metric"))
    return tuple(dict.fromkeys(name for n in measured for name in n.writes.values()))


def split_group(metric: str) -> tuple[str, str]:
    """The group of a metric, with its slash, and its own name: ("victims/small/", "found"); ("", "found")."""
    group, slash, own = metric.rpartition("/")
    return group + slash, own


def measure(
    pipeline: Pipeline,
    conditions: Mapping[str, Patches],
    sample: Sample,
    batch: Batch,
    block: int,
    keep: Sequence[str] = (),
) -> dict[str, Values]:
    """Results of some rows under every condition, at most one block of them, on the host.

    It runs where the patches are, and the networks of the pipeline must be there too.

    Args:
        pipeline: Of the evaluated phase.
        conditions: Patches by condition; "none" is run with every opacity 0.
        sample: Rows [n, ...].
        batch: The same rows, n <= block.
        block: Rows that run together; a short block repeats its last row.
        keep: Further names to return.

    Returns:
        Per condition `{metric: [n] or [n, m], "digest": [n strings], "seen": {path: {name: [n, ...]}}, name
        kept: [n, ...]}`, where "seen" is what metrics with a summary read.
    """
    n = len(batch["image_id"])
    assert n <= block, "measure runs one block"
    body = pipeline.without(*pipeline.parameterizations)
    metrics = metric_names(pipeline)
    filled, padded = place(_pad_rows((sample, batch), block), device_of(conditions))
    results: dict[str, Values] = {}
    for name, patches in conditions.items():
        drawn = control(filled) if name == NONE else filled  # type: ignore[arg-type]
        with torch.no_grad():
            values, seen = body.observe(
                _NoParams(),
                drawn,  # type: ignore[arg-type]
                {**padded, **patches},  # type: ignore[dict-item]
                want=(*metrics, "image", *keep),
            )
        values, seen = place(take_rows((values, seen), slice(0, n)), "cpu")
        digests = [tensor_digest(image) for image in values["image"]]
        results[name] = values | {"digest": digests, "seen": seen}
    return results


def evaluate(
    pipeline: Pipeline,
    patch_params: Params,
    dataset: Dataset,
    key: Tensor,
    *,
    num_draws: int = 1,
    block: int = 16,
    conditions: Mapping[str, Patches] | None = None,
    pictures: Mapping[str, Tensor] | None = None,
    edit: Callable[[Sample], Sample] | None = None,
    keep: Sequence[str] = (),
    progress: Callable[[int, int], None] | None = None,
) -> "Evaluation":
    """Run every photograph of a data set under every condition.

    Args:
        pipeline: Of the evaluated phase; its metric nodes say what is measured.
        patch_params: What was trained.
        dataset: The photographs.
        key: What samples are drawn from; it does not depend on the step of training.
        num_draws: Samples per photograph.
        block: Rows that run together, part of the recorded execution.
        conditions: By default those of `make_conditions`.
        pictures: Further controls for those, [3, h, w] by name.
        edit: Changes every sample, e.g. by `override`, to ask what if.
        keep: Further values to keep for all rows, e.g. "detections".
        progress: Called with the rows done and their total.

    Returns:
        The table of rows, that of objects, what was kept and what was gathered.
    """
    check_number("evaluate.block", block, 1)
    made = (
        make_conditions(pipeline, patch_params, random.fold_in(key, "control"), pictures)
        if conditions is None
        else conditions
    )
    image_id, draw = rows(dataset.image_ids, num_draws)
    parts, objects, kept = [], [], []
    states = {c: init_states(pipeline) for c in made}
    for part in blocks(len(image_id), block):
        batch = dataset.batch(image_id[part], draw[part], device_of(made))
        keys = row_keys(key, batch)
        sample = pipeline.sample(keys, batch)
        sample = sample if edit is None else edit(sample)
        results = measure(pipeline, made, sample, batch, block, keep)
        parts.append(_describe_rows(dataset, batch, keys, sample) | result_columns(results))
        objects.append(object_columns(results, batch, metric_names(pipeline)))
        states = {c: update_states(pipeline, states[c], values["seen"]) for c, values in results.items()}
        kept.append({c: {name: values[name] for name in keep} for c, values in results.items()})
        if progress is not None:
            progress(part.stop, len(image_id))
    table, long = ({n: np.concatenate([p[n] for p in ps]) for n in ps[0]} for ps in (parts, objects))
    whole: Any = optree.tree_map(lambda *xs: torch.cat(xs), *kept) if keep else {}
    summaries = {c: compute_states(pipeline, state) for c, state in states.items()}
    return Evaluation(table, made, whole, long, states, summaries)


class Evaluation(NamedTuple):
    """What an evaluation leaves.

    Attributes:
        table: Columns of equal length, one entry per row: `image_id`, `draw`, `path`, `photograph` (digest),
            `key/0`, `key/1`, `sample` (digest), `sample/<node>/<field>`, `<metric>/<condition>`,
            `<metric>/delta` (patch minus none), `<metric>/delta/<control>`, `digest/<condition>`.
        conditions: The patches that were shown.
        kept: `{condition: {name: [n, ...]}}`.
        objects: Columns of equal length, one entry per object, of the metrics that write one number each
            [n, m] such as `metrics.object_hit`; see `object_columns`. Empty without any.
        states: `{condition: {path: state}}` of the metrics that gather rows; those of two shards are one by
            `merge_states`.
        summaries: `{condition: {path/name: number}}` of those metrics.
    """

    table: dict[str, np.ndarray]
    conditions: Mapping[str, Patches]
    kept: dict[str, dict[str, Any]]
    objects: dict[str, np.ndarray] = {}  # noqa: RUF012 (a NamedTuple's default, which nothing writes to)
    states: dict[str, dict[str, Any]] = {}  # noqa: RUF012
    summaries: dict[str, dict[str, float]] = {}  # noqa: RUF012


# -- metrics that gather rows ------------------------------------------------------------------------------


def init_states(pipeline: Pipeline) -> dict[str, Any]:
    """The state of every metric with a summary before any row, by path."""
    return {path: summary.init(config) for path, summary, config in _summaries(pipeline)}


def update_states(
    pipeline: Pipeline, states: Mapping[str, Any], seen: Mapping[str, Values]
) -> dict[str, Any]:
    """The states with some rows more, as `measure` gives them under "seen"."""
    updated = {}
    for path, summary, config in _summaries(pipeline):
        try:
            updated[path] = summary.update(config, states[path], seen[path])
        except (ValueError, TypeError, RuntimeError) as error:
            error.add_note(f"in node {path!r}: {pipeline[path].stage!r}")
            raise
    return updated


def merge_states(pipeline: Pipeline, a: Mapping[str, Any], b: Mapping[str, Any]) -> dict[str, Any]:
    """The states of the rows of one shard followed by those of another."""
    return {p: summary.merge(config, a[p], b[p]) for p, summary, config in _summaries(pipeline)}


def compute_states(pipeline: Pipeline, states: Mapping[str, Any]) -> dict[str, float]:
    """What the states amount to: `{path/name: number}`."""
    return {
        f"{path}/{name}": float(value)
        for path, summary, config in _summaries(pipeline)
        for name, value in summary.compute(config, states[path]).items()
    }


def _summaries(pipeline: Pipeline) -> Iterator[tuple[str, Summary, Any]]:
    for path in pipeline.summaries:
        stage = pipeline[path].stage
        assert stage.definition.summary is not None
        yield path, stage.definition.summary, stage.config


# -- looking closely ---------------------------------------------------------------------------------------


class Diagnosis(NamedTuple):
    """A batch looked at closely.

    Attributes:
        phase: Of the pipeline.
        shown: What the stages have to show: images [c, h, w], scalars, and arrays [n] for histograms.
        patched: All values with the patch.
        without: All values with every opacity 0.
    """

    phase: str
    shown: dict[str, Tensor]
    patched: Values
    without: Values


def diagnose(pipeline: Pipeline, patch_params: Params, sample: Sample, batch: Batch, phase: str) -> Diagnosis:
    """Let every stage that has a `show` look at what it read and wrote, with the patch and without.

    It runs where the parameters are; what comes out is on the host.

    Args:
        pipeline: Of the phase.
        patch_params: What was trained.
        sample: Rows [b, ...].
        batch: The same rows.
        phase: Its name.
    """
    shown: dict[str, Tensor] = {}
    patched, without = dict(batch), dict(batch)
    device = device_of(patch_params)
    given = place(batch, device)
    with torch.no_grad():
        traces = (pipeline.trace(patch_params, place(s, device), given) for s in (sample, control(sample)))
        with_patch, with_none = place(tuple(traces), "cpu")
    for path, n in pipeline.items():
        patched.update(with_patch[path])
        without.update(with_none[path])
        if n.stage.definition.show is not None:
            names = {**n.reads, **n.writes}
            views = [{own: v[r] for own, r in names.items() if r in v} for v in (patched, without)]
            for name, value in n.stage.definition.show(n.stage.config, *views).items():
                shown[f"{path}/{name}"] = torch.as_tensor(value)
    return Diagnosis(phase, shown, patched, without)


def result_columns(results: Mapping[str, Values]) -> dict[str, np.ndarray]:
    """Columns of results: `<metric>/<condition>`, deltas of the patch, `digest/<condition>`."""
    columns: dict[str, np.ndarray] = {}
    metrics = [n for n, v in results[PATCH].items() if isinstance(v, Tensor) and v.ndim == 1]
    for metric in metrics:
        columns |= _paired(metric, {c: values[metric].cpu().numpy() for c, values in results.items()})
    return columns | {f"digest/{c}": np.array(values["digest"]) for c, values in results.items()}


OBJECT = "object_"
"""How the metrics of objects start; the table of objects leaves it out."""


def object_columns(
    results: Mapping[str, Values], batch: Batch, metrics: Sequence[str]
) -> dict[str, np.ndarray]:
    """Columns of the metrics that write [n, m], one entry per object, row after row.

    They are `image_id`, `draw`, `object` (its place among the m), `label` (if something writes
    `object_label`), and `<metric>/<condition>` with deltas as in `result_columns`, `object_found` as `found`.
    Places that `object_valid` says are empty without a patch are left out.
    """
    every = {n: results[PATCH][n] for n in metrics if results[PATCH][n].ndim == 2}
    if not every:
        return {}
    rows, places = next(iter(every.values())).shape
    if odd := [n for n, v in every.items() if v.shape[1] != places]:
        raise ValueError(
            f"metrics of objects must have one number of places: {odd[0]!r} has {every[odd[0]].shape[1]}, "
            f"{next(iter(every))!r} has {places}; evaluate them apart"
        )
    # several victims have the same objects, and say so each in its group
    own = {n: split_group(n)[1].removeprefix(OBJECT) for n in every}
    valid = next((n for n in every if own[n] == "valid"), None)
    label = next((n for n in every if own[n] == "label"), None)
    everywhere = torch.ones(rows, places, dtype=torch.bool)
    real = everywhere if valid is None else results.get(NONE, results[PATCH])[valid]
    row, place = (index.cpu().numpy() for index in real.nonzero(as_tuple=True))
    columns = {n: batch[n].numpy()[row] for n in ("image_id", "draw")} | {"object": place}
    if label is not None:
        columns["label"] = every[label].cpu().numpy()[row, place]
    for metric in sorted(n for n in every if own[n] not in ("valid", "label")):
        found = {c: values[metric].cpu().numpy()[row, place] for c, values in results.items()}
        columns |= _paired(split_group(metric)[0] + own[metric], found)
    return columns


def _paired(metric: str, by_condition: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """`<metric>/<condition>`, and the patch minus each of the others."""
    columns = {f"{metric}/{c}": column for c, column in by_condition.items()}
    numbers = {c: column.astype(np.float32) for c, column in by_condition.items()}
    for c in numbers:
        if c == NONE:
            columns[f"{metric}/delta"] = numbers[PATCH] - numbers[c]
        elif c != PATCH:
            columns[f"{metric}/delta/{c}"] = numbers[PATCH] - numbers[c]
    return columns


def _describe_rows(dataset: Dataset, batch: Batch, keys: Tensor, sample: Sample) -> dict[str, np.ndarray]:
    ids = batch["image_id"].tolist()
    drawn = to_columns(sample)
    return {
        "image_id": batch["image_id"].numpy(),
        "draw": batch["draw"].numpy(),
        "path": np.array([str(dataset.paths[i]) for i in ids]),
        "photograph": np.array([dataset.digest(i) for i in ids]),
        "key/0": keys[:, 0].numpy(),
        "key/1": keys[:, 1].numpy(),
        **{f"sample/{path}": column for path, column in drawn.items()},
        "sample": row_digests(drawn),
    }


def row_digests(columns: Mapping[str, np.ndarray]) -> np.ndarray:
    """sha256 of the values of every row, as hex: an edit too small to change an image changes it."""
    names = sorted(columns)
    rows = zip(*(columns[name] for name in names), strict=True)
    return np.array([hashlib.sha256(b"".join(value.tobytes() for value in row)).hexdigest() for row in rows])


def tensor_digest(tensor: Tensor) -> str:
    """sha256 of the values of a tensor, as hex."""
    return hashlib.sha256(tensor.detach().cpu().contiguous().numpy().tobytes()).hexdigest()


class _NoParams(dict[str, Tensor]):
    """Patch parameters where there are none: an evaluation shows prints, and most have no parameters."""

    def __missing__(self, name: str) -> Tensor:
        raise ValueError(
            f"evaluation: the parameters {name!r} are read, but only patches are there; read `patch` "
            'instead, or give the node phases = ["train"]'
        )


def _pad_rows(tree: Any, block: int) -> Any:
    """Every tensor [n, ...] with its last row repeated up to [block, ...]."""
    return optree.tree_map(lambda x: torch.cat([x, x[-1:].expand(block - len(x), *x.shape[1:])]), tree)


def blocks(count: int, block: int) -> Iterator[slice]:
    """Slices of at most `block` rows."""
    return (slice(start, min(start + block, count)) for start in range(0, count, block))
