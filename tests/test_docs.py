"""The code in the documentation runs."""

import importlib
import re
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fpatch.cli.main import main

ROOT = Path(__file__).parent.parent
WRITTEN = [p for p in sorted((ROOT / "docs").rglob("*.md")) if "_build" not in p.parts]
PAGES = [p for p in WRITTEN if "```python" in p.read_text()]


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_python_blocks_run(page, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    module = types.ModuleType("doc_" + page.stem.replace("-", "_"))
    monkeypatch.setitem(sys.modules, module.__name__, module)
    for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL):
        exec(compile(block, str(page), "exec"), module.__dict__)


def test_the_code_of_a_page_names_only_what_it_imports():
    """Also code that no test runs, since it needs a run folder."""
    errors = []
    for page in WRITTEN:
        blocks = re.findall(r"^```py(?:thon)?\n(.*?)^```", page.read_text(), re.DOTALL | re.MULTILINE)
        words = f"-m ruff check --isolated --quiet --select F821 --stdin-filename {page.stem}.py -".split()
        code = "\n".join(blocks)
        done = subprocess.run([sys.executable, *words], input=code, capture_output=True, text=True)
        errors += [done.stdout] if done.returncode else []
    assert not errors, "\n".join(errors)


def test_the_readme_is_short_and_its_example_prints_a_success_rate(monkeypatch, capsys, tmp_path):
    text = (ROOT / "README.md").read_text()
    assert len(text.splitlines()) <= 70
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert len(code.splitlines()) <= 15
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    exec(compile(code, "README.md", "exec"), {})
    printed = capsys.readouterr().out
    success = re.search(r"^patch +(\d+\.\d) % \[\d+\.\d, \d+\.\d\] of \d+ rows", printed)
    assert success
    assert float(success[1]) > 40


def test_the_study_of_a_model_of_ones_own_is_trained_and_replayed(tmp_path, monkeypatch):
    """The files of the page, with photographs and weights of our own, by the page's commands."""
    text = (ROOT / "docs" / "how-to" / "your-own-model.md").read_text()
    tables = re.findall(r"```\n(image,.*?)```", text, re.DOTALL)
    for name, table in zip(("placements.csv", "objects.csv"), tables, strict=True):
        (tmp_path / name).write_text(table)
    code = re.search(r"```python\n(.*?)```", text, re.DOTALL)
    study = re.search(r"```toml\n(name.*?)```", text, re.DOTALL)
    assert code
    assert study
    (tmp_path / "my_models.py").write_text(code[1])
    few = study[1].replace("num_draws = 10", "num_draws = 2\nblock = 2")
    (tmp_path / "study.toml").write_text(few + "\n[log]\nmlflow = false\n")
    random = np.random.default_rng(0)
    for name in "abcd":
        pixels = random.integers(0, 255, (96, 96, 3), dtype=np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.jpg")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    my_models = importlib.import_module("my_models")
    torch.save(my_models.Classifier(2).state_dict(), tmp_path / "classifier.pt")
    for words in ("describe study.toml", "train study.toml --train.num_steps 2"):
        assert main(words.split()) == 0
    assert main(["doctor", "study.toml"]) in (0, 1)  # an untrained model may well be wrong everywhere
    (run,) = (path for path in (tmp_path / "runs").iterdir() if path.is_dir())  # beside the doctor's picture
    for words in (["evaluate", str(run)], ["replay", str(run), "--verify"]):
        assert main(words) == 0
    look = (ROOT / "docs" / "how-to" / "analysis.md").read_text().replace("runs/<time>-poster", str(run))
    code = "\n".join(re.findall(r"```py\n(.*?)```", text + look, re.DOTALL))
    for long, short in (
        ("1000}", "1}"),
        ("num_steps = 300", "num_steps = 1"),
        ("num_draws=10", "num_draws=1, block=1"),
    ):
        assert code.count(long) == 1
        code = code.replace(long, short)
    exec(compile(code, "your-own-model.md and analysis.md", "exec"), {})
    assert (tmp_path / "what-if.png").exists()
    monkeypatch.delitem(sys.modules, "my_models")


def test_pages_with_code_are_found():
    assert {p.name for p in PAGES} >= {"quick-start.md", "write-a-stage.md"}


@pytest.mark.parametrize(
    "page", [*ROOT.glob("*.md"), *ROOT.glob("*/README.md")], ids=lambda p: str(p.relative_to(ROOT))
)
def test_links_lead_somewhere(page):
    """On the pages beside the documentation; the build of the site checks those in it."""
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not target.startswith(("http://", "https://")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
