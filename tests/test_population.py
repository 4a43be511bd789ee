"""A population in one step against a run of each member by itself."""

import dataclasses
from collections.abc import Callable, Sequence

import optree
import pytest
import torch
from cases import SHAPES, Case, case, classifier, demo, detector, three_patches, two_implants, two_victims
from laws import assert_equal
from torch import Tensor

from fpatch import compose, create, define, deterministic, implant, infer, losses, node, pipeline, random
from fpatch.graph import Pipeline
from fpatch.loop import StepInfo, TrainState, make_state, make_step
from fpatch.objective import Objective
from fpatch.optim import Optimizer, Transformation, make_optimizer
from fpatch.population import make_population_step, split
from fpatch.types import Range

NUM_STEPS = 5
RUNS = [(7, 0.02, 1.0), (8, 0.05, 0.3), (7, 0.01, 3.0)]
"""Seed, learning rate and weight of the last term of each member."""


def camera() -> Pipeline:
    """Three gray patches on a classifier, behind a camera that draws; two of the losses see each row's own."""
    return pipeline(
        {
            "tanh": create.tanh(SHAPES),
            "low": create.low_pass(0.4),
            "smooth": losses.total_variation(),
            "scroll": create.scroll(only=("roof",)),
            "roughness": node(losses.total_variation(), writes=["roughness"]),
            "affine": node(compose.affine(), phases={"train"}),
            "flip": node(compose.horizontal_flip(), phases={"eval"}),
            "implant": implant.rectangle(scale=Range(0.4, 0.9)),
            "camera": {"exposure": compose.exposure(), "noise": compose.read_noise(), "jpeg": compose.jpeg()},
            "victim": infer.classifier(classifier(seed=2)),
            "misclassify": losses.misclassify(),
        }
    )


PIPELINES = {
    "demo": demo,
    "two implants": two_implants,
    "two victims": two_victims,
    "camera": camera,
}


def weights_of(made: Pipeline, last: float) -> dict[str, float]:
    return dict.fromkeys(made.terms, 1.0) | {made.terms[-1]: last}


def adam(learning_rate: float) -> Transformation:
    return make_optimizer(Optimizer("adam", learning_rate, "cosine"), 20)


class Population:
    """Members that differ in all that they may, and what each does alone."""

    def __init__(self, subject: Case, optimizer: Callable[[float], Transformation] = adam) -> None:
        made = subject.subject
        assert isinstance(made, Pipeline)
        self.objectives = [Objective(made, weights_of(made, last)) for _, _, last in RUNS]
        self.optimizers = [optimizer(rate) for _, rate, _ in RUNS]
        self.states = tuple(
            make_state(objective, o, random.key(seed))
            for objective, o, (seed, _, _) in zip(self.objectives, self.optimizers, RUNS, strict=True)
        )
        later = {**subject.batch, "draw": subject.batch["draw"] + 10}
        self.batches = [subject.batch, later, subject.batch]

    def alone(self, i: int, num_steps: int = NUM_STEPS, **settings) -> tuple[TrainState, list[StepInfo]]:
        step = make_step(self.objectives[i], self.optimizers[i], **settings)
        state, infos = self.states[i], []
        for _ in range(num_steps):
            state, info = step(state, self.batches[i])
            infos.append(info)
        return state, infos

    def together(self, num_steps: int = NUM_STEPS, **settings):
        step = make_population_step(self.objectives, self.optimizers, **settings)
        states, infos = self.states, []
        for _ in range(num_steps):
            states, info = step(states, self.batches)
            infos.append(info)
        return states, list(zip(*infos, strict=True))


def assert_same_run(found, expected, tolerance: float = 1e-4) -> None:
    (state, infos), (own_state, own_infos) = found, expected
    assert state.step == own_state.step
    assert torch.equal(state.key, own_state.key)
    assert_equal(state.params, own_state.params, tolerance)
    assert_equal(state.opt_state, own_state.opt_state, tolerance)
    for info, own in zip(infos, own_infos, strict=True):
        assert_equal(info.sample, own.sample)  # draws are equal to the bit
        assert_equal(info.batch, own.batch)
        assert_equal(info.terms, own.terms, tolerance)
        torch.testing.assert_close(info.loss, own.loss, rtol=tolerance, atol=tolerance)
        torch.testing.assert_close(info.grad_norm, own.grad_norm, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("name", PIPELINES)
def test_every_member_moves_as_in_a_run_of_its_own(name):
    population = Population(case(PIPELINES[name]().at("train")))
    states, infos = population.together()
    for i in range(len(RUNS)):
        assert_same_run((states[i], infos[i]), population.alone(i))
        for patch, value in population.states[i].params.items():
            assert float((states[i].params[patch] - value).abs().max()) > 1e-3
    assert not torch.equal(infos[0][0].loss, infos[2][0].loss)
