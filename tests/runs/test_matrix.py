"""Attack x defense of runs: every cell is an evaluation, paired with the others, and replays."""

import json
import shutil

import numpy as np
import pytest

from fpatch import evaluate_run, replay_run
from fpatch.cli.defenses import matrix_table, read_defenses
from fpatch.cli.main import main
from fpatch.demo.tiny import tiny_study
from fpatch.evaluation.defenses import compare_defenses
from fpatch.evaluation.rates import success
from fpatch.runs.matrix import matrix_facts, matrix_runs, save_matrix
from fpatch.runs.naming import table_name
from fpatch.runs.training import train
from fpatch.runs.verifying import verify_run

FEW = {"few": {"stage": "defend.bit_depth", "num_bits": 1}}
DARK = {"dark": {"stage": "defend.gradient_smoothing", "threshold": 0.0, "strength": 9.0}}
CLEANSER = {"cleanser": {"stage": "defend.double_masking", "patch_px": [12, 12], "num_masks": 2}}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """An oblivious patch, and one that was trained through one bit, by other draws and a wish for more."""
    folder = tmp_path_factory.mktemp("matrix")
    plain = train(tiny_study(folder, {"name": "plain"}))
    other = {"defense.shield.stage": "defend.bit_depth", "defense.shield.num_bits": 1, "name": "adaptive"}
    adaptive = train(tiny_study(folder, {**other, "seed": 5, "evaluate.num_draws": 3}))
    return [run.folder for run in (plain, adaptive)]


@pytest.fixture(scope="module")
def found(made):
    return matrix_runs(made, {"few": FEW, "dark": DARK, "cleanser": CLEANSER})


def test_every_cell_is_an_evaluation_of_the_same_rows(made, found):
    plain, adaptive = (folder.name for folder in made)
    assert list(found.defenses) == ["none", "few", "dark", "cleanser"]
    assert found.oblivious == [plain]
    assert {d: b.adaptive for d, b in found.defenses.items()} == {
        "none": [], "few": [adaptive], "dark": [], "cleanser": [],
    }  # fmt: skip
    keys = set()
    for defense, tables in found.tables.items():
        for folder in made:
            table = json.loads((folder / f"tables/{tables[folder.name]}.json").read_text())
            assert table.get("settings", {}).get("defense", "own") == (
                "own"
                if (defense, folder.name) in {("none", plain), ("few", adaptive)}
                else found.stages[defense]
            )
    for folder in made:
        run, rates = evaluate_run(folder, settings={"seed": 0, "evaluate.num_draws": 1, "defense": DARK})
        own = found.defenses["dark"].attacks[folder.name]
        assert repr(rates.rates) == repr(own.rates)
        table = run.load_table(found.tables["dark"][folder.name])
        keys.add((tuple(table["key/0"]), tuple(table["image_id"])))
    assert len(keys) == 1


def test_what_a_victim_pays_and_what_a_patch_does(found, made):
    """By the columns of the tables, one row at a time."""
    plain = made[0]
    tables = {d: load(plain, found.tables[d][plain.name]) for d in found.defenses}
    clean, dark = (tables[d]["found/none"] for d in ("none", "dark"))
    assert found.defenses["dark"].cost.value == np.mean(dark.astype(int) - clean)
    assert found.defenses["dark"].clean.value == dark.mean()
    for defense, behind in found.defenses.items():
        rows = tables[defense]["found/none"] & clean
        if rows.any():
            lost = [int(not tables[defense]["found/patch"][i]) - int(not tables["none"]["found/patch"][i])
                    for i in np.flatnonzero(rows)]  # fmt: skip
            assert behind.change[plain.name]["patch"].value == np.mean(lost)
    few = found.defenses["few"]
    own = load(made[1], found.tables["few"][made[1].name])
    counted = own["found/none"]
    gained = (~own["found/patch"]).astype(int) - (~tables["few"]["found/patch"]).astype(int)
    assert few.gain == {made[1].name: few.gain[made[1].name]}
    assert few.gain[made[1].name].value == gained[counted].mean()


