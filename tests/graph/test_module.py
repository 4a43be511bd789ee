"""Networks as nodes: wiring, weights, buffers, dropout and batch statistics."""

import copy
from collections.abc import Callable

import numpy as np
import optree
import pytest
import torch
from cases import TinyNet, make_inputs
from jaxtyping import Float, Float16, Float32
from laws import assert_equal, clone
from torch import Tensor, nn
from typecheck import unchecked

import fpatch
from fpatch import Range, graph, random
from fpatch.graph.layers import KeyedDropout

KEY = random.key(3)
BATCH = {name: make_inputs()[name] for name in ("image", "scene", "image_id", "draw", "target")}
ROWS = len(BATCH["image_id"])


class Two(nn.Module):
    """Two arguments, two answers, and a third by name."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(2.0))

    def forward(self, left: Tensor, right: Tensor, gain: float | Tensor = 1.0) -> tuple[Tensor, Tensor]:
        return left * self.scale * gain, right - left


class Named(nn.Module):
    """An answer that is a mapping."""

    def forward(self, images: Tensor) -> dict[str, Tensor]:
        means = images.mean((-1, -2))
        return {"logits": means, "features": 2 * means}


def net(**arguments) -> TinyNet:
    return TinyNet(seed=3, **arguments)


def single(model, **arguments) -> fpatch.Pipeline:
    part = graph.module(model, **arguments)
    return fpatch.pipeline({"net": fpatch.node(part, reads=["image"], writes=["logits"])})


# -- wiring


def test_a_list_is_positional_and_a_mapping_is_by_keyword():
    parts = {
        "a": fpatch.node(graph.module(Two().eval()), reads=["scene", "image"], writes=["twice", "change"]),
        "b": fpatch.node(
            graph.module(Two().eval()),
            reads={"right": "image", "left": "scene", "gain": "twice"},
            writes=["x", "y"],
        ),
    }
    values = fpatch.pipeline(parts).apply({}, {}, BATCH)
    assert torch.equal(values["twice"], 2 * BATCH["scene"])
    assert torch.equal(values["change"], BATCH["image"] - BATCH["scene"])
    assert torch.equal(values["x"], 4 * BATCH["scene"] * BATCH["scene"])
    assert torch.equal(values["y"], values["change"])


def test_an_answer_is_taken_whole_or_by_entries():
    whole = fpatch.node(graph.module(Named().eval()), reads=["image"], writes=["answer"])
    part = fpatch.node(
        graph.module(Named().eval()), reads=["image"], writes={"features": "found", "logits": "logits"}
    )
    values = fpatch.pipeline({"whole": whole, "part": part}).apply({}, {}, BATCH)
    assert set(values["answer"]) == {"logits", "features"}
    assert torch.equal(values["found"], values["answer"]["features"])


def test_settings_name_what_a_stage_reads_and_a_node_renames_it():
    stage = graph.module(Named().eval(), inputs=("image",), entries=("logits",))
    out, sample = stage({}, KEY, BATCH)
    assert sample == {}
    assert torch.equal(out["logits"], BATCH["image"].mean((-1, -2)))
    p = fpatch.pipeline({"n": fpatch.node(stage, reads={"image": "scene"}, writes={"logits": "clean"})})
    assert torch.equal(p.apply({}, {}, BATCH)["clean"], BATCH["scene"].mean((-1, -2)))


def test_relative_names_lead_into_the_group():
    head = fpatch.node(graph.module(Named().eval()), reads=["../image"], writes=["./answer"])
    assert "a/answer" in fpatch.pipeline({"a": {"head": head}}).apply({}, {}, BATCH)


def refused(parts, words: str) -> None:
    with pytest.raises((ValueError, TypeError), match=words):
        fpatch.pipeline({name: part() for name, part in parts.items()})


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (
            lambda: fpatch.node(graph.module(Two().eval()), reads=["image"], writes=["a", "b"]),
            r"missing .*right",
        ),
        (
            lambda: fpatch.node(graph.module(Two().eval()), reads=list("abcd"), writes=["a", "b"]),
            r"forward takes \(left, right, gain\)",
        ),
        (
            lambda: fpatch.node(graph.module(Two().eval()), reads={"lft": "a", "right": "b"}, writes=["a"]),
            "missing a required argument: 'left'",
        ),
        (lambda: graph.module(Two()), "'the model' is in training mode.*model.eval"),
        (lambda: graph.module(nn.Sequential(nn.Linear(2, 2).eval(), nn.ReLU())), "is in training mode"),
        (lambda: graph.module(nn.Linear), "must be a torch.nn.Module or a Resource, got Linear"),
        (lambda: graph.module(), "give a model, or share"),
        (lambda: graph.module(net(), **{"trainabel": True}), "did you mean 'trainable'"),
        (lambda: graph.module(nn.LazyLinear(3), trainable=True), "has no shape yet; call the network once"),
        (lambda: graph.module(nn.Sequential(nn.SyncBatchNorm(3)), trainable=True), "local_statistics"),
        (lambda: graph.module(nn.Sequential(nn.AlphaDropout()), trainable=True), "AlphaDropout"),
        (lambda: graph.module(net(), inputs=("buffers",)), "is the name of its own buffers"),
    ],
)
def test_a_wrong_network_is_refused_when_the_node_is_made(make, words):
    with unchecked(), pytest.raises((ValueError, TypeError), match=words):
        make()


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        ({"n": lambda: fpatch.node(graph.module(Named().eval()), reads=["image"])}, "'n'.*writes nothing"),
        ({"n": lambda: graph.module(Named().eval())}, "'n'.*reads nothing"),
        (
            {
                "n": lambda: fpatch.node(
                    graph.module(net(), trainable=True), reads=["image"], writes=["x"], phases="eval"
                )
            },
            "'n' is trained, but runs in test and validation only",
        ),
        (
            {
                "b": lambda: fpatch.node(graph.module(share="a"), reads=["image"], writes=["x"]),
                "a": lambda: fpatch.node(graph.module(net(), trainable=True), reads=["image"], writes=["y"]),
            },
            "node 'b': share = 'a' names no node above",
        ),
        (
            {
                "a": lambda: fpatch.node(graph.module(net()), reads=["features"], writes=["logits"]),
                "b": lambda: fpatch.node(graph.module(net()), reads=["logits"], writes=["features"]),
            },
            "node 'a' reads 'features', which only the later node 'b' writes",
        ),
        (
            {
                "n": lambda: fpatch.node(
                    graph.module(net(), trainable=True), reads=["image"], writes=["patch"]
                )
            },
            "'n'.*writes 'patch'.*create.generator",
        ),
    ],
)
def test_a_wrong_pipeline_is_refused_when_it_is_made(parts, words):
    refused(parts, words)


def test_another_number_of_answers_is_named():
    part = fpatch.node(graph.module(Two().eval()), reads=["image", "scene"], writes=["a", "b", "c"])
    with pytest.raises(ValueError, match=r"writes 3 names, \['a', 'b', 'c'\], but forward returned 2 parts"):
        fpatch.pipeline({"n": part}).apply({}, {}, BATCH)
    part = fpatch.node(graph.module(Named().eval()), reads=["image"], writes={"logit": "a"})
    with pytest.raises(ValueError, match="lacks 'logit'; did you mean 'logits'"):
        fpatch.pipeline({"n": part}).apply({}, {}, BATCH)


# -- weights


def test_a_frozen_network_is_left_alone_and_passes_gradients():
    model = net(norm="batch")
    before = clone(model.state_dict())
    image = BATCH["image"].clone().requires_grad_()
    single(model).apply({}, {}, {**BATCH, "image": image})["logits"].sum().backward()
    assert float(image.grad.abs().sum()) > 0
    assert all(p.grad is None and p.requires_grad for p in model.parameters())
    assert_equal(dict(model.state_dict()), dict(before))
    assert single(model).init(KEY) == {}


def test_weights_stand_under_the_path_of_their_node():
    p = fpatch.pipeline({"a": {"net": single(net(norm="batch"), trainable=True)["net"]}})
    params = p.init(KEY)
    assert set(params) == {f"a/net/{name}" for name in net(norm="batch").state_dict()}
    assert p.trainable() == tuple(f"a/net/{name}" for name, _ in net(norm="batch").named_parameters())
    assert p.trainable(["a/net/head"[:5]]) == p.trainable()
    with pytest.raises(ValueError, match="nothing that is trained is called 'a/nett'; did you mean 'a/net'"):
        p.trainable(["a/nett"])


def test_parameters_without_requires_grad_are_not_trained():
    model = net()
    model.conv.requires_grad_(False)
    p = single(model, trainable=True)
    assert set(p.init(KEY)) - set(p.trainable()) == {"net/conv.weight", "net/conv.bias"}
    with pytest.raises(ValueError, match="no parameter has requires_grad"):
        single(model.requires_grad_(False), trainable=True).trainable()


def test_other_weights_give_other_answers_and_the_network_keeps_its_own():
    model = net()
    p, before = single(model, trainable=True), clone(dict(model.state_dict()))
    params = {name: 2 * value for name, value in p.init(KEY).items()}
    found = p.apply(params, {}, BATCH)["logits"]
    twice = copy.deepcopy(model)
    with torch.no_grad():
        for parameter in twice.parameters():
            parameter.mul_(2)
        torch.testing.assert_close(found, twice(BATCH["image"]))
    assert_equal(dict(model.state_dict()), before)


def test_weights_of_another_network_are_named():
    p = single(net(), trainable=True)
    params = p.init(KEY)
    with pytest.raises(
        ValueError, match=r"'head.bias' must have the shape \[5\], got \[4\](.|\n)*node 'net'"
    ):
        p.apply({**params, "net/head.bias": torch.zeros(4)}, {}, BATCH)
    with pytest.raises(ValueError, match=r"lack its weights 'conv.weight'; pipeline.init"):
        p.apply({}, {}, BATCH)
    with pytest.raises(ValueError, match=r"no weights 'haed.bias'; did you mean 'head.bias'"):
        p.apply({**params, "net/haed.bias": torch.zeros(4)}, {}, BATCH)


def test_a_node_is_handed_nothing_of_other_networks():
    seen = []

    def look(patch_params, key, batch):
        seen.append(list(patch_params))
        return {"seen": batch["image_id"]}, {}

    p = single(net(), trainable=True) | {"look": fpatch.node(look, reads=["image_id"], writes=["seen"])}
    p(p.init(KEY), KEY, BATCH)
    assert seen == [[]]


def test_one_module_in_two_places_shares_its_weights():
    model = net(norm="batch", dropout=0.2)
    parts = {
        "a": fpatch.node(graph.module(model, trainable=True), reads=["image"], writes=["x"]),
        "b": fpatch.node(graph.module(model, trainable=True), reads=["scene"], writes=["y"]),
    }
    p = fpatch.pipeline(parts)
    assert {name.partition("/")[0] for name in p.init(KEY)} == {"a"}
    assert p["b"].stage.config.share == "a"
    train = p.at("train")
    values, sample = train(p.init(KEY), KEY, BATCH)
    assert not torch.equal(sample["a"]["key"], sample["b"]["key"])
    assert int(values["a/buffers"]["norm.num_batches_tracked"]) == 2  # both calls move the statistics
    by_hand = copy.deepcopy(model).train()
    by_hand.drop.eval()
    with torch.no_grad():
        _ = by_hand(BATCH["image"]), by_hand(BATCH["scene"])
    torch.testing.assert_close(values["a/buffers"]["norm.running_var"], by_hand.norm.running_var)


def shared_parts(model: nn.Module, between: object) -> dict:
    return {
        "a": fpatch.node(graph.module(model, trainable=True), reads=["image"], writes=["x"]),
        "between": between,
        "b": fpatch.node(graph.module(model, trainable=True), reads=["image"], writes=["y"]),
    }


def test_a_shared_network_stays_one_on_another_device():
    p = fpatch.pipeline(shared_parts(net(), fpatch.compose.exposure(Range(0, 0))))
    assert list(p.to("meta").init(KEY)) == list(p.to("meta").at("train").init(KEY)) == list(p.init(KEY))


def test_a_part_of_a_pipeline_uses_the_weights_of_the_whole():
    p = fpatch.pipeline(shared_parts(net(norm="batch"), fpatch.compose.exposure(Range(1, 1))))
    params = {name: value * 2 for name, value in p.init(KEY).items()}
    whole, sample = p(params, KEY, BATCH)
    for part in p.since("between"), p[1:], p.without("a"):
        assert torch.equal(part.apply(params, sample, BATCH)["y"], whole["y"])


def far(values, patch_params):
    return {"far": (values["x"] - values["y"]).square().mean(-1)}


def test_a_compiled_step_may_cut_between_two_nodes_of_one_network():
    parts = shared_parts(net(), fpatch.compose.exposure(Range(1, 1)))
    parts["loss"] = fpatch.node(far, reads=["x", "y"], writes=["far"])
    goal = fpatch.Objective(fpatch.pipeline(parts).at("train"), {"far": 1.0})
    state = fpatch.make_state(goal, SGD, KEY)
    eager, _ = fpatch.make_step(goal, SGD)(state, BATCH)
    with unchecked():
        fast, _ = fpatch.make_step(goal, SGD, compile=True)(state, BATCH)
    assert_equal(fast.all_params, eager.all_params, 1e-4)


def whole_and_part() -> list[nn.Module]:
    part = nn.Flatten()
    shared = nn.Sequential(nn.AdaptiveAvgPool2d(2), part, nn.Linear(12, 5))
    return [nn.Sequential(shared, nn.Linear(5, 5)).eval(), shared.eval()]


@pytest.mark.parametrize("other", ["part", "frozen", "victim", "statistics"])
def test_networks_that_share_a_part_are_refused_where_one_is_trained(other):
    """The copy of the other would not follow the training, and nothing would say so."""
    whole, part = whole_and_part()
    second = {
        "part": lambda: fpatch.node(graph.module(part, trainable=True), reads=["image"], writes=["y"]),
        "frozen": lambda: fpatch.node(graph.module(whole), reads=["image"], writes=["y"]),
        "victim": lambda: fpatch.infer.classifier(part),
        "statistics": lambda: fpatch.infer.classifier(whole),
    }[other]
    parts = {"a": fpatch.node(graph.module(whole, trainable=True), reads=["image"], writes=["x"])}
    if other == "statistics":
        whole.register_buffer("mean", torch.zeros(1))
        part.register_buffer("mean", whole.mean)
        parts["a"] = fpatch.node(graph.module(part, trainable=True), reads=["image"], writes=["x"])
    with pytest.raises(ValueError, match=r"node 'b': its '.*' is also '.*' of node 'a'.*would not follow"):
        fpatch.pipeline(parts | {"b": second()})
    apart = copy.deepcopy((whole, part))
    with unchecked():
        alone = fpatch.node(graph.module(apart[0], trainable=True), reads=["image"], writes=["x"])
        fpatch.pipeline({"a": alone, "b": second()})


def test_trained_networks_may_share_a_part_that_is_not_trained():
    whole, part = whole_and_part()
    part.requires_grad_(False)
    parts = {
        "a": fpatch.node(graph.module(whole, trainable=True), reads=["image"], writes=["x"]),
        "b": fpatch.node(graph.module(part), reads=["image"], writes=["y"]),
    }
    assert fpatch.pipeline(parts).trainable() == ("a/1.weight", "a/1.bias")


def test_a_network_of_computed_tensors_is_named():
    """As torch's older weight norm keeps, which no copy can hold."""
    head = nn.Linear(12, 5)
    model = nn.Sequential(nn.Flatten(), head)
    head.last = head.weight * 2
    with pytest.raises(ValueError, match="'1' holds 'last', computed from other tensors"):
        graph.module(model, trainable=True)


