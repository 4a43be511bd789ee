"""The type of a finding."""

from typing import Literal, NamedTuple


class Finding(NamedTuple):
    """A fault or a risk of a study.

    Attributes:
        level: "error" if the patch cannot learn, or cannot be measured.
        where: The node or the setting.
        what: The observation and the way out.
    """

    level: Literal["error", "warning"]
    where: str
    what: str
