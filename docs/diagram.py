"""Draw the diagram of the pipeline on the page `how-to/pictures.md`, by Mermaid in Chromium.

    npm install && python docs/diagram.py

The picture holds its diagram as text, so that a test sees when it is out of date.
"""

import re
import sys
import tempfile
from pathlib import Path
from typing import Any

from PIL import Image, ImageChops, ImageOps
from PIL.PngImagePlugin import PngInfo

DOCS = Path(__file__).parent
PAGE, PICTURE = DOCS / "how-to" / "pictures.md", DOCS / "images" / "diagram.png"
MARGIN_PX = 16


def make_diagram() -> str:
    """The diagram of the page's first block of code."""
    block = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)[0]
    names: dict[str, Any] = {}
    exec(compile(block, str(PAGE), "exec"), names)
    return names["recipe"].mermaid()


def crop(picture: Image.Image) -> Image.Image:
    """A picture with white margins of a few pixels."""
    found = ImageChops.difference(picture, Image.new("RGB", picture.size, "white")).getbbox()
    assert found is not None, "nothing was drawn"
    return ImageOps.expand(picture.crop(found), MARGIN_PX, "white")


def main() -> None:
    """Write the picture."""
    sys.path.insert(0, str(DOCS.parent / "tests" / "support"))
    import mermaid

    if mermaid.MISSING:
        sys.exit(mermaid.MISSING)
    diagram, about = make_diagram(), PngInfo()
    about.add_text("mermaid", diagram, zip=True)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, "drawn.png")
        mermaid.draw(diagram, file, width=2400, height=3000)
        drawn = crop(Image.open(file).convert("RGB"))
    drawn.quantize(128, dither=Image.Dither.NONE).save(PICTURE, pnginfo=about, optimize=True)
    print(PICTURE, drawn.size)


if __name__ == "__main__":
    main()