def test_one_factory_used_twice_makes_two_networks():
    parts = {
        name: fpatch.node(graph.module(net(), trainable=True), reads=["image"], writes=[name])
        for name in ("left", "right")
    }
    p = fpatch.pipeline({"heads": parts})
    assert len(p.init(KEY)) == 2 * len(net().state_dict())


def test_frozen_pipelines_hold_their_weights():
    p = single(net(norm="batch"), trainable=True)
    params = {name: value + 1 if value.is_floating_point() else value for name, value in p.init(KEY).items()}
    test = p.at("test")
    frozen = test.freeze(params)
    assert frozen.init(KEY) == {}
    assert torch.equal(frozen.apply({}, {}, BATCH)["logits"], test.apply(params, {}, BATCH)["logits"])
    assert frozen.freeze({}) is frozen
    with pytest.raises(ValueError, match="lack its weights"):
        test.freeze({})


# -- training


def plain_step(model: TinyNet, rate: float) -> None:
    optimizer = torch.optim.SGD(model.parameters(), rate)
    optimizer.zero_grad()
    nn.functional.cross_entropy(model(BATCH["image"]), BATCH["target"]).backward()
    optimizer.step()


def wrong(values, patch_params):
    return {"wrong": nn.functional.cross_entropy(values["logits"], values["target"], reduction="none")}


