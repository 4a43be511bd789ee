"""Harden a victim against patches, and measure it by fresh attacks beside plain training.

The folder of a hardening holds:

- `config.json`: the study of the attack, that of the victim's training, and the settings;
- `inputs.json`: the digests of data and weights with which it began;
- `steps/NAME.safetensors`: patches and weights after each part of the work, by which it continues;
- `patches/NAME.png`: the patches of pools and of attacks from scratch;
- `weights/VICTIM/`: the weights of `continued` and `hardened`, as `Pipeline.save` writes them;
- `harden.json`, `harden.png`: every rate, and clean and robust accuracy over the training;
- `records.jsonl`: the same numbers, as TensorBoard and MLflow hold them.
"""

import dataclasses
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path

import optree
import torch
from torch import Tensor, nn

from fpatch import random
from fpatch.core.checks import check_kind
from fpatch.core.display import shown
from fpatch.core.inputs import parse_json, read_text
from fpatch.core.names import typed
from fpatch.core.plain import plain_torch
from fpatch.core.progress import Progress
from fpatch.core.tree import take_rows
from fpatch.core.types import Params
from fpatch.data import write_image
from fpatch.evaluation.conditions import NONE, PATCH, Patches, make_patches
from fpatch.evaluation.evaluation import evaluate
from fpatch.evaluation.rates import success
from fpatch.graph.pipeline import Pipeline, with_model
from fpatch.log.values import to_json
from fpatch.ops.intervals import Rate
from fpatch.optim.hardening import PatchedLoader, train_patches
from fpatch.optim.loop import fit
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import make_optimizer
from fpatch.optim.step import begin
from fpatch.random import fold_in
from fpatch.runs.files import write_file
from fpatch.runs.hardened import CONTINUED, HARDENED, START, Curve, Hardened, describe, draw, lowest, record
from fpatch.runs.hardening_parts import Part, Parts, describe_inputs
from fpatch.runs.locks import RunError, lock, new_folder
from fpatch.runtime.device import deterministic_algorithms
from fpatch.study.hardening import HardenPlan, check_alike
from fpatch.study.leaks import find_leaks, find_shared
from fpatch.study.setup import (
    make_loader,
    make_objective,
    make_training_step,
    set_up,
    steps_per_epoch,
)
from fpatch.study.splits import evaluation_key, split_name

_logger = logging.getLogger(__name__)


@plain_torch(grad=True)
def harden(
    plan: HardenPlan, on_progress: Progress | None = None, folder: str | Path | None = None
) -> Hardened:
    """Train a victim against pools of patches, and measure it by fresh attacks.

    Beside it, `continued` is trained for the same steps on the same images without patches. Both and the
    victim as it was are attacked from scratch, by each of the losses with several keys; the attacks on the
    victim as it was are measured on the others too. All victims see the held-out rows under the same draws.

    Args:
        plan: The studies and settings.
        on_progress: Called with the progress; None: bars or lines on standard error.
        folder: The folder of a hardening that was stopped, which continues; None: a new one.

    Raises:
        RunError: If the folder is that of another plan, data or weights, or in use, or a part is broken.
        ValueError: If a setting is wrong, or the studies have other classes or patches.

    Example:
        >>> import dataclasses, tempfile, torch
        >>> from fpatch import define_loader, graph, losses, node, pipeline
        >>> from fpatch.core.progress import silent
        >>> from fpatch.demo.tiny import tiny_study
        >>> from fpatch.runs.hardening import harden
        >>> from fpatch.study.hardening import Harden, HardenPlan
        >>> from fpatch.study.settings import ObjectiveConfig
        >>> def make_network():
        ...     return torch.nn.Sequential(
        ...         torch.nn.AdaptiveAvgPool2d(1), torch.nn.Flatten(), torch.nn.Linear(3, 2))
        >>> network = graph.module(define_loader("mean_color", make_network)(), trainable=True)
        >>> wrong = losses.criterion("CrossEntropyLoss")
        >>> recipe = pipeline({
        ...     "victim": node(network, reads={"input": "scene"}, writes=["logits"]),
        ...     "wrong": node(wrong, reads={"input": "logits", "target": "target"}),
        ... })
        >>> attack = tiny_study(tempfile.mkdtemp(), {"train.num_steps": 1, "data.validation": False})
        >>> goal = ObjectiveConfig({"criterion": 1.0})
        >>> victim = dataclasses.replace(attack, pipeline=recipe, objective=goal)
        >>> plan = HardenPlan(attack, victim, Harden("", pool=1, fresh_keys=1, fresh_factor=1))
        >>> done = harden(plan, silent)
        >>> list(done.clean), list(done.robust["hardened"])
        (['start', 'continued', 'hardened'], ['fresh-1-1', 'moved-1-1'])
    """
    check_kind("harden(plan)", plan, HardenPlan, "load one by load_harden_plan(path)")
    with shown(on_progress) as show:
        work = _Work(plan, show, _folder(plan, folder))
        asked = plan.attack.train.deterministic or plan.victim.train.deterministic
        with lock(work.folder, RunError, "harden"), deterministic_algorithms(asked):
            return work.run()


