"""CoKe: embeddings learned from clusters that an online constrained k-means finds.

The state is a dict of tensors. It goes in and comes out, as that of a torchopt transformation does, and
nothing is written in place.
"""

from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
import torch.nn.functional as F
from jaxtyping import Float, Int64
from torch import Tensor

from fpatch import random
from fpatch.core.checks import check_count, check_number
from fpatch.core.plain import plain_torch
from fpatch.core.tree import is_concrete, widen
from fpatch.graph.mistakes import describe
from fpatch.random import fold_in

State = dict[str, Tensor]


class OnlineKMeans(NamedTuple):
    """The two functions of an online constrained k-means; see `online_k_means`.

    Attributes:
        init: `(key [2], image_ids [n]) -> state`, with centers drawn from the key and no label. The images
            are those of one epoch.
        update: `(state, embeddings [b, d], image_id [b]) -> (term [b], state)`.
    """

    init: Callable[[Tensor, Tensor], State]
    update: Callable[[Mapping[str, Tensor], Tensor, Tensor], tuple[Tensor, State]]


def online_k_means(
    num_clusters: int,
    embedding_size: int,
    *,
    temperature: float = 0.1,
    min_frac: float = 0.4,
    dual_rate: float = 1.0,
) -> OnlineKMeans:
    """Make the objective CoKe: predict the cluster of each image from its embedding.

    Clusters are those of the k-means of all n images whose sizes have a lower bound,
    max sum_i x_i . c_(y_i) subject to |{i: y_i = k}| >= min_frac n / K. Embeddings x and centers c have
    length 1. A batch of b rows runs through four steps:

    1. Assignment with the dual variables of the bounds: y = argmax_k x . c_k + rho_k.
    2. Duals: rho_k = max(0, rho_k - dual_rate (|{y = k}| / b - min_frac / K)).
    3. Centers of this epoch: c_k is the mean of the n_k rows that the epoch has assigned to k, at length 1.
    4. The term: the cross entropy of softmax(x . c / temperature) with the centers of the last epoch, for the
       label that the last epoch assigned to the image. An image without one takes its new assignment.

    An epoch ends with the batch that completes n rows. Its centers are then those of the last epoch, and its
    counts begin again. An image that a batch shows twice keeps the label of its last row.

    The term of a row depends on the row and the state alone. The next state depends on all rows of a batch,
    and has no gradient.

    Args:
        num_clusters: K, at least 2.
        embedding_size: d.
        temperature: The temperature of the softmax, above 0.
        min_frac: The smallest size of a cluster, as a fraction of the mean size n / K, in 0..1. At 1 all
            clusters shall have one size, and the duals may be negative.
        dual_rate: The step size of the dual variables. A row lowers the dual of its cluster by this number
            divided by b, which should be small against 1, the largest x . c. The authors take 20 at b = 1024.

    Returns:
        `init` and `update`. The state holds `centers` [K, d] of the last epoch, `moving` [K, d] of this one,
        `duals` and `counts` [K], `labels` of all images (-1: none), and the numbers of rows `seen` in this
        epoch and of an `epoch`.

    Raises:
        ValueError: For a setting out of its range; on a call, for embeddings or ids of other shapes or types,
            and for an id that `init` was not given.

    References:
        Qian, Xu, Hu, Li and Jin (2022), Unsupervised visual representation learning by online constrained
        k-means; with a single view and without the averages of its second stage.

    Example:
        >>> import torch
        >>> from fpatch import losses, random
        >>> k_means = losses.online_k_means(num_clusters=2, embedding_size=3)
        >>> state = k_means.init(random.key(0), torch.arange(4))
        >>> embeddings = torch.tensor([[1.0, 0.1, 0.0], [0.9, 0.0, 0.1], [-1.0, 0.0, 0.0], [-0.8, 0.1, 0.0]])
        >>> for _ in range(3):
        ...     term, state = k_means.update(state, embeddings, torch.arange(4))
        >>> a, b, c, d = state["labels"].tolist()
        >>> a == b, c == d, a != c, bool((term < 0.1).all())
        (True, True, True, True)
    """
    check_count("online_k_means(num_clusters)", num_clusters, 2)
    check_count("online_k_means(embedding_size)", embedding_size)
    check_number("online_k_means(temperature)", temperature, 1e-6)
    check_number("online_k_means(min_frac)", min_frac, 0.0, 1.0)
    check_number("online_k_means(dual_rate)", dual_rate, 0.0)

    def init(key: Int64[Tensor, "2"], image_ids: Int64[Tensor, " n"]) -> State:
        """Make the state before the first batch."""
        _check_ids("init", image_ids)
        with plain_torch():
            drawn = random.normal(fold_in(key, "centers"), (num_clusters, embedding_size))
            centers = F.normalize(drawn, dim=1)
            return {
                "centers": centers,
                "moving": centers.clone(),
                "duals": torch.zeros(num_clusters),
                "counts": torch.zeros(num_clusters),
                "labels": torch.full((int(image_ids.max()) + 1,), -1),
                "seen": torch.tensor(0),
                "epoch": torch.tensor(len(image_ids)),
            }

    def update(
        state: Mapping[str, Tensor], embeddings: Float[Tensor, "b d"], image_id: Int64[Tensor, " b"]
    ) -> tuple[Float[Tensor, " b"], State]:
        """Return the term of each row, and the state with these rows."""
        _check_ids("update", image_id, len(state["labels"]))
        if embeddings.shape != (len(image_id), embedding_size):
            expected = f"[{len(image_id)}, {embedding_size}]"
            raise ValueError(f"online_k_means: embeddings must be {expected}, got {describe(embeddings)}")
        with plain_torch():
            x = F.normalize(widen(embeddings), dim=1).to(state["moving"].dtype)
            rows = x.detach()
            assigned = (rows @ state["moving"].T + state["duals"]).argmax(1)
            known = state["labels"][image_id]
            logits = x @ state["centers"].T / temperature
            term = F.cross_entropy(logits, torch.where(known < 0, assigned, known), reduction="none")
            moved = _assign(state, rows, assigned, min_frac, dual_rate)
            return term, {**moved, "labels": _label(state["labels"], image_id, assigned)}

    return OnlineKMeans(init, update)


