"""A detector with room for fewer answers than an image has objects is named before anything is measured."""

import logging

import pytest
from study_fixture import make_study

from fpatch.doctor.examine import examine
from fpatch.study.config import load_study
from fpatch.study.dry_run import dry_run
from fpatch.study.room import find_crowded
from fpatch.study.setup import set_up


def study_of(folder, objects, num_detections):
    """Return a study whose first test image has several objects."""
    path = make_study(folder)
    path.write_text(
        path.read_text().replace(
            'stage = "infer.suppress"\n', f'stage = "infer.suppress"\nnum_detections = {num_detections}\n'
        )
    )
    table = folder / "objects.csv"
    row = next(line for line in table.read_text().splitlines() if ",test," in line)
    more = [f"{row}.{i:03d}" for i in range(1, objects)]
    table.write_text("\n".join([*table.read_text().splitlines(), *more]) + "\n")
    return load_study(path)


@pytest.mark.parametrize(("room", "warns"), [(2, True), (3, False), (50, False)])
def test_too_little_room_is_said_with_its_numbers(tmp_path, room, warns):
    study = study_of(tmp_path, 3, room)
    found = dict(find_crowded(study, set_up(study)))
    assert set(found) == ({"suppress"} if warns else set())
    if warns:
        assert found["suppress"].startswith(
            "has room for 2 answers, but 1 of 4 test images have more objects, 3 at most"
        )


def test_it_is_said_when_a_study_is_tried_and_by_doctor(tmp_path, caplog):
    study = study_of(tmp_path, 3, 2)
    with caplog.at_level(logging.WARNING):
        dry_run(study)
    assert [r.getMessage()[:49] for r in caplog.records] == [
        "node 'suppress' has room for 2 answers, but 1 of "
    ]
    findings = examine(study, 2).findings
    assert [(f.level, f.where) for f in findings if "room for" in f.what] == [("warning", "suppress")]


def test_a_victim_with_few_boxes_is_named(tmp_path):
    """The victim answers 16 x 12 = 192 boxes."""
    study = study_of(tmp_path, 200, 300)
    assert dict(find_crowded(study, set_up(study)))["victim"].startswith("has room for 192 answers")