def test_an_attack_is_adaptive_by_its_training_alone(tmp_path):
    """Defenses that stand in other phases than the training do not make a patch adaptive, or hide it."""
    phases = {"plain": None, "measured": ["eval"], "trained": ["train"]}
    shield = {name: {"few": FEW["few"] | ({"phases": at} if at else {})} for name, at in phases.items()}
    runs = {
        name: train(tiny_study(tmp_path, {"name": name, "defense": {} if name == "plain" else shield[name]}))
        for name in phases
    }
    plain, measured, trained = (run.folder for run in runs.values())
    found = matrix_runs([plain, measured, trained], {"few": FEW, "late": shield["measured"]})
    assert found.oblivious == [plain.name, measured.name]
    assert {d: behind.adaptive for d, behind in found.defenses.items()} == {
        "none": [], "few": [trained.name], "late": [trained.name],
    }  # fmt: skip
    assert list(found.defenses["few"].gain) == [trained.name]


def load(folder, table):
    from fpatch.runs.folder import Run

    return Run.open(folder).load_table(table)


@pytest.mark.parametrize("defense", ["none", "few", "dark", "cleanser"])
def test_a_cell_replays_and_verifies(made, found, defense):
    for folder in made:
        table = found.tables[defense][folder.name]
        again, differences = replay_run(folder, table=table)
        assert len(again.rows) == 4
        assert not again.differences
        assert not differences
        assert verify_run(folder, table=table).is_proved


def test_a_cell_of_another_defense_is_not_proved(made, found, tmp_path):
    """A manifest that names another defense is found out by the images that are made again."""
    folder = shutil.copytree(made[0], tmp_path / made[0].name)
    table = found.tables["dark"][made[0].name]
    manifest = json.loads((folder / f"tables/{table}.json").read_text())
    manifest["settings"]["defense"]["dark"]["strength"] = 0.5
    (folder / f"tables/{table}.json").write_text(json.dumps(manifest))
    result = verify_run(folder, table=table)
    assert not result.is_proved
    assert result.replay is None or result.replay.differences


def test_the_files_say_what_was_measured(made, found, tmp_path):
    files = save_matrix(tmp_path / "matrix", found)
    assert files[1].stat().st_size > 5000
    written = json.loads(files[0].read_text())
    assert list(written) == list(found.defenses)
    own = written["few"]["attacks"][made[0].name]
    assert own["table"] == found.tables["few"][made[0].name] == table_name("test", "best", {"defense": FEW})
    assert own["gain"] is None
    assert written["few"]["attacks"][made[1].name]["gain"]["count"] == own["rates"]["patch"]["count"]
    assert written["dark"]["stages"] == DARK
    assert set(own["change"]) == {"patch", "noise", "flat", "shuffled"}
    said = found.warnings[made[1].name]
    assert any("evaluate.num_draws is 3 in its study; 1" in text for text in said)


def test_the_table_shows_the_strongest_of_several(found):
    cells = [[str(cell) for cell in column.cells] for column in matrix_table(found).columns]
    assert cells[0] == ["none", "few", "dark", "cleanser"]
    assert cells[3][0] == cells[3][2] == "-"
    rates = {name: r.rates["patch"].value for name, r in found.defenses["none"].attacks.items()}
    assert cells[2][0].startswith(f"{100 * max(rates[name] for name in found.oblivious):.1f}")
    assert cells[4][0].startswith(f"{100 * max(rates.values()):.1f}")


@pytest.mark.slow
def test_the_command(made, tmp_path, capsys):
    file = tmp_path / "defenses.toml"
    file.write_text('[one]\nstage = "defend.bit_depth"\nnum_bits = 1\n[both.a]\nstage = "defend.median"\n'
                    '[both.b]\nstage = "compose.jpeg"\nquality = [20, 20]\n')  # fmt: skip
    words = ["matrix", str(made[1]), "--defense", "defend.median", "--defenses", str(file)]
    assert main([*words, "--out", str(tmp_path / "out"), "--json"]) == 0
    printed = capsys.readouterr()
    facts = json.loads(printed.out)
    assert list(facts["defenses"]) == ["none", "median", "one", "both"]
    assert facts["defenses"]["one"]["adaptive"] == [made[1].name]  # by whatever name
    assert list(facts["defenses"]["both"]["stages"]) == ["a", "b"]
    assert facts["defenses"] == json.loads((tmp_path / "out.json").read_text())
    assert "success % of patches behind defenses" in printed.err