def objective(model: nn.Module, phase: str | None = "train") -> fpatch.Objective:
    p = single(model, trainable=True) | {"loss": wrong_node()}
    return fpatch.Objective(p if phase is None else p.at(phase), {"wrong": 1.0})


def wrong_node():
    return fpatch.node(wrong, reads=["logits", "target"], writes=["wrong"])


SGD = fpatch.make_optimizer(fpatch.Optimizer("sgd", 0.1, "constant", momentum=0.0), num_steps=10)


@pytest.mark.parametrize("transform", ["autograd", "func"])
@pytest.mark.parametrize("norm", ["", "batch", "instance"])
def test_a_step_is_that_of_torch(norm, transform):
    """Weights, running statistics and counts, against a plain loop of two steps."""
    goal, by_hand = objective(net(norm=norm)), net(norm=norm).train()
    state, step = fpatch.make_state(goal, SGD, KEY), fpatch.make_step(goal, SGD, transform=transform)
    for _ in range(2):
        before = clone((state.params, state.fixed))
        after, info = step(state, BATCH)
        assert_equal((state.params, state.fixed), before)
        state = after
        plain_step(by_hand, 0.1)
    expected = {f"net/{name}": value for name, value in by_hand.state_dict().items()}
    assert_equal(state.all_params, expected, 1e-5)
    assert set(state.params) == {f"net/{name}" for name, _ in by_hand.named_parameters()}
    assert info.terms["wrong"].shape == (ROWS,)


