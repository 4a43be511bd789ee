"""Sealed JSON files: they hold the digest of their own content, so that every edit shows."""

from collections.abc import Mapping
from typing import Any

from fpatch.core.files import digest
from fpatch.core.inputs import parse_json
from fpatch.log.values import to_json

SEAL = "seal"
"""The key of the digest in a sealed file."""


def seal(value: Mapping[str, Any]) -> bytes:
    """Encode a JSON object with the digest of its other entries as its last one.

    Example:
        >>> from fpatch.log.sealed import is_sealed, seal
        >>> data = seal({"rows": 8})
        >>> is_sealed(data), is_sealed(data.replace(b"8", b"9")), is_sealed(b'{"rows": 8}')
        (True, False, None)
    """
    body = {name: entry for name, entry in value.items() if name != SEAL}
    return to_json(body | {SEAL: digest(to_json(body))})


def is_edited(data: bytes, key: str) -> bool:
    """Return whether a file is not as `seal` wrote it; a file without seal and key is of an older version.

    Example:
        >>> from fpatch.log.sealed import is_edited, seal
        >>> whole = seal({"files": {}})
        >>> [is_edited(data, "files") for data in (whole, whole.replace(b"seal", b"sea"), b"{}")]
        [False, True, False]

    Raises:
        ValueError: If the file is no JSON.
    """
    sealed = is_sealed(data)
    return not sealed if sealed is not None else key in parse_json(data)


def is_sealed(data: bytes) -> bool | None:
    """Return whether a file is as `seal` wrote it; None if it holds no seal.

    Raises:
        ValueError: If the file is no JSON.
    """
    value = parse_json(data)
    if not isinstance(value, dict) or SEAL not in value:
        return None
    return seal(value) == data
