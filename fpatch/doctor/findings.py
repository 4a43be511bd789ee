"""The type of a finding."""

from typing import Literal, NamedTuple

Level = Literal["error", "warning", "note"]
"""How much a finding weighs, the gravest first."""


class Finding(NamedTuple):
    """A fault or a risk of a study.

    Attributes:
        level: "error" if the patch cannot learn, or cannot be measured; "note" for what is of little weight.
        where: The node or the setting.
        what: The observation and the way out.
    """

    level: Level
    where: str
    what: str