def test_a_step_without_a_phase_is_refused():
    with pytest.raises(ValueError, match=r"'net' does not behave as in training.*pipeline.at\('train'\)"):
        objective(net(), phase=None)


def test_a_network_that_no_loss_reads_is_refused():
    p = single(net(), trainable=True) | {"loss": fpatch.losses.total_variation()}
    pixels = fpatch.create.pixels({"a": (3, 4, 4)})
    with pytest.raises(ValueError, match="no weighted loss reads what node 'net' makes"):
        fpatch.Objective(fpatch.pipeline({"pixels": pixels, **p}).at("train"), {"total_variation": 1.0})


def test_wrt_says_what_moves():
    parts = {
        "pixels": fpatch.create.pixels({"a": (3, 97, 131)}),
        "implant": fpatch.implant.warp(),
        "net": single(net(norm="batch"), trainable=True)["net"],
        "loss": wrong_node(),
    }
    p, batch = fpatch.pipeline(parts).at("train"), {**BATCH, **quads()}
    found = {}
    for wrt in ("a",), ("net",), None:
        goal = fpatch.Objective(p, {"wrong": 1.0}, wrt=wrt)
        before = fpatch.make_state(goal, SGD, KEY)
        after, _ = fpatch.make_step(goal, SGD)(before, batch)
        moved = {n for n, v in after.all_params.items() if not torch.equal(v, before.all_params[n])}
        found[wrt] = {n.partition("/")[0] for n in moved if n in before.params}
        assert set(after.all_params) == set(p.init(KEY))
    assert found == {("a",): {"a"}, ("net",): {"net"}, None: {"a", "net"}}
    with pytest.raises(ValueError, match="nothing that is trained is called 'nett'; did you mean 'net'"):
        fpatch.Objective(p, {"wrong": 1.0}, wrt=("nett",))


