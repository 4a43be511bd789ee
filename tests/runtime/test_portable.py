"""The portable execution: the same bits under the instruction sets of other processors."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fpatch import evaluate_run, train
from fpatch.cli.main import _make_parser
from fpatch.cli.portable import must_start_again
from fpatch.demo.tiny import tiny_study
from fpatch.runtime import processor
from fpatch.runtime.execution import Execution
from fpatch.runtime.portable import ENVIRONMENT

VICTIM = """
import torch
import torchvision
from fpatch.core.resource import define_loader


def load(name):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return getattr(torchvision.models, name)(weights=None, num_classes=2).eval()


network = define_loader("network", load)
"""

PORTABLE = ("--portable",)
TABLE = "test-portable-True"

OTHER_PROCESSORS = (
    {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"MKL_ENABLE_INSTRUCTIONS": "AVX2", "ONEDNN_MAX_CPU_ISA": "AVX2"},
    {"GLIBC_TUNABLES": "glibc.cpu.hwcaps=-AVX512F,-AVX2,-FMA", "NPY_DISABLE_CPU_FEATURES": "AVX2"},
)
"""Settings with which the math libraries choose the kernels of other processors."""


def run(folder: Path, *words: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run a command of fpatch in a folder, as on the processor that the environment imitates."""
    own = {n: v for n, v in os.environ.items() if n not in ENVIRONMENT}
    command = [sys.executable, "-m", "fpatch", *words]
    return subprocess.run(command, cwd=folder, env=own | environment, capture_output=True, text=True)


def trained(folder: Path, name: str) -> Path:
    """Train on a network of random weights; return the run folder."""
    (folder / "victims.py").write_text(VICTIM)
    tiny_study(folder)
    study = folder / "study.toml"
    model = f'{{loader = "victims:network", arguments = {{name = "{name}"}}}}'
    study.write_text(study.read_text().replace('{loader = "demo.brightness"}', model))
    done = run(folder, "train", "study.toml", "--log.runs", ".", "--data.validation", "false")
    assert done.returncode == 0, done.stderr
    return next(folder.glob("*-lamp"))


def digests(folder: Path) -> str:
    """Return the table of an evaluation as text, without the paths of images."""
    return (folder / f"tables/{TABLE}.csv").read_text()


def check_everywhere(folder: Path) -> None:
    """Evaluate here, and rerun and verify on other processors."""
    done = run(folder.parent, "evaluate", folder.name, *PORTABLE)
    assert done.returncode == 0, done.stderr
    recorded = json.loads((folder / f"tables/{TABLE}.json").read_text())["execution"]
    assert Execution(**recorded).portable
    here = digests(folder)
    for processor_ in OTHER_PROCESSORS:
        again = run(folder.parent, "replay", folder.name, "--table", TABLE, "--verify", **processor_)
        assert again.returncode == 0, again.stdout + again.stderr
        assert "identical 4 different 0" in again.stdout
        fresh = run(folder.parent, "evaluate", folder.name, *PORTABLE, **processor_)
        assert fresh.returncode == 0, fresh.stderr
        assert digests(folder) == here


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("name", ["mobilenet_v3_small", "resnet18", "swin_t"])
def test_portable_tables_verify_on_all_processors(tmp_path, name):
    check_everywhere(trained(tmp_path, name))


@pytest.mark.slow
def test_a_native_table_does_not_verify_on_another_processor(tmp_path):
    """The control of the tests above: the imitated processor does compute other bits."""
    folder = trained(tmp_path, "mobilenet_v3_small")
    assert run(tmp_path, "evaluate", folder.name).returncode == 0
    again = run(tmp_path, "replay", folder.name, "--verify", ATEN_CPU_CAPABILITY="default")
    assert again.returncode == 1
    assert "cpu: " in again.stdout


@pytest.mark.slow
def test_the_option_is_short_for_the_setting(tmp_path):
    folder = train(tiny_study(tmp_path, {"data.validation": False})).folder
    for words in (["evaluate", folder.name], ["grid", folder.name, "--over", "implant/scale=0.8,1"]):
        done = run(folder.parent, *words, "--portable", "--json")
        assert done.returncode == 0, done.stderr
        name = json.loads(done.stdout)["table"]
        recorded = json.loads((folder / f"tables/{name}.json").read_text())
        assert Execution(**recorded["execution"]).portable
        assert recorded["settings"] == {"evaluate.portable": True}


@pytest.mark.parametrize(
    ("command", "follows"),
    [("evaluate", True), ("grid --over a=1", True), ("transfer", True), ("matrix", True),
     ("train", False), ("resume", False), ("analyze", False), ("replay --step 1", False)],
)  # fmt: skip
def test_only_measurements_follow_the_setting_of_the_run(tmp_path, command, follows):
    """A training that is resumed keeps its execution, and so its bits."""
    (tmp_path / "config.json").write_text('{"evaluate": {"portable": true}}')
    name, *more = command.split()
    options = _make_parser().parse_args([name, str(tmp_path), *more])
    options.overrides = {}
    assert must_start_again(options) is follows
    options.overrides = {"evaluate.portable": False}
    assert not must_start_again(options)
    options.overrides = {"evaluate.portable": True}
    assert must_start_again(options) is follows


def test_a_process_that_was_not_started_for_it_refuses(tmp_path):
    folder = train(tiny_study(tmp_path, {"data.validation": False})).folder
    with pytest.raises(ValueError, match="start Python with MKL_CBWR=COMPATIBLE"):
        evaluate_run(folder, settings={"evaluate.portable": True})


def test_the_processor_is_recorded_and_compared():
    here = Execution.current(16)
    assert here.vendor == processor.vendor()
    assert here.instructions == processor.instructions()
    other = here._replace(vendor="Other", mkl="1.0", kornia="0.1")
    assert [sentence.partition(":")[0] for sentence in other.differences(here)] == ["vendor", "mkl", "kornia"]
    unknown = here._replace(vendor="", model="", instructions="", mkl="", onednn="", kornia="")
    assert not unknown.differences(here)


def test_the_processor_does_not_matter_to_a_portable_table():
    mkl = f"2024, MKL_CBWR={ENVIRONMENT['MKL_CBWR']}"
    here = Execution.current(16)._replace(cpu="DEFAULT", onednn="off", mkl=mkl)
    assert here.portable
    assert not here._replace(vendor="Other", model="Other", instructions="avx").differences(here)
    for change in ({"cpu": "AVX2"}, {"onednn": "3.12"}, {"mkl": "2024"}, {"device": "cuda"}):
        assert not here._replace(**change).portable
