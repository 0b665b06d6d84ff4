"""Checksums that lie within the files they are of, so that both take their place in one rename."""

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

_PREFIX = b"sha256:"
_COMMENT = len(_PREFIX) + 64


def seal(file: BinaryIO) -> None:
    """Give a zip archive, which every checkpoint is, a comment with its checksum; any reader of zip files ignores it.

    The checksum, SHA-256, is that of all bytes but the comment and the two before it, which tell its length.
    """
    end = file.seek(0, os.SEEK_END) - 2
    comment = _PREFIX + _digest(file, end)
    file.seek(end)
    file.write(len(comment).to_bytes(2, "little") + comment)


def sealed(path: Path) -> bool:
    """Whether a file is whole: what it holds is what was sealed.

    >>> import tempfile, torch
    >>> path = Path(tempfile.mkdtemp()) / "x.ckpt"
    >>> with open(path, "w+b") as file:
    ...     torch.save({"a": 1}, file)
    ...     seal(file)
    >>> sealed(path), torch.load(path)
    (True, {'a': 1})
    """
    with open(path, "rb") as file:
        end = file.seek(0, os.SEEK_END) - _COMMENT - 2
        if end < 0:
            return False
        found = _digest(file, end)
        file.seek(end)
        return file.read() == _COMMENT.to_bytes(2, "little") + _PREFIX + found


def to_json(content: Mapping[str, Any]) -> str:
    """JSON of some content and, under `sha256`, its checksum.

    >>> json.loads(to_json({"a": 1}))["a"]
    1
    """
    return json.dumps({**content, "sha256": _digest_of_json(content)}, indent=1) + "\n"


def from_json(text: str) -> dict[str, Any]:
    """What `to_json` was given.

    Raises:
        ValueError: if the text does not hold what was written.

    >>> from_json(to_json({"a": 1}))
    {'a': 1}
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.pop("sha256", None) != _digest_of_json(content):
        raise ValueError("the content is not that of which the checksum is.")
    return content


def _digest_of_json(content: Mapping[str, Any]) -> str:
    return digest(json.dumps(content, sort_keys=True).encode())


def digest(content: bytes) -> str:
    """SHA-256 of some bytes, 64 hexadecimal digits."""
    return hashlib.sha256(content).hexdigest()


def digest_of(path: Path) -> str:
    """SHA-256 of a file, 64 hexadecimal digits."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _digest(file: BinaryIO, count: int) -> bytes:
    """SHA-256 of a file's first `count` bytes."""
    file.seek(0)
    found = hashlib.sha256()
    while count > 0:
        part = file.read(min(count, 1 << 20))
        if not part:
            break
        found.update(part)
        count -= len(part)
    return found.hexdigest().encode()
