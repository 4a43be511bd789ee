"""Code in the running text that names something documented leads there."""

import re
from typing import Any

from docutils import nodes
from sphinx.application import Sphinx
from sphinx.transforms.post_transforms import SphinxPostTransform
from sphinx.util import logging
from sphinx.util.nodes import make_refnode

NAME = re.compile(r"(?:fpatch\.)?[A-Za-z]\w*(?:\.\w+)*(?=\(\)$|$)")
STAGE = re.compile(r"(?:fpatch\.)?(?:create|implant|compose|infer|defend|losses|metrics)\.[a-z_]+$")

logger = logging.getLogger(__name__)


class LinkCode(SphinxPostTransform):
    """Make links of `fpatch.evaluate`, `compose.exposure` and `Pipeline.at`."""

    default_priority = 20

    def run(self, **kwargs: Any) -> None:
        """Look at every piece of inline code that is not a link or a heading already."""
        for literal in list(self.document.findall(nodes.literal)):
            inside = nodes.reference, nodes.title, nodes.term
            if not any(isinstance(parent, inside) for parent in ancestors(literal)):
                self.link(literal)

    def link(self, literal: nodes.literal) -> None:
        """Put the code into a link, if it is a name that the reference has.

        A plain word is none, since `train` may be a setting as well as a function.
        """
        text = literal.astext()
        found = NAME.match(text)
        if found is None or not ("." in text or "_" in text or text[0].isupper()):
            return
        objects = self.env.domains.python_domain.objects
        full = next((name for name in (found[0], f"fpatch.{found[0]}") if name in objects), None)
        if full is None:
            if STAGE.match(text) and self.env.docname != "development/changelog":
                logger.warning("%r is no stage or function of its family", text, location=literal)
        elif objects[full].docname != self.env.docname:
            docname, node_id = objects[full].docname, objects[full].node_id
            code = literal.deepcopy()
            link = make_refnode(self.app.builder, self.env.docname, docname, node_id, code, full)
            literal.replace_self(link)


def ancestors(node: nodes.Node) -> list[nodes.Node]:
    """The nodes around a node, inmost first."""
    found = []
    while node.parent is not None:
        node = node.parent
        found.append(node)
    return found


def setup(app: Sphinx) -> dict[str, bool]:
    """Join the build."""
    app.add_post_transform(LinkCode)
    return {"parallel_read_safe": True, "parallel_write_safe": True}