def _assign(
    state: Mapping[str, Tensor], rows: Tensor, assigned: Tensor, min_frac: float, dual_rate: float
) -> State:
    """Return the state, but for the labels, after rows [b, d] have been assigned to clusters [b]."""
    num_clusters = len(state["counts"])
    chosen = F.one_hot(assigned, num_clusters).to(rows.dtype)
    sizes = chosen.sum(0)
    duals = state["duals"] - dual_rate * (sizes / len(rows) - min_frac / num_clusters)
    counts = state["counts"] + sizes
    means = (state["counts"][:, None] * state["moving"] + chosen.T @ rows) / counts.clamp(min=1.0)[:, None]
    moving = torch.where(sizes[:, None] > 0, F.normalize(means, dim=1), state["moving"])
    seen = state["seen"] + len(rows)
    ends = seen >= state["epoch"]
    return {
        "centers": torch.where(ends, moving, state["centers"]),
        "moving": moving,
        "duals": duals if min_frac == 1.0 else duals.clamp(min=0.0),
        "counts": torch.where(ends, 0.0, counts),
        "seen": seen % state["epoch"],
        "epoch": state["epoch"],
    }


def _label(labels: Tensor, image_id: Tensor, assigned: Tensor) -> Tensor:
    """Return labels with those of some images replaced; the last row of an image counts."""
    places = torch.arange(len(image_id), device=image_id.device)
    last = torch.where(image_id[:, None] == image_id, places, -1).amax(1)
    return labels.scatter(0, image_id, assigned[last])


def _check_ids(where: str, ids: Tensor, count: int | None = None) -> None:
    """Check the ids of images."""
    if ids.ndim != 1 or ids.dtype != torch.int64 or not len(ids):
        raise ValueError(f"online_k_means: {where} takes ids of images, int64 [n], got {describe(ids)}")
    if not is_concrete(ids):
        return
    if int(ids.min()) < 0:
        raise ValueError(f"online_k_means: ids of images are at least 0, got {int(ids.min())}")
    if count is not None and int(ids.max()) >= count:
        raise ValueError(
            f"online_k_means: {where} got the image {int(ids.max())}, but init was given ids up to "
            f"{count - 1}; give init the ids of all images"
        )
