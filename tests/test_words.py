"""The English of code and pages: a short list of phrases that are not used.

Subject first, the field's term, one idea per sentence. Each phrase here once hid its subject from a reader.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
WRITTEN_FROM_CODE = {"_build", "api", "stages", "settings.md", "commands.md"}
READ = [
    *ROOT.glob("*.md"),
    *(p for p in (ROOT / "docs").rglob("*.md") if not WRITTEN_FROM_CODE & {*p.parts, p.name}),
    *(p for folder in ("fpatch", "experiments", "benchmarks") for p in (ROOT / folder).rglob("*.py")),
]
AVOIDED = {
    r"\bso many\b": "give the number's name",
    r"\bgoes? on with\b": "continue",
    r"\bwhat there is to\b": "name it",
    r"\bwhoever\b": "a caller, a user, a process",
    r"\btold of\b": "is called with, receives",
    r"\bwhat is said of\b": "name it: the description, the help",
    r"\bof which there (is|are)\b": "a relative clause fewer",
    r"\bas (it was|they were) then\b": "as recorded",
    r"\bbenign (patch|print)": "control patch",
    r"\bso much of\b": "the share, the fraction",
    r'^\s*(r|f)?"""(What|Who|Whose)\b': "begin with a noun or an imperative",
}


def find_phrases(text: str) -> Iterator[tuple[int, str, str]]:
    """Line number, phrase and advice of each phrase that is avoided."""
    for number, line in enumerate(text.splitlines(), 1):
        for phrase, advice in AVOIDED.items():
            if found := re.search(phrase, line, re.IGNORECASE):
                yield number, found[0].strip(), advice


def test_no_avoided_phrase_is_used():
    assert len(READ) > 200
    hits = [
        f"{path.relative_to(ROOT)}:{number}: {phrase!r}: {advice}"
        for path in READ
        for number, phrase, advice in find_phrases(path.read_text())
    ]
    assert not hits, "\n".join(hits)


@pytest.mark.parametrize(
    "line", ['    """What a command is."""', "A run that so many processes go on with.", "Whoever reads"]
)
def test_an_avoided_phrase_is_seen(line):
    assert list(find_phrases(line))
