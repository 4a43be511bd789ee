"""A population in one step against a run of each member by itself."""

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from cases import SHAPES, Case, case, classifier, demo, two_implants, two_victims
from laws import assert_equal
from torch import Tensor, nn

from fpatch import compose, create, define, deterministic, implant, infer, losses, node, pipeline, random
from fpatch.core.types import Range
from fpatch.graph.pipeline import Pipeline
from fpatch.optim.objective import Objective
from fpatch.optim.optimizer import Optimizer, make_optimizer
from fpatch.optim.population import make_population_step, split
from fpatch.optim.step import StepInfo, TrainState, make_state, make_step
from fpatch.optim.transforms import Transformation

NUM_STEPS = 5
RUNS = [(7, 0.02, 1.0), (8, 0.05, 0.3), (7, 0.01, 3.0)]
"""Seed, learning rate and weight of the last term of each member."""


def camera() -> Pipeline:
    """A camera that has no vmap; a loss on the patch before each row has its own, and one after."""
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
            "camera": {
                "light": compose.augmentation("RandomPlanckianJitter", {"mode": "blackbody", "p": 0.5}),
                "noise": compose.read_noise(),
                "blur": compose.blur(),
            },
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


def sgd(learning_rate: float) -> Transformation:
    """Which does not blow the rounding of small gradients up, as Adam does."""
    return make_optimizer(Optimizer("sgd", 50 * learning_rate, "constant"), 20)


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


def assert_as_alone(population: Population, **settings):
    """Every member moves together with the others as it does alone; returns what came of all."""
    states, infos = population.together(**settings)
    for i in range(len(RUNS)):
        assert_same_run((states[i], infos[i]), population.alone(i, **settings))
    return states, infos


@pytest.mark.parametrize("name", PIPELINES)
def test_every_member_moves_as_in_a_run_of_its_own(name):
    population = Population(case(PIPELINES[name]().at("train")))
    states, infos = assert_as_alone(population)
    for i in range(len(RUNS)):
        for patch, value in population.states[i].params.items():
            assert float((states[i].params[patch] - value).abs().max()) > 1e-3
    assert not torch.equal(infos[0][0].loss, infos[2][0].loss)


OPTIMIZERS = {
    "nifgsm": Optimizer("nifgsm", 0.01, "constant"),
    "plateau": Optimizer("sgd", 2.0, "plateau", fall_every=2, patience=0, threshold=0.5),
    "adamw": Optimizer("adamw", 0.02, "exponential", weight_decay=0.1),
}


@pytest.mark.parametrize("rho", [0.0, 1.0])
def test_members_may_have_optimizers_of_other_kinds(rho):
    """The one looks ahead, the other reads the loss; and both may be sharpness-aware."""
    population = Population(case(demo().at("train")))
    population.optimizers = [make_optimizer(settings, 20) for settings in OPTIMIZERS.values()]
    population.states = tuple(
        make_state(objective, optimizer, state.key)
        for objective, optimizer, state in zip(
            population.objectives, population.optimizers, population.states, strict=True
        )
    )
    assert_as_alone(population, rho=rho)


def test_so_many_members_at_once_change_nothing():
    population = Population(case(camera().at("train")))
    states, infos = population.together(num_steps=2)
    for members_at_once in (1, 2, 10):
        found, own = population.together(num_steps=2, members_at_once=members_at_once)
        for i in range(len(RUNS)):
            assert_same_run((found[i], own[i]), (states[i], infos[i]))


