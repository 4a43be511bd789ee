"""Digests of what every case draws. A change of one is a change for users: name it in the changelog, under
Numerics, then run `python tests/golden.py`.
"""

import hashlib
import json
from pathlib import Path

from cases import CASES, Case

from fpatch import random
from fpatch.columns import to_columns

FILE = Path(__file__).with_suffix(".json")


def digest_draws(case: Case) -> str:
    digest = hashlib.sha256()
    for name, column in sorted(to_columns(case.subject.sample(random.key(0), case.batch)).items()):
        digest.update(f"{name} {column.dtype} {column.shape}".encode() + column.tobytes())
    return digest.hexdigest()


def digest_all() -> dict[str, str]:
    return {
        name: digest_draws(case)
        for name, case in CASES.items()
        if any(s.definition.fields for s in case.stages)
    }


if __name__ == "__main__":
    FILE.write_text(json.dumps(digest_all(), indent=2) + "\n")
