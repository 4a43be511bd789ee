"""Stages and victims of users: those that write into the values of others, and metrics of another form."""

import re
from dataclasses import dataclass

import pytest
import torch

from fpatch import compose, create, evaluate, implant, infer, metrics, pipeline, random, success
from fpatch.demo.tiny import Brightness, tiny_study
from fpatch.graph.stage import define, deterministic


@dataclass(frozen=True)
class Nothing:
    """No settings."""


def stage(apply, reads, writes, role="stage"):
    made = define(
        "mine", Nothing, deterministic, lambda c, p, s, v: apply(v), reads=reads, writes=writes, role=role
    )
    return made()


class Clearing(Brightness):
    """A victim that answers right, and clears the image that it was given."""

    def forward(self, images):
        answer = super().forward(images)
        images.zero_()
        return answer


class Undoing(Brightness):
    """A victim that changes its input through a view and restores it: the others may read it meanwhile."""

    def forward(self, images):
        images[:, :1].add_(0.5)
        answer = super().forward(images)
        images[:, :1].sub_(0.5)
        return answer


def measure(tmp_path, more=None, victim=None, block=3):
    study = tiny_study(tmp_path)
    parts = {
        "pixels": create.pixels({"tag": (3, 6, 6)}),
        "implant": implant.warp(),
        "exposure": compose.exposure(),
        **(more or {}),
        "victims": infer.ensemble(
            {
                "a": infer.classifier((victim or Brightness)().eval()),
                "b": infer.classifier(Brightness().eval()),
            },
            {"hit": metrics.class_hit()},
        ),
    }
    test = pipeline(parts)
    scenes = study.data.open().split("test")
    return evaluate(test, test.init(random.key(0)), scenes, random.key(1), block=block)


@pytest.mark.parametrize("victim", [Clearing, Undoing])
def test_a_victim_that_writes_into_its_input_does_not_reach_the_next_one(tmp_path, victim):
    table = measure(tmp_path).table
    assert success(table, "victims/b/found").clean.value == success(table, "victims/a/found").clean.value > 0
    with pytest.raises(ValueError, match=r"node 'victims/a/victim' writes into 'image'.*clone"):
        measure(tmp_path, victim=victim)


WRITES = {
    "image": lambda x: x.mul_(0.9),
    "scene": lambda x: x.clamp_(0.1, 0.9),
    "quads": lambda x: x[:, 0].add_(1.0),
    "labels": lambda x: x.fill_(0),
}


@pytest.mark.parametrize("name", WRITES)
def test_a_stage_that_writes_into_its_input_is_named(tmp_path, name):
    mine = stage(lambda v: {"seen": WRITES[name](v[name]).float()}, (name,), ("seen",))
    study = tiny_study(tmp_path)
    test = pipeline({"pixels": create.pixels({"tag": (3, 6, 6)}), "implant": implant.warp(), "mine": mine})
    scenes = study.data.open().split("test")
    batch = scenes.batch(scenes.image_ids)
    with pytest.raises(ValueError, match=f"node 'mine' writes into '{name}'"):
        test.apply(test.init(random.key(0)), test.sample(random.key(0), batch), batch)


FORMS = {
    "a mean": (lambda x: x.mean(), "float32 []"),
    "one row": (lambda x: x.mean()[None], "float32 [1]"),
    "a row more": (lambda x: torch.cat([x[:1, 0], x[:, 0]]), "float32 [4]"),
    "a row less": (lambda x: x[1:, 0], "float32 [2]"),
    "rows last": (lambda x: x.T, "float32 [2, 3]"),
    "three axes": (lambda x: x[:, :, None], "float32 [3, 2, 1]"),
    "complex": (lambda x: x[:, 0].to(torch.complex64), "complex64 [3]"),
    "a list": (lambda x: x[:, 0].tolist(), "a list"),
    "a number": (lambda x: float(x.mean()), "a float"),
    "an array": (lambda x: x[:, 0].numpy(), "a ndarray"),
}


@pytest.mark.parametrize("form", FORMS)
def test_a_metric_of_another_form_is_refused(tmp_path, form):
    make, got = FORMS[form]
    victim = infer.classifier(Brightness().eval())
    own = stage(lambda v: {"own": make(v["own_logits"])}, ("own_logits",), ("own",), role="metric")
    ask = stage(lambda v: {"own_logits": victim.apply({}, {}, v)["logits"]}, ("image",), ("own_logits",))
    with pytest.raises(ValueError, match="node 'own': the metric 'own' must hold.*" + re.escape(got)):
        measure(tmp_path, {"ask": ask, "own": own})


SCORES = {
    "percent": (lambda s: 100 * s, "75"),
    "logit": (lambda s: s.logit(), "1.09861"),
    "log": (torch.log, "-0.2"),
}


@pytest.mark.parametrize(
    "metric", [metrics.detection_hit, metrics.object_hit, metrics.mean_average_precision]
)
@pytest.mark.parametrize("kind", SCORES)
def test_scores_that_no_threshold_suits_are_refused(metric, kind):
    """A percentage of 75 would pass a threshold of 0.5, and so would one of 1."""
    make, got = SCORES[kind]
    box, label, yes = torch.tensor([[[0.0, 0, 8, 8]]]), torch.tensor([[0]]), torch.tensor([[True]])

    def run(scores, valid=yes):
        final = {"boxes": box, "scores": scores, "labels": label, "valid": valid}
        values = {"detections": {"final": final}, "boxes": box, "labels": label, "box_valid": yes}
        made = metric()
        made.apply({}, {}, values)
        if summary := made.definition.summary:
            summary.update(made.config, summary.init(made.config), values)

    run(torch.tensor([[0.75]]))
    run(make(torch.tensor([[0.75]])), valid=~yes)
    with pytest.raises(ValueError, match=f"must be within 0..1, got {re.escape(got)}"):
        run(make(torch.tensor([[0.75]])))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_an_image_of_another_type_has_a_digest_and_a_rate(tmp_path, dtype):
    """numpy knows no bfloat16."""
    cast = stage(lambda values: {"image": values["image"].to(dtype)}, ("image",), ("image",))
    table, again = (measure(tmp_path / str(i), {"cast": cast}).table for i in range(2))
    assert success(table, "victims/a/found").clean.value > 0
    assert len(set(table["digest/none"].tolist())) == len(table["digest/none"])
    assert table["digest/patch"].tolist() == again["digest/patch"].tolist()


def test_differences_keep_the_digits_of_a_metric(tmp_path):
    """A whole number beyond float32, and one in float64; a metric may ask for a gradient."""

    def apply(values):
        level = values["image"].mean((1, 2, 3))
        return {"count": 2**24 + (level > 0.3).long(), "fine": 1 + 1e-12 * level.double()}

    fine = stage(apply, ("image",), ("count", "fine"), "metric")

    def ask(values):
        return {"asking": values["image"].mean((1, 2, 3)).requires_grad_()}

    asking = stage(ask, ("image",), ("asking",), "metric")
    table = measure(tmp_path, {"fine": fine, "asking": asking}).table
    assert table["count/delta"].tolist() == (table["count/patch"] - table["count/none"]).tolist()
    assert table["fine/delta"] == pytest.approx(table["fine/patch"] - table["fine/none"], rel=1e-6, abs=0)
    assert table["fine/delta"].any()
    assert table["asking/delta"].any()
