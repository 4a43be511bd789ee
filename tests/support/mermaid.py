"""The real Mermaid, in a Chromium without a display: it parses and draws diagrams."""

import html
import json
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

LIBRARY = Path(__file__).parents[2] / "node_modules" / "mermaid" / "dist" / "mermaid.min.js"
BROWSER = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
MISSING = (
    "needs Mermaid: npm install"
    if not LIBRARY.exists()
    else "needs Chromium; packages.txt names Debian's package"
    if BROWSER is None
    else ""
)
"""The reason why there is no Mermaid; empty if there is one."""

_QUIET = (
    *("--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync"),
    *("--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage"),
    *("--hide-scrollbars", "--virtual-time-budget=60000"),
)
_PARSE = """
async function parse(text, number) {
  try {
    const {db} = await mermaid.mermaidAPI.getDiagramFromText(text);
    const box = document.createElement("div");
    box.innerHTML = (await mermaid.render(`drawn${number}`, text)).svg;
    return {
      nodes: [...db.getVertices().values()].map(
        v => ({id: v.id, text: v.text, shape: v.type, styles: v.classes})),
      arrows: db.getEdges().map(e => ({start: e.start, end: e.end, text: e.text})),
      groups: db.getSubGraphs().map(g => ({id: g.id, text: g.title, inside: g.nodes})),
      drawn: [...box.querySelectorAll("g.node .nodeLabel")].map(label => label.textContent),
    };
  } catch (error) { return {error: String(error)}; }
}
mermaid.initialize({startOnLoad: false, securityLevel: "strict"});
(async () => {
  const found = [];
  for (const text of GIVEN) found.push(await parse(text, found.length));
  document.getElementById("found").textContent = JSON.stringify(found);
})();
"""


def _open(page: str, *options: str) -> str:
    """Open a page, and return it as its scripts leave it."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "page.html")
        file.write_text(page, "utf-8")
        command = [str(BROWSER), *_QUIET, f"--user-data-dir={folder}/profile", *options, file.as_uri()]
        environment = {**os.environ, "HOME": folder}
        done = subprocess.run(command, capture_output=True, text=True, timeout=240, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout


def _page(body: str) -> str:
    return f'<!doctype html><meta charset="utf-8"><script src="{LIBRARY.as_uri()}"></script>{body}'


def parse(diagrams: list[str]) -> list[dict[str, Any]]:
    """Parse and draw diagrams; return for each its nodes, arrows, groups and drawn labels, or its error."""
    given = json.dumps(diagrams).replace("<", "\\u003c")
    script = f"<script>const GIVEN = {given};{_PARSE}</script>"
    page = _open(_page(f'<pre id="found"></pre>{script}'), "--dump-dom")
    found = page.partition('<pre id="found">')[2].partition("</pre>")[0]
    return json.loads(html.unescape(found))


def draw(diagram: str, path: Path, width: int, height: int) -> None:
    """Write a PNG of a diagram, at twice the resolution of a screen."""
    body = f'<body style="margin:8px;background:white"><pre class="mermaid">{html.escape(diagram)}</pre>'
    start = "<script>mermaid.initialize({startOnLoad: true, flowchart: {useMaxWidth: false}})</script>"
    size = (f"--window-size={width},{height}", "--force-device-scale-factor=2")
    _open(_page(body + start), *size, f"--screenshot={path}")