def quads() -> dict[str, Tensor]:
    inputs = make_inputs()
    index = torch.zeros_like(inputs["quad_patch"])
    return {"quads": inputs["quads"], "quad_valid": inputs["quad_valid"], "quad_patch": index}


def test_an_ambiguous_or_empty_wrt_is_refused():
    parts = {"net": single(net(), trainable=True)["net"], "pixels": fpatch.create.pixels({"net": (3, 4, 4)})}
    p = fpatch.pipeline(parts)
    with pytest.raises(ValueError, match="'net' is a patch, and also a node or group with a network"):
        p.trainable(["net"])
    with pytest.raises(ValueError, match="wrt is empty"):
        p.trainable([])


class Mixed(nn.Module):
    """Weights of three types, numbers without an axis among them."""

    def __init__(self) -> None:
        super().__init__()
        self.wide = nn.Parameter(torch.ones((), dtype=torch.float64))
        self.narrow = nn.Parameter(torch.ones((), dtype=torch.bfloat16))
        self.head = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(images.mean((-1, -2))) * self.wide.float() * self.narrow.float()


@pytest.mark.parametrize("settings", [{}, {"micro_batch": 2}, {"rho": 0.1}])
def test_a_step_keeps_the_types_of_the_weights(settings):
    """A checkpoint of other types could not be resumed."""
    goal, adam = objective(Mixed()), fpatch.make_optimizer(fpatch.Optimizer(), num_steps=5)
    state = fpatch.make_state(goal, adam, KEY)
    after, _ = fpatch.make_step(goal, adam, **settings)(state, BATCH)
    types = [[x.dtype for x in optree.tree_leaves(s[:2]) if isinstance(x, Tensor)] for s in (state, after)]
    assert types[0] == types[1]


def test_statistics_of_a_part_of_the_batch_are_asked_for():
    goal = objective(net(norm="batch"))
    for parts in {"micro_batch": 2}, {"processes": 3}:
        with pytest.raises(ValueError, match=r"node 'net' takes statistics over the rows.*local_statistics"):
            fpatch.make_step(goal, SGD, **parts)
    independent = objective(net())
    whole, _ = fpatch.make_step(independent, SGD)(fpatch.make_state(independent, SGD, KEY), BATCH)
    parts, _ = fpatch.make_step(independent, SGD, micro_batch=2)(
        fpatch.make_state(independent, SGD, KEY), BATCH
    )
    assert_equal(parts.params, whole.params, 1e-6)


def test_statistics_without_a_running_mean_are_of_the_batch_in_evaluation_too():
    layers = nn.BatchNorm2d(3, track_running_stats=False), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    frozen = graph.module(nn.Sequential(*layers).eval())
    parts = {
        "a": fpatch.node(frozen, reads=["image"], writes=["features"]),
        "b": fpatch.node(
            graph.module(nn.Linear(3, 5), trainable=True), reads=["features"], writes=["logits"]
        ),
        "loss": wrong_node(),
    }
    goal = fpatch.Objective(fpatch.pipeline(parts).at("train"), {"wrong": 1.0})
    with pytest.raises(ValueError, match=r"node 'a' takes statistics over the rows.*local_statistics"):
        fpatch.make_step(goal, SGD, micro_batch=2)