class Counting(nn.Module):
    """A classifier that keeps the number of rows of every call."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.rows = classifier(seed=2).value, []

    def forward(self, images: Tensor) -> Tensor:
        self.rows.append(len(images))
        return self.inside(images)


def test_the_victim_is_called_once_for_all_members_at_once():
    model = Counting().eval()
    made = camera().at("train") | {"victim": infer.classifier(model)}
    population = Population(case(made))
    model.rows.clear()
    population.together(num_steps=1)
    assert model.rows == [9]
    model.rows.clear()
    population.together(num_steps=1, members_at_once=2)
    assert model.rows == [6, 3]


def test_a_member_goes_on_alone_and_comes_back():
    """What stands in a population is the ordinary state of each member, whatever step it has reached."""
    population = Population(case(demo().at("train")))
    step = make_population_step(population.objectives, population.optimizers)
    states, _ = step(population.states, population.batches)
    ahead, _ = make_step(population.objectives[1], population.optimizers[1])(states[1], population.batches[1])
    states, infos = step((states[0], ahead, states[2]), population.batches)
    assert [state.step for state in states] == [2, 3, 2]
    for i, num_steps in enumerate([2, 3, 2]):
        expected, own_infos = population.alone(i, num_steps)
        assert_same_run((states[i], [infos[i]]), (expected, own_infos[-1:]))


def test_members_do_not_see_each_other():
    """A member that has diverged leaves the bits of the others alone, and so does its place."""
    population = Population(case(demo().at("train")))
    step = make_population_step(population.objectives, population.optimizers)
    states, infos = step(population.states, population.batches)
    poisoned = {
        name: torch.full_like(value, torch.nan) for name, value in population.states[1].params.items()
    }
    first, second, third = population.states
    others, other_infos = step((first, second._replace(params=poisoned), third), population.batches)
    for i in 0, 2:
        assert_equal(others[i].params, states[i].params)
        assert_equal(other_infos[i].terms, infos[i].terms)
    assert all(bool(value.isnan().any()) for value in others[1].params.values())


def test_nothing_that_is_given_is_written():
    population = Population(case(demo().at("train")))
    before = [{name: value.clone() for name, value in state.params.items()} for state in population.states]
    first, _ = population.together(num_steps=2)
    again, _ = population.together(num_steps=2)
    for i, state in enumerate(population.states):
        assert_equal(state.params, before[i])
        assert_equal(first[i].params, again[i].params)


# -- what is computed once per member


def paths_of_members(made: Pipeline) -> list[str]:
    of_members, of_rows = split(made)
    assert sorted([*of_members, *of_rows]) == sorted(made)
    return list(of_members)


@dataclass(frozen=True)
class Own:
    """No settings."""


def apply_size(config, patch_params, sample, values):
    """Mean of the parameters of every row, which has its own, times 1, 2, ... by the photograph."""
    size = torch.stack([value.flatten(-3).mean(-1) for value in patch_params.values()]).mean(0)
    return {"size": size.expand(len(values["image_id"])) * (1 + values["image_id"])}


def apply_by_photograph(config, patch_params, sample, values):
    """The same of what came out of the stages on the patches."""
    size = torch.stack([value.flatten(-3).mean(-1) for value in values["patch"].values()]).mean(0)
    return {"by_photograph": size.expand(len(values["image_id"])) * (1 + values["image_id"])}


size = define("size", Own, deterministic, apply_size, reads=("image_id",), writes=("size",), role="loss")
by_photograph = define(
    "by_photograph",
    Own,
    deterministic,
    apply_by_photograph,
    reads=("patch", "image_id"),
    writes=("by_photograph",),
    role="loss",
)


def test_what_depends_on_the_patch_alone_is_computed_once_per_member():
    assert paths_of_members(demo().at("train")) == ["pixels", "total_variation", "non_printability"]
    assert paths_of_members(camera().at("train")) == ["tanh", "low", "smooth"]
    assert paths_of_members(two_implants()) == ["pixels"]


def apply_fade(config, patch_params, sample, values):
    """A patch that is fainter on the one photograph than on the other."""
    gain = 1 / (1 + values["image_id"].float())[:, None, None, None]
    return {"patch": {name: gain * patch for name, patch in values["patch"].items()}}


fade = define("fade", Own, deterministic, apply_fade, reads=("patch", "image_id"), writes=("patch",))


def test_a_loss_that_may_read_more_is_computed_for_every_row():
    made = demo().at("train") | {"by_photograph": by_photograph(), "size": size()}
    assert paths_of_members(made) == ["pixels", "total_variation", "non_printability"]
    population = Population(case(made))
    assert_as_alone(population, num_steps=2)


def test_a_patch_that_depends_on_the_photograph_is_computed_for_every_row():
    made = pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "fade": fade(),
            "smooth": losses.total_variation(),
            "implant": implant.warp(),
            "victim": infer.classifier(classifier(seed=2)),
            "misclassify": losses.misclassify(),
        }
    )
    assert paths_of_members(made) == ["pixels"]
    population = Population(case(made), sgd)
    assert_as_alone(population, num_steps=2)


def test_a_patch_that_is_replaced_after_rows_have_read_it():
    """The small implant shows the pixels, the large one what the filter makes of them."""
    made = pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "poster": implant.warp(scale=Range(0.8, 1.2)),
            "low": create.low_pass(0.2),
            "smooth": losses.total_variation(),
            "sticker": node(implant.rectangle(scale=Range(0.2, 0.5)), reads={"scene": "image"}),
            "victim": infer.classifier(classifier(seed=2)),
            "misclassify": losses.misclassify(),
        }
    )
    assert paths_of_members(made) == ["pixels"]
    population = Population(case(made), sgd)
    assert_as_alone(population, num_steps=2)


def apply_look(config, patch_params, sample, values):
    return {"seen": torch.stack([patch.flatten(-3).mean(-1) for patch in values["patch"].values()], dim=-1)}


look = define("look", Own, deterministic, apply_look, reads=("*",), writes=("seen",))


def test_a_patch_that_is_replaced_after_a_stage_has_seen_all_values():
    made = pipeline({"pixels": create.pixels(SHAPES), "look": look(), "low": create.low_pass(0.2)})
    assert paths_of_members(made) == ["pixels"]


def apply_plain(config, patch_params, sample, values):
    return {"patch": {**values["patch"], "plain": torch.full((3, 8, 9), 0.4)}}


plain = define("plain", Own, deterministic, apply_plain, reads=("patch",), writes=("patch",))


def test_a_patch_that_no_parameters_went_into():
    made = pipeline(
        {
            "pixels": create.pixels({"hood": (3, 20, 31)}),
            "plain": plain(),
            "implant": implant.warp(names=("hood", "plain")),
            "victim": infer.classifier(classifier(seed=2)),
            "misclassify": losses.misclassify(),
        }
    )
    assert paths_of_members(made) == ["pixels", "plain"]
    population = Population(case(made), sgd)
    assert_as_alone(population, num_steps=2)


def test_losses_on_the_patch_alone():
    """No row reads it, and no photograph is there."""
    made = pipeline(
        {"tanh": create.tanh(SHAPES), "smooth": losses.total_variation(), "color": losses.saliency()}
    )
    assert paths_of_members(made) == ["tanh", "smooth", "color"]
    population = Population(case(made))
    assert_as_alone(population, num_steps=2)


# -- what is refused


def error(function: Callable[[], object]) -> str:
    with pytest.raises(ValueError, match=r"^(population|batch)") as caught:
        function()
    return str(caught.value)


def test_what_makes_no_population_is_refused():
    population = Population(case(demo().at("train")))
    objectives, optimizers = population.objectives, population.optimizers
    assert "got 3 and 2; repeat" in error(lambda: make_population_step(objectives, optimizers[:2]))
    assert "got 0 and 0" in error(lambda: make_population_step([], []))
    stranger = Objective(demo().at("train"), {"vanish": 1.0})
    mixed = [*objectives[:2], stranger]
    assert "member 2 has another pipeline" in error(lambda: make_population_step(mixed, optimizers))
    assert "members_at_once" in error(lambda: make_population_step(objectives, optimizers, members_at_once=0))
    assert "rho" in error(lambda: make_population_step(objectives, optimizers, rho=-1.0))


def soften(patch_params, key, batch):
    """Blend each patch with its mean, by a share that the first row draws."""
    share = random.uniform(key[0], ())
    assert all(p.ndim == 3 for p in batch["patch"].values())
    return {"patch": {name: p.lerp(p.mean(), share) for name, p in batch["patch"].items()}}, {}


def lighten(patch_params, key, batch):
    share = random.uniform(key, (), 0.0, 0.2)
    level = share[:, None, None, None]
    return {"image": batch["image"] * (1 - level) + level}, {"share": share}


def ink(values, patch_params):
    """Read the parameters, the patch and the image: a number per row."""
    patch = torch.stack([p.mean() for p in values["patch"].values()]).sum()
    return {"ink": values["image"].mean((1, 2, 3)) * patch + patch_params["hood"].square().mean()}


@pytest.mark.parametrize("members_at_once", [None, 2])
def test_plain_functions_see_one_member_at_a_time(members_at_once):
    """Before and after the patch becomes one per row."""
    made = pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "soften": node(soften, reads=["patch", "image_id"], writes=["patch"]),
            "implant": implant.warp(),
            "light": node(lighten, reads=["image"], writes=["image"]),
            "ink": ink,
            "victim": infer.classifier(classifier(seed=2)),
            "misclassify": losses.misclassify(),
        }
    )
    population = Population(case(made), sgd)
    states, infos = population.together(2, members_at_once=members_at_once)
    for i in range(len(RUNS)):
        assert_same_run((states[i], infos[i]), population.alone(i, 2))


def of_pairs(of_ours: bool) -> Pipeline:
    """A loss that compares the rows of a batch with one another: one of ours, or a user's own stage."""
    loss = losses.metric_learning("TripletMarginLoss", {"margin": 1.5, "smooth_loss": True})
    return pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "implant": implant.warp(),
            "victim": infer.classifier(classifier(seed=2)),
            "pairs": node(loss if of_ours else spread_out(), reads=["logits", "target"] if of_ours else None),
        }
    )


