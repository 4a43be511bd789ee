"""Parameters in a folder, a file for each node."""

import pytest
import torch
from laws import assert_equal
from safetensors.torch import load_file, save_file
from torch import nn
from typecheck import unchecked

import fpatch
from fpatch import create, graph, node, random

KEY = random.key(2)
PARTS = {
    "pixels": create.pixels({"a": (3, 4, 4)}),
    "body": {"net": node(graph.module(nn.BatchNorm2d(3), trainable=True), reads=["image"], writes=["x"])},
    "head": node(graph.module(nn.Linear(3, 2), trainable=True), reads=["means"], writes=["logits"]),
}
PIPELINE = fpatch.pipeline(PARTS)


@pytest.fixture
def saved(tmp_path):
    params = {name: value + 1 for name, value in PIPELINE.init(KEY).items()}
    return params, PIPELINE.save(tmp_path, params), tmp_path


def test_every_node_has_its_file_and_loads_the_same_bits(saved):
    params, files, folder = saved
    names = ["pixels.safetensors", "body/net.safetensors", "head.safetensors"]
    assert [file.relative_to(folder).as_posix() for file in files] == names
    assert set(load_file(files[1])) == set(nn.BatchNorm2d(3).state_dict())
    loaded = PIPELINE.load(folder, random.key(9))
    assert_equal(loaded.params, params)
    assert (loaded.fresh, loaded.unused) == ((), ())


def test_a_node_without_its_file_begins_anew(saved):
    params, files, folder = saved
    files[2].unlink()
    (folder / "old.safetensors").write_bytes(files[0].read_bytes())
    loaded = PIPELINE.load(folder, random.key(9))
    assert (loaded.fresh, loaded.unused) == (("head",), ("old.safetensors",))
    assert torch.equal(loaded.params["head/weight"], PIPELINE.init(random.key(9))["head/weight"])
    assert torch.equal(loaded.params["a"], params["a"])


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (
            lambda t: t | {"weight": torch.zeros(2, 4)},
            r"'weight' of node 'head' must be .* \[2, 3\], got .*\[2, 4\]",
        ),
        (lambda t: t | {"weight": t["weight"].double()}, "must be torch.float32 .* got torch.float64"),
        (lambda t: {"weight": t["weight"]}, "'bias' of node 'head' is missing"),
        (lambda t: t | {"baas": t["bias"].clone()}, "node 'head' has no 'baas'; did you mean 'bias'"),
    ],
)
def test_a_file_of_another_network_is_named(saved, change, words):
    _, files, folder = saved
    save_file(change(load_file(files[2])), files[2])
    with pytest.raises(ValueError, match=words):
        PIPELINE.load(folder, KEY)


def test_broken_files_and_wrong_folders_are_refused(saved, tmp_path):
    _, files, folder = saved
    files[0].write_bytes(files[0].read_bytes()[:-5])
    with pytest.raises(ValueError, match=r"pixels.safetensors cannot be read .*restore it, or leave it out"):
        PIPELINE.load(folder, KEY)
    with pytest.raises(ValueError, match="there is no folder"):
        PIPELINE.load(folder / "nowhere", KEY)
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="holds weights of no node"):
        PIPELINE.load(tmp_path / "empty", KEY)
    with pytest.raises(ValueError, match="lack 'a'"):
        PIPELINE.save(folder, {})


def test_layers_have_the_names_of_their_nodes():
    layers = dict(PIPELINE.named_layers())
    assert isinstance(layers["body/net/model"], nn.BatchNorm2d)
    assert set(layers) == {"body/net/model", "head/model"}


def test_a_pipeline_computes_in_a_type():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5)).eval()
    p = fpatch.pipeline({"victim": fpatch.infer.classifier(model)})
    image = {"image": random.uniform(KEY, (2, 3, 4, 4))}
    exact, rough = (q.apply({}, {}, image)["logits"] for q in (p, p.to(dtype=torch.bfloat16)))
    assert rough.dtype == torch.float32
    assert 0 < float((exact - rough).abs().max()) < 0.05
    assert torch.equal(p.to("cpu", torch.float32).apply({}, {}, image)["logits"], exact)
    with unchecked(), pytest.raises(ValueError, match=r"precision must be one of .*'float64'"):
        p.to(dtype=torch.float64)


def test_a_compiled_pipeline_is_the_same():
    model = nn.Sequential(nn.Flatten(), nn.Linear(48, 5))
    part = node(graph.module(model, trainable=True), reads=["image"], writes=["logits"])
    p = fpatch.pipeline({"net": part})
    params, image = p.init(KEY), random.uniform(KEY, (2, 3, 4, 4))

    def run(image):
        return p.apply(params, {}, {"image": image})["logits"]

    with unchecked():
        torch.testing.assert_close(torch.compile(run, backend="aot_eager", fullgraph=True)(image), run(image))