def test_local_statistics_pass_from_part_to_part_and_are_averaged_over_processes():
    goal, model = objective(net(norm="batch")), net(norm="batch").train()
    start = fpatch.make_state(goal, SGD, KEY)
    parts, _ = fpatch.make_step(goal, SGD, micro_batch=2, local_statistics=True)(start, BATCH)
    with torch.no_grad():
        _ = model(BATCH["image"][:2]), model(BATCH["image"][2:])
    assert int(parts.fixed["net/norm.num_batches_tracked"]) == 2
    torch.testing.assert_close(parts.fixed["net/norm.running_mean"], model.norm.running_mean)
    shards, _ = fpatch.make_step(goal, SGD, processes=3, local_statistics=True)(start, BATCH)
    means = []
    for row in BATCH["image"].split(1):
        alone = net(norm="batch").train()
        with torch.no_grad():
            alone(row)
        means.append(alone.norm.running_mean)
    assert int(shards.fixed["net/norm.num_batches_tracked"]) == 1
    torch.testing.assert_close(shards.fixed["net/norm.running_mean"], torch.stack(means).mean(0))


def test_layers_that_the_user_put_into_evaluation_mode_stay_there():
    model = net(norm="batch").train()
    model.norm.eval()
    goal = objective(model)
    state = fpatch.make_state(goal, SGD, KEY)
    after, _ = fpatch.make_step(goal, SGD, micro_batch=2)(state, BATCH)  # no statistics of the batch
    assert int(after.fixed["net/norm.num_batches_tracked"]) == 0


def test_a_layer_put_into_a_network_in_evaluation_mode_leaves_it_learning():
    """A fresh layer stands in training mode; the network that it was put into does not, and learns whole."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten()).eval()
    model[2] = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 5))
    learning = single(model, trainable=True).at("train")
    assert learning["net"].stage.definition.traits.mixes_rows
    assert all(m.training for m in learning["net"].stage.config.called.modules())
    assert not model[1].training


def test_a_population_is_as_many_trainings():
    goal = objective(net(norm="batch", dropout=0.3))
    states = [fpatch.make_state(goal, SGD, random.key(seed)) for seed in (1, 2)]
    states[1] = states[1]._replace(params={n: 1.1 * v for n, v in states[1].params.items()})
    together = fpatch.make_population_step([goal] * 2, [SGD] * 2)
    alone = fpatch.make_step(goal, SGD)
    apart = list(states)
    for _ in range(2):
        states, _ = together(states, [BATCH] * 2)
        apart = [alone(state, BATCH)[0] for state in apart]
    for one, other in zip(states, apart, strict=True):
        assert_equal(one.all_params, other.all_params, 1e-5)
    assert not torch.equal(states[0].fixed["net/norm.running_mean"], states[1].fixed["net/norm.running_mean"])


def test_a_compiled_step_is_the_same():
    goal = objective(net(norm="batch", dropout=0.3))
    state = fpatch.make_state(goal, SGD, KEY)
    eager, _ = fpatch.make_step(goal, SGD)(state, BATCH)
    with unchecked():
        fast, _ = fpatch.make_step(goal, SGD, compile="default")(state, BATCH)
    assert_equal(fast.all_params, eager.all_params, 1e-4)


def test_sharpness_aware_steps_move_statistics_once():
    goal = objective(net(norm="batch"))
    after, _ = fpatch.make_step(goal, SGD, rho=0.1)(fpatch.make_state(goal, SGD, KEY), BATCH)
    assert int(after.fixed["net/norm.num_batches_tracked"]) == 1


# -- dropout


def test_dropout_draws_from_the_key_of_its_row():
    train = single(net(dropout=0.5), trainable=True).at("train")
    params = train.init(KEY)
    out, sample = train(params, KEY, BATCH)
    assert list(sample) == ["net"]
    again, _ = train(params, KEY, BATCH)
    assert torch.equal(again["logits"], out["logits"])
    other, _ = train(params, random.key(4), BATCH)
    assert not torch.equal(other["logits"], out["logits"])
    row = {name: value[1:2] for name, value in BATCH.items()}
    alone, _ = train(params, KEY, row)
    torch.testing.assert_close(alone["logits"][0], out["logits"][1])


class OneDropout(nn.Module):
    """One layer of dropout at two places; or, with p = 0, one that begins to drop later."""

    def __init__(self, p: float) -> None:
        super().__init__()
        self.first = self.second = nn.Dropout(p)
        self.head = nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        self.first.p = 0.5
        return torch.cat([self.first(images.mean((-1, -2))), self.second(images.mean((-1, -2)))], 1)


def test_one_dropout_at_two_places_draws_twice():
    p, batch = single(OneDropout(0.5), trainable=True).at("train"), {"image": torch.ones(200, 3, 2, 2)}
    batch |= {"image_id": torch.arange(200), "draw": torch.zeros(200, dtype=torch.int64)}
    values, _ = p(p.init(KEY), KEY, batch)
    first, second = values["logits"].chunk(2, dim=1)
    assert 0.4 < float((first == second).float().mean()) < 0.6


def test_dropout_that_begins_later_is_refused():
    p = single(OneDropout(0.0), trainable=True).at("train")
    with pytest.raises(ValueError, match=r"'first' has p = 0.5 now, and had 0"):
        p(p.init(KEY), KEY, BATCH)


@pytest.mark.parametrize("shared", [0, 1, 2])
def test_a_mask_has_the_share_and_the_form_of_torch(shared):
    x = torch.ones((8, 50, 40) if shared == 1 else (8, 50, 10, 12))
    keyed = KeyedDropout("drop", 0.3, shared).train()
    keyed.row_keys = random.split(KEY, 8)
    y = keyed(x)
    kept = y != 0
    assert torch.equal(y[kept], torch.full_like(y[kept], 1 / 0.7))
    units = kept.flatten(2).float().mean(-1) if shared else kept.flatten(1).float()
    if shared:
        assert set(units.unique().tolist()) <= {0.0, 1.0}
    share = float(kept.float().mean())
    assert abs(share - 0.7) < 4 * np.sqrt(0.7 * 0.3 / units.numel())
    assert not torch.equal(y[0], y[1])


def test_rows_within_a_network_share_no_mask_and_keep_their_image():
    keyed = KeyedDropout("drop", 0.5, 0).train()
    keyed.row_keys = random.split(KEY, 2)
    parts = keyed(torch.ones(6, 200))
    assert not torch.equal(parts[0], parts[1])
    keyed.row_keys, keyed.calls = keyed.row_keys[:1], 0
    assert torch.equal(keyed(torch.ones(3, 200)), parts[:3])
    second = keyed(torch.ones(3, 200))
    assert not torch.equal(second, parts[:3])  # one layer called twice
    keyed.row_keys = random.split(KEY, 2)
    with pytest.raises(ValueError, match=r"'drop' sees \[5, 2\] in a batch of 2 rows"):
        keyed(torch.ones(5, 2))


class Noisy(nn.Module):
    """It draws in a layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.noise, self.head = Jitter(), nn.Linear(3, 5)

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.noise(images.mean((-1, -2))))


