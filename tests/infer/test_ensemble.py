"""Several victims in one pipeline: what is shared, what is each one's own, and how losses are joined."""

import pytest
import torch
from cases import case, detector, make_inputs, two_victims
from laws import assert_equal
from typecheck import unchecked

from fpatch import infer, losses, metrics, random
from fpatch.graph.build import build
from fpatch.graph.node import node
from fpatch.graph.pipeline import pipeline

KEY = random.key(5)
TERMS = {"a": torch.tensor([1.0, -2.0, 3.0]), "b": torch.tensor([0.5, 4.0, 3.0])}


def joined(**settings):
    stage = losses.ensemble(("a", "b"), **settings)
    return stage.apply({}, {}, TERMS)["ensemble"].tolist()


def test_losses_are_joined_row_by_row():
    assert joined() == [0.75, 1.0, 3.0]
    assert joined(weights=(3.0, 1.0)) == [(3 * 1 + 0.5) / 4, (-6 + 4) / 4, 3.0]
    assert joined(how="worst") == [1.0, 4.0, 3.0]
    assert joined(how="worst", weights=(0.25, 1.0)) == [0.5, 4.0, 3.0]


def test_only_the_worst_victim_is_followed():
    terms = {name: term.clone().requires_grad_() for name, term in TERMS.items()}
    losses.ensemble(("a", "b"), "worst").apply({}, {}, terms)["ensemble"][:2].sum().backward()
    assert terms["a"].grad.tolist() == [1.0, 0.0, 0.0]
    assert terms["b"].grad.tolist() == [0.0, 1.0, 0.0]


def test_every_victim_answers_as_it_does_alone():
    together = two_victims().at("test")
    subject = case(together)
    sample = together.sample(KEY, subject.batch)
    values = together.apply(subject.params, sample, subject.batch)
    for name, seed in (("small", 1), ("large", 3), ("unseen", 4)):
        alone = pipeline(
            {
                "victim": infer.detector(detector(seed=seed)),
                "vanish": losses.vanish(),
                "suppress": infer.suppress(),
                "hit": metrics.detection_hit(),
            }
        )
        expected = alone.apply({}, {}, {**subject.batch, "image": values["image"]})
        found = {n: values[f"victims/{name}/{n}"] for n in ("detections", "vanish", "found", "best_score")}
        assert_equal(found, {n: expected[n] for n in found})
    terms = torch.stack([values["victims/small/vanish"], values["victims/large/vanish"]])
    assert torch.equal(values["ensemble"], terms.amax(0))
    assert not torch.equal(terms[0], terms[1])


def test_a_victim_for_evaluation_is_not_trained_against():
    train = two_victims().at("train")
    assert [p for p in train if p.startswith("victims/unseen")] == []
    assert set(train.terms) == {"victims/small/vanish", "victims/large/vanish", "ensemble"}
    test = two_victims().at("test")
    assert {"victims/unseen/victim", "victims/unseen/hit"} <= set(test)


def test_a_list_is_numbered_and_a_node_keeps_its_wiring():
    group = infer.ensemble(
        [infer.detector(detector(seed=1)), node(infer.detector(detector(seed=3)), reads={"image": "scene"})],
        {"vanish": node(losses.vanish(), writes={"vanish": "loss"})},
    )
    made = pipeline({"victims": group})
    assert list(made) == ["victims/0/victim", "victims/0/vanish", "victims/1/victim", "victims/1/vanish"]
    assert made["victims/1/victim"].reads == {"image": "scene"}
    assert made.terms == ("victims/0/loss", "victims/1/loss")


def test_it_is_written_in_a_config_as_any_other_group():
    made = two_victims()
    rebuilt = build(made.config)
    subject = case(made.at("test"))
    assert_equal(*(p.at("test")(subject.params, KEY, subject.batch)[0] for p in (made, rebuilt)))


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: infer.ensemble({}, {}), r"ensemble\(victims\): there must be at least one"),
        (
            lambda: infer.ensemble([infer.suppress()], {"victim": infer.suppress()}),
            "'victim' is the name of the victim itself",
        ),
        (lambda: losses.ensemble(()), r"ensemble\(terms\) must hold one name at least, and none twice"),
        (lambda: losses.ensemble(("a", "a")), r"ensemble\(terms\) must hold .* none twice"),
        (lambda: losses.ensemble(("a", "b"), how="max"), r"ensemble\(how\) must be"),
        (lambda: losses.ensemble(("a", "b"), weights=(1.0,)), r"must hold one number per term, 2, got 1"),
        (lambda: losses.ensemble(("a", "b"), weights=(1.0, -1.0)), r"ensemble\(weights\) must be"),
        (lambda: losses.ensemble(("a", "b"), weights=(0.0, 0.0)), "must hold a number above 0, got"),
    ],
)
@unchecked()
def test_bad_settings(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_missing_term_is_named():
    made = pipeline({"vanish": losses.vanish(), "joined": losses.ensemble(("vanish", "b/vanish"))})
    with pytest.raises(ValueError, match="reads 'b/vanish', which is not there"):
        made.apply({}, {}, make_inputs())


def test_what_a_dropped_stage_would_write_is_that_of_the_pipeline():
    group = infer.ensemble(
        [node(infer.detector(detector(seed=1)), phases={"train"})],
        {"hit": node(metrics.detection_hit(), phases={"test"}), "own": stage_that_reads_found()},
    )
    assert list(group["0"]) == ["victim", "own"]
    assert group["0"]["own"].reads == {"ensemble": "found"}


def stage_that_reads_found():
    return node(losses.ensemble(("ensemble",)), reads={"ensemble": "found"})