def apply_spread_out(config, patch_params, sample, values):
    logits = values["logits"]
    return {"spread_out": -(logits - logits.mean(0)).square().sum(1)}


spread_out = define(
    "spread_out",
    Own,
    deterministic,
    apply_spread_out,
    reads=("logits",),
    writes=("spread_out",),
    role="loss",
    declare=lambda config: {"mixes_rows": True},
)


@pytest.mark.parametrize("members_at_once", [None, 2])
@pytest.mark.parametrize("of_ours", [True, False])
def test_rows_of_other_members_are_no_neighbors(of_ours, members_at_once):
    population = Population(case(of_pairs(of_ours), target=torch.tensor([0, 0, 1])), sgd)
    states, infos = population.together(2, members_at_once=members_at_once)
    for i in range(len(RUNS)):
        assert_same_run((states[i], infos[i]), population.alone(i, 2))


def total(values, patch_params):
    """A loss that reads all values, and sums what has no rows in a run of one member."""
    patches, tone = values["patch"].values(), values["tone"]
    return {
        "total": values["image"].mean((1, 2, 3)) * sum(p.square().sum() for p in patches) * tone["ink"].sum()
    }


def tone(patch_params, key, batch):
    """A value without rows: three numbers, and a lone one."""
    colors = torch.stack([p.mean((-2, -1)) for p in batch["patch"].values()]).sum(0)
    return {"tone": {"ink": colors, "mean": colors.mean()}}, {}


