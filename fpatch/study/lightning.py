"""PyTorch Lightning as the loop: a pipeline in a `LightningModule`, in the place of `fpatch.fit`.

Draws come from the root key, the update and the ids of the rows, as in a run of fpatch. A training that is
stopped and resumed from a checkpoint of Lightning therefore continues with the same draws.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from fpatch import random
from fpatch.core.tree import to_device
from fpatch.core.types import Batch
from fpatch.data import Loader
from fpatch.evaluation.blocks import complete, measure
from fpatch.evaluation.columns import metric_names, object_columns, result_columns
from fpatch.evaluation.conditions import NONE, PATCH, make_patches
from fpatch.evaluation.growing import Growing
from fpatch.evaluation.means import column_means
from fpatch.evaluation.summaries import compute_states, init_states, update_states
from fpatch.graph.keys import row_keys
from fpatch.graph.pipeline import Pipeline
from fpatch.optim.counted import ROW_WEIGHTS, counted_mean, to_weights
from fpatch.optim.finite import NotFiniteError, find_bad_row
from fpatch.optim.objective import Objective
from fpatch.optim.step import StepInfo

try:
    from lightning.pytorch import LightningModule
except ImportError:  # an error when a module is made
    LightningModule: Any = None

_Base: Any = LightningModule or nn.Module


class PipelineModule(_Base):
    """A pipeline that Lightning trains by its automatic optimization.

    The parameters that the objective trains are parameters of the module, and all others are its buffers.
    Victims and frozen networks are no part of it. Pixels are projected after each update.

    Training logs `train/loss` and `train/<term>`. Validation logs, from the rows of all its batches,
    `validation/<metric>/patch`, `/none` and `/delta` of each metric and term, or `validation/<metric>` where
    there is no patch. Metrics per object stand under `validation/objects/`, and the numbers of metrics that
    gather rows under the path of their node. Success rates with all controls and intervals are those of
    `fpatch.evaluate`.

    Args:
        pipeline: The stages of all phases.
        weights: The weights of the loss terms, as in `fpatch.Objective`.
        make_optimizer: Makes an optimizer of torch from a list of parameters.
        key: The root key [2].
        wrt: As in `fpatch.Objective`.

    Raises:
        ValueError: As `fpatch.Objective`; at the start of a training, for several processes or accumulated
            gradients, whose means over counted rows would be others. `fpatch.make_step` has both.
        ImportError: If the extra `lightning` is not installed.

    Example:
        >>> import torch, fpatch
        >>> from fpatch.study.lightning import PipelineModule
        >>> smooth = fpatch.losses.total_variation()
        >>> p = fpatch.pipeline({"pixels": fpatch.create.pixels({"a": (3, 4, 4)}), "smooth": smooth})
        >>> def sgd(parameters):
        ...     return torch.optim.SGD(parameters, lr=0.1)
        >>> module = PipelineModule(p, {"total_variation": 1.0}, sgd, fpatch.random.key(0))
        >>> [(name, value.shape) for name, value in module.named_parameters()]
        [('trained/a', torch.Size([3, 4, 4]))]
    """

    def __init__(
        self,
        pipeline: Pipeline,
        weights: Mapping[str, float],
        make_optimizer: Callable[[list[nn.Parameter]], torch.optim.Optimizer],
        key: Tensor,
        wrt: Sequence[str] | None = None,
    ) -> None:
        if LightningModule is None:
            raise ImportError("PipelineModule needs lightning: pip install 'fpatch[lightning]'")
        super().__init__()
        self.pipeline, self.key = pipeline, key
        self._make_optimizer = make_optimizer
        self._objective = Objective(pipeline.at("train"), weights, wrt=None if wrt is None else tuple(wrt))
        self._placed: tuple[torch.device, Objective] | None = None
        self._attributes: dict[str, str] = {}
        for name, value in self._objective.pipeline.init(random.fold_in(key, "init")).items():
            is_trained = name in self._objective.trained
            attribute = f"{'trained' if is_trained else 'fixed'}/{name.replace('.', '|')}"
            self._attributes[name] = attribute
            if is_trained:
                self.register_parameter(attribute, nn.Parameter(value))
            else:
                self.register_buffer(attribute, value)

    @property
    def params(self) -> dict[str, Tensor]:
        """All parameters by name, detached, as a pipeline takes them."""
        return {name: value.detach() for name, value in self._params().items()}

    def batches(self, loader: Loader) -> "StepBatches":
        """Return the batches of a loader for Lightning: those of each update, also after a resume."""
        return StepBatches(self, loader)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make the optimizer of the trained parameters."""
        return self._make_optimizer(list(self.parameters()))

    def transfer_batch_to_device(self, batch: Any, device: torch.device, dataloader_idx: int) -> Any:
        """Leave a batch on the host, where samples are drawn."""
        return batch

    def on_fit_start(self) -> None:
        """Refuse what would train something else than `fpatch.make_step`."""
        if self.trainer.world_size > 1:
            raise ValueError(
                f"PipelineModule trains in one process, got {self.trainer.world_size}; set devices=1, or "
                "train on several devices by fpatch.make_step(ranks=...)"
            )
        if self.trainer.accumulate_grad_batches != 1:
            raise ValueError(
                f"Trainer(accumulate_grad_batches={self.trainer.accumulate_grad_batches}) would average the "
                "means of parts; leave it out, or take fpatch.make_step(micro_batch=...)"
            )

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Return the loss of a batch, and log its terms."""
        objective = self._here()
        keys = row_keys(random.fold_in(random.fold_in(self.key, "train"), self.global_step), batch)
        sample = objective.pipeline.sample(keys, batch)
        drawn, placed = to_device((sample, dict(batch)), self.device)
        counted = {} if objective.tellers else objective.counted(self._params(), drawn, placed)
        if not objective.tellers:
            placed[ROW_WEIGHTS] = to_weights(counted)
        loss = objective(self._params(), drawn, placed)
        counted = counted or loss.counted
        for name, value in loss.buffers.items():
            setattr(self, self._attributes[name], value)
        terms = {name: term.detach() for name, term in loss.terms.items()}
        value = objective.void_uncounted(loss, counted).value.detach()
        rows = {name: batch[name] for name in ("image_id", "draw")}
        info = StepInfo(value, terms, torch.zeros(()), sample, rows, counted)
        if (bad := find_bad_row(info)) is not None:
            raise NotFiniteError(f"update {self.global_step + 1}: {bad}", None, info)
        means = {name: counted_mean(term, counted.get(name)) for name, term in terms.items()}
        numbers = {"train/loss": float(value), **{f"train/{name}": mean for name, mean in means.items()}}
        self.log_dict(numbers, batch_size=len(keys))
        return loss.value

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Take the optimizer's step, and project the parameters."""
        super().optimizer_step(*args, **kwargs)
        with torch.no_grad():
            params = self._params()
            allowed = self._objective.pipeline.project(params)
            for name in self._objective.trained:
                params[name].copy_(allowed[name])

    def on_validation_epoch_start(self) -> None:
        """Begin empty tables."""
        measured = self.pipeline.at("validation").freeze(self.params)
        self._measured = measured if self.device.type == "cpu" else measured.to(self.device)
        self._rows, self._objects = Growing(), Growing()
        made = (PATCH, NONE) if self._measured.parameterizations else (NONE,)
        self._states = {condition: init_states(self._measured) for condition in made}

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Measure the rows of a batch, with the patch and without."""
        pipeline = self._measured
        keys = row_keys(random.fold_in(random.fold_in(self.key, "evaluate"), "validation"), batch)
        conditions = dict.fromkeys(self._states, make_patches(pipeline, self.params))
        sample = complete(pipeline, conditions, pipeline.sample(keys, batch), batch, len(keys))
        results = measure(pipeline, conditions, sample, batch, len(keys))
        metrics = metric_names(pipeline)
        ids = {name: batch[name].cpu().numpy() for name in ("image_id", "draw")}
        self._rows.add(ids | result_columns(results, metrics))
        self._objects.add(object_columns(results, batch, metrics))
        for condition, values in results.items():
            states = self._states[condition]
            self._states[condition] = update_states(pipeline, states, values["seen"], values["seen_finite"])

    def on_validation_epoch_end(self) -> None:
        """Log the numbers of all rows."""
        found = _means(self._rows, paired=PATCH in self._states)
        if self._objects.columns():
            means = _means(self._objects, paired=PATCH in self._states)
            found |= {f"objects/{name}": value for name, value in means.items()}
        for condition, states in self._states.items():
            end = f"/{condition}" if PATCH in self._states else ""
            numbers = compute_states(self._measured, states)
            found |= {f"{name}{end}": value for name, value in numbers.items()}
        self.log_dict({f"validation/{name}": value for name, value in found.items()})

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Keep the root key."""
        checkpoint["fpatch/key"] = self.key.tolist()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Continue with the root key of the checkpoint."""
        self.key = torch.tensor(checkpoint["fpatch/key"])

    def _here(self) -> Objective:
        """The objective whose networks are on the device of the module."""
        if self._placed is None or self._placed[0] != self.device:
            whole = self._objective
            pipeline = whole.pipeline if self.device.type == "cpu" else whole.pipeline.to(self.device)
            self._placed = self.device, Objective(pipeline, whole.weights, wrt=whole.wrt)
        return self._placed[1]

    def _params(self) -> dict[str, Tensor]:
        return {name: getattr(self, attribute) for name, attribute in self._attributes.items()}


def _means(growing: Growing, paired: bool) -> dict[str, float]:
    """Return the means of columns; those of a pipeline without a patch bear no condition."""
    means = column_means(growing.columns())
    return means if paired else {name.removesuffix(f"/{NONE}"): mean for name, mean in means.items()}


class StepBatches:
    """The batches of a loader by update; a loop over them is one epoch."""

    def __init__(self, module: PipelineModule, loader: Loader) -> None:
        """Take the update of a step from the module."""
        self._module, self._loader = module, loader

    def __len__(self) -> int:
        return len(self._loader)

    def __iter__(self) -> Iterator[dict[str, Tensor]]:
        for _ in range(len(self)):
            yield self._loader.batch(self._module.global_step)