class Jitter(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x + torch.rand_like(x)


@pytest.mark.parametrize("transform", ["autograd", "func"])
def test_a_layer_that_draws_from_the_global_generator_is_named(transform):
    words = r"'noise' \(Jitter\) draws from a global generator"
    with pytest.raises(ValueError, match=words):
        single(Noisy().eval()).apply({}, {}, BATCH)
    goal = objective(Noisy())
    with pytest.raises(ValueError, match=words):
        fpatch.make_step(goal, SGD, transform=transform)(fpatch.make_state(goal, SGD, KEY), BATCH)


class Drawing(nn.Module):
    """It draws by a function."""

    def __init__(self, draw: Callable[[], float]) -> None:
        super().__init__()
        self.draw, self.scale = draw, nn.Parameter(torch.ones(()))

    def forward(self, images: Tensor) -> Tensor:
        return images.mean((-1, -2)) * self.scale * self.draw()


@pytest.mark.parametrize("draw", [np.random.rand, lambda: float(torch.rand(()))])
def test_draws_of_any_global_generator_are_refused(draw):
    with pytest.raises(ValueError, match="Drawing draws from a global generator"):
        single(Drawing(draw).eval()).apply({}, {}, BATCH)


def test_a_draw_of_another_thread_is_not_taken_for_one_of_the_network():
    """A stand-in draws once, as a thread that sends records may do during the call."""
    draws = iter([np.random.rand])
    model = Drawing(lambda: next(draws, lambda: 1.0)()).eval()
    single(model).apply({}, {}, BATCH)


class Counting(nn.Module):
    """It writes into a buffer in evaluation mode too."""

    seen: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, images: Tensor) -> Tensor:
        self.seen += 1
        return images.mean((-1, -2)) * self.scale