def middle(values, patch_params):
    """A loss on values of three axes alone."""
    return {"middle": values["boxes"].mean((1, 2)) / 100 + patch_params["hood"].square().sum()}


def apply_stretch(config, patch_params, sample, values):
    """Patches from 0 to 1, as a whole: no law of stages, but right in a run of its own."""
    return {"patch": {name: (p - p.min()) / (p.max() - p.min()) for name, p in values["patch"].items()}}


def apply_decay(config, patch_params, sample, values):
    decay = sum(p.square().sum() for p in patch_params.values())
    return {"decay": decay + 0 * values["image_id"]}


stretch = define("stretch", Own, deterministic, apply_stretch, reads=("patch",), writes=("patch",))
decay = define("decay", Own, deterministic, apply_decay, reads=("image_id",), writes=("decay",), role="loss")


@pytest.mark.parametrize("members_at_once", [None, 1, 2])
@pytest.mark.parametrize("after", [None, "soften", "roof"])
def test_what_a_user_sums_over_a_patch_is_that_of_one_member(after, members_at_once):
    """Whether it reads named values or all, and whether a function or a filter made the patch."""
    made = pipeline(
        {
            "pixels": create.pixels(SHAPES),
            "stretch": stretch(),
            **({"soften": node(soften, reads=["patch"], writes=["patch"])} if after == "soften" else {}),
            "low": create.low_pass(0.4),
            **({"scroll": create.scroll(only=("roof",))} if after == "roof" else {}),
            "tone": node(tone, reads=["patch"], writes=["tone"])
            if after != "roof"
            else node(still, writes=["tone"]),
            "implant": implant.warp(),
            "total": total,
            "middle": node(middle, reads=["boxes"], writes=["middle"]),
            "decay": decay(),
            "victim": infer.classifier(classifier(seed=2)),
            "misclassify": losses.misclassify(),
        }
    )
    population = Population(case(made), sgd)
    states, infos = population.together(2, members_at_once=members_at_once)
    for i in range(len(RUNS)):
        assert_same_run((states[i], infos[i]), population.alone(i, 2))


def still(patch_params, key, batch):
    return {"tone": {"ink": torch.ones(3), "mean": torch.tensor(1.0)}}, {}


def test_inputs_that_do_not_fit_are_refused():
    population = Population(case(demo().at("train")))
    step = make_population_step(population.objectives, population.optimizers)
    states, batches = population.states, population.batches
    assert "3 members need 3 states" in error(lambda: step(states[:2], batches))
    assert "give [batch] * 3" in error(lambda: step(states, batches[:1]))
    two_rows = {name: value[:2] for name, value in batches[0].items()}
    message = error(lambda: step(states, [batches[0], two_rows, batches[0]]))
    assert "'box_valid' of member 1 is [2, 2], and that of member 0 [3, 2]" in message
    more = {**batches[0], "extra": torch.zeros(3)}
    assert "'extra' of member 2 is [3], and that of member 0 no such name" in error(
        lambda: step(states, [*batches[:2], more])
    )
    repeated = {**batches[0], "image_id": torch.zeros(3, dtype=torch.int64), "draw": torch.zeros(3).long()}
    assert "repeats (image_id, draw) = (0, 0)" in error(lambda: step(states, [repeated, *batches[1:]]))
