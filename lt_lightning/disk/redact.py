"""Keys, tokens and passwords that were given on a command line or in a configuration: none is written down.

They are known by their names, such as `api_key`, `hf_token` or `password`, and by their shapes, such as W&B's 40
hexadecimal digits. What stands in their place is the same for all, so another key is no other configuration.

This module imports no torch.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

REDACTED = "REDACTED"

_SURE = re.compile(
    r"passw(or)?d|passphrase|(^|_)pwd($|_)|secret|credential|authorization|"
    r"(api|access|private|auth|signing|encryption|ssh|account)_?key"
)
_TOKEN = re.compile(r"token(?!s|i[sz])")
_TOKENS_OF_TEXT = re.compile(
    r"(^|_)(pad|eos|bos|unk|sep|cls|mask|stop|start|end|special|class|image|pixel|next|last|first|per|num|max|min)_?token"
)
_KEY = re.compile(r"key(?!s|word|point|frame|board)")
_WORD = re.compile(r"[a-z][a-z_./ -]{0,14}")
"""What a key into a table looks like, such as the name of a column, and what no secret does."""

_NOTHING = ("", "null", "none", "true", "false", REDACTED.lower())
_DIGESTS = re.compile(r"revision|commit|(?<![a-z])sha(?![a-z])|hash|digest|checksum")
_HEX = re.compile(r"(?<![0-9A-Za-z])[0-9a-f]{40}(?![0-9A-Za-z])")
_SHAPES = re.compile(
    r"\bhf_[A-Za-z0-9]{16,}|\bwandb_v\d+_\w{16,}|\bgh[opsu]_[A-Za-z0-9]{20,}|\bgithub_pat_\w{20,}|"
    r"\bsk-[\w-]{20,}|\bAKIA[0-9A-Z]{16}\b|\bxox[abps]-[\w-]{10,}|\bdapi[0-9a-f]{32}\b|"
    r"\beyJ[\w-]{10,}\.[\w-]{10,}\.[\w-]+|(?<=://)[^/\s:@]+:[^/\s@]+(?=@)"
)
_PAIR = re.compile(r"""([\w.@/+~-]+)("?'?\s*[=:]\s*)('[^']*'|"[^"]*"|[^\s,'"{}\[\]]+)""")
"""Name and value within a text: `api_key=abc`, `api_key: abc`, `{"api_key": "abc"}`."""


def redacted(tree: Any, name: str = "") -> Any:
    """Plain values, such as a configuration, without secrets.

    >>> redacted({"logger": {"api_key": "abc"}, "data": {"image_key": "img"}, "tracking_uri": "https://me:abc@host"})
    {'logger': {'api_key': 'REDACTED'}, 'data': {'image_key': 'img'}, 'tracking_uri': 'https://REDACTED@host'}
    """
    if isinstance(tree, Mapping):
        return {key: redacted(value, str(key)) for key, value in tree.items()}
    if isinstance(tree, (list, tuple)):
        return [redacted(value, name) for value in tree]
    if _is_secret(name, tree):
        return REDACTED
    return redacted_text(tree, name) if isinstance(tree, str) else tree


def redacted_text(text: str, name: str = "") -> str:
    """A text without secrets, as a line of YAML or an error; `name` is that of the value that it is.

    >>> redacted_text("token: abc, max_tokens: 5")
    'token: REDACTED, max_tokens: 5'
    """

    return "\n".join(_line(each, name) for each in text.split("\n"))


def _line(text: str, name: str) -> str:
    text = _SHAPES.sub(REDACTED, _PAIR.sub(_pair, text))
    return text if _DIGESTS.search(f"{name} {text}".lower()) else _HEX.sub(REDACTED, text)


def _pair(found: re.Match[str]) -> str:
    is_secret = _is_secret(found[1], found[3].strip("'\""))
    return f"{found[1]}{found[2]}{REDACTED}" if is_secret else found[0]


def redacted_arguments(arguments: Iterable[str]) -> list[str]:
    """The words of a command line without secrets.

    >>> redacted_arguments(["train.py", "+logger.api_key=a b", "--token", "abc", "seed=1"])
    ['train.py', '+logger.api_key=REDACTED', '--token', 'REDACTED', 'seed=1']
    """
    return list(_arguments(arguments))


def _arguments(arguments: Iterable[str]) -> Iterator[str]:
    before = ""
    for each in arguments:
        name, equals, value = each.partition("=")
        if equals and _is_secret(name, value):
            yield f"{name}={REDACTED}"
        elif before.startswith("--") and "=" not in before and _is_secret(before, each):
            yield REDACTED
        else:
            yield redacted_text(each)
        before = each


def _is_secret(name: str, value: Any) -> bool:
    """Whether a value is one that must not be written down, by its name."""
    if isinstance(value, bool) or not isinstance(value, (str, int)) or str(value).lower() in _NOTHING:
        return False
    last = re.split(r"[./@]", name)[-1].strip("-+~").replace("-", "_")
    last = re.sub(r"(?<=[a-z0-9])(?=[A-Z])", "_", last).lower()
    if _SURE.search(last):
        return True
    if isinstance(value, int):
        return False
    if _TOKEN.search(last):
        return not _TOKENS_OF_TEXT.search(last)
    return bool(_KEY.search(last)) and not _WORD.fullmatch(value)