def _folder(plan: HardenPlan, folder: str | Path | None) -> Path:
    """Make the folder, or check that one is that of the plan."""
    if folder is None:
        made = new_folder(Path(plan.attack.log.runs), f"{plan.attack.name}-harden")
        write_file(made / "config.json", to_json(plan.config))
        return made
    made = Path(folder)
    if not (made / "config.json").is_file():
        raise RunError(f"{typed(made)}: it is not the folder of a hardening; it lacks config.json")
    recorded = parse_json(read_text(made / "config.json"))
    if recorded != plan.config:
        raise RunError(
            f"{typed(made)}: its config.json is that of another plan; give the studies it began with"
        )
    return made


class _Work:
    """The parts of a hardening, each kept on disk when it is done."""

    def __init__(self, plan: HardenPlan, show: Progress, folder: Path) -> None:
        self.plan, self.show, self.folder = plan, show, folder
        self.victim = set_up(plan.victim)
        self.attack = set_up(plan.attack)
        self.curves: list[Curve] = []
        self.key = fold_in(random.key(plan.attack.seed), "harden")
        check_alike(self.attack.dataset, self.victim.dataset)

    def run(self) -> Hardened:
        plan = self.plan
        studies = {"attack": (plan.attack, self.attack), "victim": (plan.victim, self.victim)}
        self.parts = Parts(self.folder, {name: describe_inputs(*one) for name, one in studies.items()})
        for name, (study, made) in studies.items():
            for where, what in find_leaks(study, made.dataset):
                _logger.warning("%s: %s: %s", name, where, what)
        for what in find_shared(plan.victim, self.victim.dataset, plan.attack, self.attack.dataset):
            _logger.warning("harden.victim: %s", what)
        rounds = range(self.plan.harden.rounds)
        start = self.victim.initial.all_params
        victims = {START: start, CONTINUED: start, HARDENED: start}
        pools: list[Patches] = []
        for number in rounds:
            pools.append(self._pool(number, victims[HARDENED]))
            if not number:
                first = self._validate(START, 0, start, pools[0])
                self.curves += [c._replace(victim=name) for name in (CONTINUED, HARDENED) for c in first]
            for name in (CONTINUED, HARDENED):
                victims[name] = self._train(name, number, victims[name], pools[-1], pools[0])
        for name in (CONTINUED, HARDENED):
            self.victim.objective.pipeline.save(self.folder / "weights" / name, victims[name])
        done = self._measure(victims)
        write_file(self.folder / "harden.json", to_json(describe(done)))
        draw(done, self.plan.attack.name)
        record(done, self.plan.attack.log)
        return done

    # -- parts

    def _pool(self, number: int, params: Params) -> Patches:
        """The patches of a round, trained against the victim as it is."""
        count = self.plan.harden.pool
        keys = [fold_in(fold_in(fold_in(self.key, "pool"), number), i) for i in range(count)]
        task = f"pool {number + 1}: training {count} patches"
        found = self._patches(f"pool-{number + 1}", task, params, keys, factor=1)
        return _stack(found)

    def _patches(
        self, name: str, task: str, params: Params, keys: Sequence[Tensor], factor: int
    ) -> list[Patches]:
        """Patches against a victim, with the losses in turn."""
        study = self.plan.attack
        num_steps = study.train.num_steps * factor

        def make() -> Part:
            pipeline = self._attacking(params)
            losses = self._losses
            objectives = [
                Objective(pipeline, losses[i % len(losses)], wrt=study.objective.wrt)
                for i in range(len(keys))
            ]
            optimizer = make_optimizer(
                study.optimizer, num_steps, steps_per_epoch(study, self.attack.dataset, study.data.train)
            )
            made, loader = self.attack._replace(optimizer=optimizer), make_loader(study, self.attack)
            patches = train_patches(
                objectives, optimizer, keys, loader, num_steps,
                lambda i: self.show(task, i, num_steps, ""),
                transform=study.objective.transform,
                rho=study.train.rho,
                alone=[make_training_step(study, made._replace(objective=o)) for o in objectives]
                if study.train.micro_batch
                else None,
            )  # fmt: skip
            return patches, []

        return self._made(name, self.parts.keep(name, make)[0])

    def _train(
        self, name: str, number: int, params: Params, pool: Patches, shown_pool: Patches
    ) -> dict[str, Tensor]:
        """A round of the victim's training; `continued` has the same images with the patches left out."""
        study, made = self.plan.victim, self.victim
        key, num_steps = fold_in(fold_in(self.key, "victim"), number), study.train.num_steps
        state = begin(made.objective, made.optimizer, key, params)
        plain, share = make_loader(study, made._replace(initial=state)), self.plan.harden.share
        attack, carried = self.attack.objective.pipeline, name == HARDENED
        loader = PatchedLoader(plain, attack, pool, share, fold_in(key, "patches"), carried)
        step, every = make_training_step(study, made), self.plan.harden.every

        def make() -> Part:
            found, curves, task = dict(params), [], f"{name}, round {number + 1}: training the victim"
            for after, info in fit(state, step, loader, num_steps):
                self.show(task, after.step, num_steps, f"loss {float(info.loss):.3f}")
                found = after.all_params
                if after.step == num_steps or (every and after.step % every == 0):
                    at = number * num_steps + after.step
                    curves += self._validate(name, at, found, shown_pool)
            return [found], curves

        (found,), curves = self.parts.keep(f"{name}-{number + 1}", make)
        self.curves += curves
        return found

    def _measure(self, victims: Mapping[str, Params]) -> Hardened:
        """Attack every victim from scratch, and measure all on the held-out images."""
        settings = self.plan.harden
        num_losses = len(self._losses)
        labels = [f"{i + 1}-{k + 1}" for k in range(settings.fresh_keys) for i in range(num_losses)]
        keys = [
            fold_in(fold_in(self.key, "fresh"), k)
            for k in range(settings.fresh_keys)
            for _ in range(num_losses)
        ]
        fresh: dict[str, dict[str, Patches]] = {}
        for name, params in victims.items():
            task = f"{name}: attacks from scratch, {len(keys)} in all"
            found = self._patches(f"fresh-{name}", task, params, keys, settings.fresh_factor)
            fresh[name] = dict(zip(labels, found, strict=True))
        clean, robust, summaries = {}, {}, {}
        for name, params in victims.items():
            attacks = {f"fresh-{one}": patches for one, patches in fresh[name].items()}
            if name != START:
                attacks |= {f"moved-{one}": patches for one, patches in fresh[START].items()}
            clean[name], robust[name], summaries[name] = self._rates(name, params, attacks, "test")
        return Hardened(self.folder, self.curves, clean, robust, summaries)

    def _validate(self, name: str, step: int, params: Params, pool: Patches) -> list[Curve]:
        """Measure clean and robust accuracy on the validation split, if the attack has one."""
        if self.plan.attack.data.validation is None:
            return []
        attacks = {f"pool-{i + 1}": take_rows(pool, i) for i in range(self.plan.harden.pool)}
        clean, robust, _ = self._rates(name, params, attacks, "validation")
        return [Curve(name, step, clean, min(robust.values(), key=lowest))]

    def _rates(
        self, name: str, params: Params, attacks: Mapping[str, Patches], split: str
    ) -> tuple[Rate, dict[str, Rate], dict[str, float]]:
        """The shares of rows in which a victim is right, without a patch and with each."""
        study, first = self.plan.attack, next(iter(attacks))
        measured = evaluate(
            with_model(study.placed, self.plan.attacked, self._network(params)).at(split),
            {},
            self.attack.dataset.split(split_name(study, split)),
            evaluation_key(study, split),
            conditions={
                PATCH: attacks[first],
                NONE: attacks[first],
                **{n: p for n, p in attacks.items() if n != first},
            },
            num_draws=study.evaluate.num_draws,
            block=study.evaluate.block,
            progress=lambda i, n: self.show(f"{name}: evaluating ({split})", i, n, ""),
        )
        missed = success(measured.table, study.evaluate.metric).missed
        right = {name: _right(rate) for name, rate in missed.items()}
        clean, robust = right.pop(NONE), {first: right.pop(PATCH), **right}
        return clean, robust, measured.summaries[NONE]

    # -- tools

    @property
    def _losses(self) -> Sequence[Mapping[str, float]]:
        return self.plan.harden.losses or (self.plan.attack.objective.weights,)

    def _network(self, params: Params) -> nn.Module:
        """The network with these weights, frozen."""
        return self.plan.victim.pipeline.freeze(params)[self.plan.trained].stage.config.model

    def _attacking(self, params: Params) -> Pipeline:
        """The pipeline of the attack's training, on a victim with these weights."""
        pipeline = with_model(self.plan.attack.pipeline, self.plan.attacked, self._network(params))
        return make_objective(dataclasses.replace(self.plan.attack, pipeline=pipeline)).pipeline

    def _made(self, name: str, made: Sequence[Params]) -> list[Patches]:
        """The patches that parameters make, written as images too."""
        pipeline = self.plan.attack.placed.at("test")
        found = [make_patches(pipeline, params) for params in made]
        for number, patches in enumerate(found, 1):
            for part, image in patches["patch"].items():
                picture = image if image.ndim == 3 else image[0]
                write_image(self.folder / "patches" / f"{name}-{number}-{part}.png", picture)
        return found


def _stack(patches: Sequence[Patches]) -> Patches:
    return optree.tree_map(lambda *xs: torch.stack(xs), *patches)  # type: ignore[return-value]


def _right(missed: Rate) -> Rate:
    """The share that is right, of the share that is missed."""
    return missed._replace(value=1 - missed.value, low=1 - missed.high, high=1 - missed.low)
