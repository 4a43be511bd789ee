"""The protocols of iterables and of torch's datasets, for the loader and the target set."""

import itertools

import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset
from typecheck import unchecked

from fpatch import data, random
from fpatch.demo.tiny import tiny_study

KEY = random.key(3)


@pytest.fixture(scope="module")
def targets(tmp_path_factory):
    return tiny_study(tmp_path_factory.mktemp("tiny")).data.open()


def check_equal(found, expected):
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 9])
def test_a_loop_over_a_loader_is_an_epoch(targets, batch_size):
    loader = data.Loader(targets, KEY, batch_size)
    batches = list(loader)
    assert len(batches) == len(loader) == -(-len(targets) // batch_size)
    for found, expected in zip(batches, loader.batches(), strict=False):
        check_equal(found, expected)
    for found, expected in zip(loader, batches, strict=True):  # a second loop is the same
        check_equal(found, expected)
    assert {i for batch in batches for i in batch["image_id"].tolist()} == set(targets.image_ids.tolist())


def test_a_loop_that_is_left_ends_its_thread(targets):
    for _ in data.Loader(targets, KEY, 1):
        break
    assert len(list(itertools.islice(data.Loader(targets, KEY, 1), 2))) == 2


def test_one_image_of_a_target_set(targets):
    view = targets.split("train")
    for index in range(-len(view), len(view)):
        row, batch = view[index], view.batch(view.image_ids[[index]])
        check_equal({name: value[None] for name, value in row.items()}, batch)
    assert [int(row["image_id"]) for row in view] == view.image_ids.tolist()
    with pytest.raises(IndexError, match=f"there are {len(view)} images in this view, got index {len(view)}"):
        view[len(view)]
    with unchecked(), pytest.raises(TypeError, match=r"targets\.select\(targets\.image_ids\[:5\]\)"):
        view[:2]
    with unchecked(), pytest.raises(TypeError, match="an image has a number; a split is"):
        view["scene"]


@pytest.mark.filterwarnings("ignore:os.fork:RuntimeWarning")  # where another test has imported jax
@pytest.mark.parametrize("num_workers", [0, 1])
def test_a_data_loader_of_torch_joins_the_rows(targets, num_workers):
    batches = list(DataLoader(targets, batch_size=3, num_workers=num_workers))
    assert [len(batch["image_id"]) for batch in batches] == [3, 3, 2]
    for batch in batches:
        check_equal(batch, targets.batch(batch["image_id"]))


def test_a_dataset_of_torch_names_what_a_loader_takes():
    with (
        unchecked(),
        pytest.raises(ValueError, match=r"got a TensorDataset; read one by fpatch\.data\.targets"),
    ):
        data.Loader(TensorDataset(torch.zeros(3)), KEY, 1)
