"""The site of the documentation: it builds without a warning, and opens in a browser."""

import html
import importlib
import os
import re
import shutil
import subprocess
import sys
import threading
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from test_layout import STAGES

import fpatch

DOCS = Path(__file__).parent.parent / "docs"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
)
in_browser = pytest.mark.skipif(BROWSER is None, reason="needs Chromium; packages.txt names Debian's package")


def build(source: Path, output: Path, *options: str) -> subprocess.CompletedProcess:
    words = ["-m", "sphinx", "-W", "--keep-going", "-q", *options, str(source), str(output)]
    return subprocess.run([sys.executable, *words], capture_output=True, text=True)


@pytest.fixture(scope="module")
def site():
    """The folder of the site, where `make docs` makes it; only what has changed since is made again."""
    output = DOCS / "_build" / "html"
    done = build(DOCS, output)
    assert done.returncode == 0, done.stderr
    return output


class Handler(SimpleHTTPRequestHandler):
    def log_message(self, format, *args):
        pass


@pytest.fixture(scope="module")
def address(site):
    server = ThreadingHTTPServer(("127.0.0.1", 0), partial(Handler, directory=str(site)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()


def open_page(url: str, profile: Path) -> tuple[str, list[str]]:
    """The page as its scripts leave it, and what they wrote into the console."""
    options = (*QUIET, f"--user-data-dir={profile}", "--enable-logging=stderr", "--virtual-time-budget=10000")
    command = [str(BROWSER), *options, "--dump-dom", url]
    environment = {**os.environ, "HOME": str(profile)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


def text_of(page: str) -> str:
    """What a reader sees of the article."""
    article = re.search(r"<article.*?</article>", page, re.DOTALL)
    assert article is not None
    return " ".join(html.unescape(re.sub(r"<[^>]+>", " ", article[0])).split())


def test_every_stage_and_public_name_has_an_address(site):
    from sphinx.util.inventory import InventoryFile

    found = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data["py:function"]
    for identity in STAGES:
        assert found[f"fpatch.{identity}"].uri == (f"reference/stages/{identity}.html#fpatch.{identity}")
    every = InventoryFile.loads((site / "objects.inv").read_bytes(), uri="").data
    named = {name for kind, entries in every.items() if kind.startswith("py:") for name in entries}
    for wing in ("", *("analysis", "create", "data", "infer", "losses", "metrics", "random", "tune", "viz")):
        module = importlib.import_module(f"fpatch.{wing}" if wing else "fpatch")
        for name in getattr(module, "__all__", ("key", "split", "fold_in", "gaussian_field")):
            value = getattr(module, name)
            if name != "__version__" and getattr(fpatch, name, None) is not value:
                assert f"{module.__name__}.{name}" in named
    assert {f"fpatch.{name}" for name in fpatch.__all__ if callable(getattr(fpatch, name))} <= named


@in_browser
def test_the_first_page_opens(address, tmp_path):
    page, console = open_page(f"{address}/index.html", tmp_path)
    for kind in ("Tutorials", "How-to guides", "Reference", "Explanation"):
        assert kind in text_of(page)
    assert 'src="_images/demo.png"' in page
    assert not console


@in_browser
def test_a_stage_says_all_of_itself(address, site, tmp_path):
    page, console = open_page(f"{address}/reference/stages/compose.exposure.html", tmp_path)
    text = text_of(page)
    for words in (
        *(
            "Brighten or darken an image by photographic stops.",
            "exposure ( stops = (-1.0, 1.0)",
            "reads image",
        ),
        *("writes image", "samples stops float [b]", 'stage = "compose.exposure"', "def apply"),
    ):
        assert words in text
    assert "What compose.exposure does" in page
    assert (site / "_images" / "compose-exposure.jpg").exists()
    assert 'class="copybtn' in page  # the script of the copy button ran
    assert not console


@in_browser
def test_search_finds_a_loss_by_its_name_in_the_literature(address, tmp_path):
    page, console = open_page(f"{address}/search.html?q=non-printability", tmp_path)
    results = page.partition('id="search-results"')[2].partition("</ul>")[0]
    first = re.findall(r'<a href="([^"]*)"', results)[0]
    assert first == "reference/stages/losses.non_printability.html#fpatch.losses.non_printability"
    assert not console


@in_browser
def test_an_error_in_the_console_is_seen(site, address, tmp_path):
    """The other tests could not fail if the console went unread."""
    (site / "broken.html").write_text("<article></article><script>missing()</script>")
    _, console = open_page(f"{address}/broken.html", tmp_path)
    assert "missing is not defined" in "".join(console)


@pytest.mark.parametrize(
    ("text", "warning"),
    [
        ("`compose.exposre`", "'compose.exposre' is no stage or function of its family"),
        ("[there](nowhere.md)", "cross-reference target not found: 'nowhere.md'"),
        ("{term}`wobble`", "term not in glossary: 'wobble'"),
    ],
)
def test_a_page_that_leads_nowhere_fails_the_build(tmp_path, text, warning):
    """The extensions alone, on a page of one line."""
    source = tmp_path / "docs"
    source.mkdir()
    extensions = "['myst_parser', 'links']"
    (source / "conf.py").write_text(
        f"import sys\nsys.path.append({str(DOCS / '_ext')!r})\nextensions = {extensions}\n"
    )
    (source / "index.md").write_text(f"# Page\n\n{text}\n")
    done = build(source, tmp_path / "out")
    assert done.returncode == 1
    assert warning in done.stderr