def test_defenses_of_the_command_line():
    found = read_defenses(
        ["defend.median", "j = {stage = 'compose.jpeg', quality = [20, 20]}", "own:blur"], None
    )
    assert found == {
        "median": {"median": {"stage": "defend.median"}},
        "j": {"j": {"stage": "compose.jpeg", "quality": [20, 20]}},
        "blur": {"blur": {"stage": "own:blur"}},
    }
    for words, message in (
        ([], "give a defense at least"),
        (["defend.median", "defend.median"], "'median' is given twice"),
        (["x=3"], "a defense is {stage = ID"),
        (["x={}"], "a defense is {stage = ID"),
        (["x={num_bits = 2}"], "a defense is {stage = ID"),
    ):
        with pytest.raises(ValueError, match=message):
            read_defenses(words, None)


def test_what_cannot_be_compared(made, tmp_path):
    with pytest.raises(ValueError, match="matrix: the names of the run folders must differ"):
        matrix_runs([made[0], made[0]], {"few": FEW})
    with pytest.raises(ValueError, match="matrix: give the folder of at least one run"):
        matrix_runs([], {"few": FEW})
    for defenses in ({"none": FEW}, {"few": {}}):
        with pytest.raises(ValueError, match="must have nodes, and a name other than 'none'"):
            matrix_runs(made[:1], defenses)
    with pytest.raises(ValueError, match="its defenses are those that are listed"):
        matrix_runs(made[:1], {"few": FEW}, settings={"defense.x": FEW["few"]})
    (tmp_path / "moved").mkdir()
    study = tiny_study(tmp_path / "moved", {"name": "moved"})
    table = tmp_path / "moved" / "placements.csv"
    table.write_text(table.read_text().replace("7.png,tag,test,11", "7.png,tag,test,10"))
    other = train(study)
    with pytest.raises(ValueError, match=r"matrix: .* has other images in the test split than"):
        matrix_runs([made[0], other.folder], {"few": FEW})


def table(without, patched, **others):
    columns = {"found/none": np.array(without, bool), "found/patch": np.array(patched, bool)}
    return {"image_id": np.arange(len(without)), "draw": np.zeros(len(without), int), **columns, **others}


def test_rows_that_differ_are_refused():
    plain = {"none": {"a": table([1, 1], [0, 1])}, "few": {"a": table([1, 1], [0, 1], draw=np.ones(2, int))}}
    with pytest.raises(ValueError, match="the table of attack 'a' behind 'few' has other rows or keys"):
        compare_defenses(plain, {"none": ["a"]})


def test_differences_rest_on_rows_that_count_in_both():
    """Seven images, of which the defense finds others than the victim alone."""
    none = table([1, 1, 1, 1, 1, 1, 0], [0, 0, 0, 0, 1, 1, 1])
    few = table([1, 1, 1, 1, 1, 0, 1], [0, 1, 1, 1, 1, 0, 0])
    found = compare_defenses({"none": {"a": none}, "few": {"a": few}}, {"none": ["a"]})["few"]
    assert found.cost.value == 0.0
    assert (found.cost.count, found.change["a"]["patch"].count) == (7, 5)
    assert found.change["a"]["patch"].value == pytest.approx(-3 / 5)
    assert found.change["a"]["patch"].low < -0.5 < found.change["a"]["patch"].high
    assert found.attacks["a"].rates["patch"].count == 6
    assert repr(found.attacks["a"]) == repr(success(few))


def test_rows_that_are_not_finite_give_no_rate():
    broken = table([1] * 6, [0] * 6) | {"finite/patch": np.array([True] * 5 + [False])}
    plain = table([1] * 6, [1, 0, 1, 0, 1, 0])
    found = compare_defenses({"none": {"a": plain}, "few": {"a": broken}}, {})["few"]
    assert found.attacks["a"].not_finite
    assert np.isnan(found.change["a"]["patch"].value)
    assert found.cost.value == 0.0


def test_facts_are_those_of_the_table(found):
    facts = matrix_facts(found)
    for defense, behind in found.defenses.items():
        assert facts[defense]["clean"] == behind.clean._asdict()