class Replacing(Counting):
    """Its buffer becomes another tensor."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = self.seen + 1
        return images.mean((-1, -2)) * self.scale


class Growing(Counting):
    """It writes into its weights."""

    def forward(self, images: Tensor) -> Tensor:
        with torch.no_grad():
            self.scale.add_(1)
        return images.mean((-1, -2)) * self.scale


class Caching(Counting):
    """Its buffer is a cache, which depends on the shape of the images alone."""

    def forward(self, images: Tensor) -> Tensor:
        self.seen = torch.ones(images.shape[1:])
        return (images * self.seen).mean((-1, -2)) * self.scale


@pytest.mark.parametrize(
    ("model", "what"), [(Counting, "buffers"), (Replacing, "buffers"), (Growing, "weights")]
)
def test_a_frozen_network_that_changes_is_refused(model, what):
    with pytest.raises(ValueError, match=f"it writes into its {what}"):
        single(model().eval()).apply({}, {}, BATCH)


def test_a_frozen_network_may_keep_a_cache():
    p = single(Caching().eval())
    assert torch.equal(p.apply({}, {}, BATCH)["logits"], p.apply({}, {}, BATCH)["logits"])


@pytest.mark.parametrize("model", [Counting, Replacing])
def test_buffers_of_any_kind_are_returned(model):
    made = model()
    train = single(made, trainable=True).at("train")
    values, _ = train(train.init(KEY), KEY, BATCH)
    assert float(values["net/buffers"]["seen"]) == 1
    assert float(made.seen) == 0


def test_counts_of_networks_get_no_gradient():
    goal = objective(net(norm="batch"))
    params, sample = goal.pipeline.init(KEY), goal.pipeline.sample(KEY, BATCH)
    expected, _ = fpatch.value_and_grad(goal)(params, sample, BATCH)
    for transform in "autograd", "func":
        gradient = fpatch.value_and_grad(lambda *args: goal(*args), transform)
        grads, _ = gradient(params, sample, BATCH)
        assert set(params) - set(grads) == {"net/norm.num_batches_tracked"}
        assert_equal({name: grads[name] for name in expected}, expected, 1e-6)


# -- types and shapes that forward declares


class Declared(nn.Module):
    """From features of one length to logits."""

    def forward(self, x: Float[Tensor, "b 8"]) -> Float[Tensor, "b 5"]:
        return x[:, :5]


class Wider(nn.Module):
    def forward(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b 16"]:
        return images.mean((-1, -2)).repeat(1, 6)[:, :16]


class Gray(nn.Module):
    def forward(self, images: Float[Tensor, "b 1 h w"]) -> Float[Tensor, "b 8"]:
        return images.mean((-1, -2)).repeat(1, 8)


@pytest.mark.parametrize(
    ("parts", "words"),
    [
        (
            {"wide": (Wider, "image", "features"), "head": (Declared, "features", "logits")},
            "'head' reads 'features' as .*b 8.*'wide' writes 'features' as .*b 16",
        ),
        ({"gray": (Gray, "image", "features")}, "'gray' reads 'image' as .*b 1 h w.*b 3 h w"),
    ],
)
def test_declared_shapes_that_cannot_fit_are_refused(parts, words):
    made = {
        name: fpatch.node(graph.module(kind().eval()), reads=[read], writes=[written])
        for name, (kind, read, written) in parts.items()
    }
    with pytest.raises(ValueError, match=words):
        fpatch.pipeline(made)


def test_leaves_of_a_state_are_those_of_the_config():
    """A state goes through trees, and what is fixed is not the optimizer's."""
    goal = objective(net(norm="batch"))
    state = fpatch.make_state(goal, SGD, KEY)
    assert set(state.fixed) == {
        f"net/norm.{name}" for name in ("running_mean", "running_var", "num_batches_tracked")
    }
    assert len(optree.tree_leaves(dict(state.params))) == len(state.params)


class Partly(nn.Module):
    """Only the second argument is declared."""

    def forward(self, images, x: Float[Tensor, "b 8"]) -> Float16[Tensor, "b 8"]:
        return x.half()


class Single(nn.Module):
    def forward(self, x: Float32[Tensor, "b 8"]) -> Tensor:
        return x


class OneOrThree(nn.Module):
    def forward(self, images: Float[Tensor, "b #1 h w"]) -> Tensor:
        return images.mean((-1, -2))


def test_declared_shapes_that_fit_are_accepted():
    """Beside an argument without a declaration, in half precision, which is widened, and for broadcasting."""
    values = fpatch.pipeline(
        {
            "features": fpatch.node(graph.module(Eight().eval()), reads=["image"], writes=["features"]),
            "partly": fpatch.node(graph.module(Partly().eval()), reads=["image", "features"], writes=["x"]),
            "single": fpatch.node(graph.module(Single().eval()), reads=["x"], writes=["y"]),
            "any": fpatch.node(graph.module(OneOrThree().eval()), reads=["image"], writes=["z"]),
        }
    )
    assert values.apply({}, {}, BATCH)["y"].dtype == torch.float32


class Eight(nn.Module):
    def forward(self, images: Tensor) -> Tensor:
        return images.mean((-1, -2)).repeat(1, 3)[:, :8]
