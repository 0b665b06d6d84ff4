"""Checks of what was passed in: each returns the value, or raises a ValueError that says what to write instead."""

import inspect
import os
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from numbers import Integral, Real
from pathlib import Path, PurePath
from typing import Any, get_origin


def flag(name: str, value: Any, key: str = "") -> bool:
    """True or False itself; text such as "no" would count as true.

    >>> flag("dense", "no", "prune.dense")
    Traceback (most recent call last):
    ...
    ValueError: dense='no' must be True or False (prune.dense=false).
    """
    if not isinstance(value, bool):
        raise ValueError(f"{name}={value!r} must be True or False{f' ({key}=false)' if key else ''}.")
    return value


def whole(name: str, value: Any, least: int, what: str) -> int:
    """A whole number that is large enough; True and False are none.

    >>> whole("epochs", 2, 1, "how many distances in a row")
    2
    """
    if isinstance(value, bool) or not isinstance(value, Integral) or value < least:
        raise ValueError(f"{name}={value!r} must be a whole number, {least} or more: {what}.")
    return int(value)


def is_number(value: Any) -> bool:
    """Whether a value is a number, NaN and infinities included; True, False and text are none.

    >>> is_number(0.5), is_number(True), is_number("0.5")
    (True, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool)


def share(value: Any, what: str, example: str) -> float:
    """A number inside (0, 1).

    >>> share(1, "a fraction to prune", "0.2 prunes a fifth a round")
    Traceback (most recent call last):
    ...
    ValueError: a fraction to prune must lie inside (0, 1), got 1; 0.2 prunes a fifth a round.
    """
    if not is_number(value) or not 0 < value < 1:
        told = str(value) if is_number(value) else repr(value)
        raise ValueError(f"{what} must lie inside (0, 1), got {told}; {example}.")
    return float(value)


def shares(value: Any, what: str, example: str) -> Any:
    """A number inside (0, 1), or one per name pattern."""
    if not isinstance(value, Mapping):
        return share(value, what, example)
    if not value:
        raise ValueError(f'{what} per name pattern needs a pattern at least, got {{}}; {{"*": 0.1}} is for all names.')
    return {str(pattern): share(each, what, example) for pattern, each in value.items()}


def listed(name: str, value: Any, example: str) -> Any:
    """A list, or a list of one for a text alone."""
    if isinstance(value, str):
        return [value]
    if not isinstance(value, Sequence) or isinstance(value, bytes):
        raise ValueError(f"{name}={value!r} must be a list: {name}={example}.")
    return value


def plain(name: str, value: Any) -> None:
    """Raise a ValueError unless a value is made of texts, numbers, lists and mappings; a function counts by its name.

    >>> plain("config", {"lr": 0.1, "make": len})
    >>> plain("config", {"model": [object()]})  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    ...
    ValueError: config['model'][0]=<object object at ...> is no plain value...
    """
    if isinstance(value, Mapping):
        for key, each in value.items():
            plain(f"{name}[{key!r}]", each)
    elif isinstance(value, Sequence) and not isinstance(value, str | bytes):
        for number, each in enumerate(value):
            plain(f"{name}[{number}]", each)
    elif not (value is None or isinstance(value, str | Real | PurePath | partial) or _is_named(value)):
        raise ValueError(
            f"{name}={value!r} is no plain value, and another start of the program would not find it equal: write "
            "texts, numbers, lists and mappings."
        )


def _is_named(value: Any) -> bool:
    """Whether a value always has the same name: functions, classes, and what is a constant of torch."""
    return hasattr(value, "__qualname__") or type(value).__module__ == "torch"


def directory(name: str, value: Any, key: str) -> Path:
    """The path of a directory that can be written; what is not there yet can be made below one that is.

    >>> directory("directory", "", "hydra.run.dir")
    Traceback (most recent call last):
    ...
    ValueError: directory='' must be a path: directory="runs/mine" (hydra.run.dir on the command line).
    """
    if not isinstance(value, str | PurePath) or not str(value).strip():
        raise ValueError(f'{name}={value!r} must be a path: {name}="runs/mine" ({key} on the command line).')
    path = Path(value)
    if path.exists() and not path.is_dir():
        raise ValueError(f"{name}={str(path)!r} is a file; a run needs a directory.")
    above = next((each for each in (path, *path.absolute().parents) if each.exists()), path)
    is_read_only = bool(os.statvfs(above).f_flag & os.ST_RDONLY)  # whose own error says what to do
    if not above.is_dir() or not (is_read_only or os.access(above, os.W_OK | os.X_OK)):
        raise ValueError(unwritable(name, path, f"{above} is no directory that this process may write", key))
    return path


def unwritable(name: str, path: Path, why: str, key: str) -> str:
    """What to say of a directory that cannot be written."""
    return f"{name}={str(path)!r} cannot be written: {why}. Choose another directory ({key} on the command line)."


def function(name: str, value: Any, takes: Sequence[str], example: str) -> Callable[..., Any]:
    """A function of one of the families, which takes these arguments by position.

    Args:
        name: of the argument, for the error.
        value: what was passed.
        takes: what it is called with, for the error.
        example: what to write instead.

    Raises:
        ValueError: if it is no function, a function that makes one (`geometric` for `geometric(0.2)`), or takes other
            arguments.

    >>> from lt_lightning import geometric
    >>> function("schedule", geometric, ["round"], "geometric(0.2)")
    Traceback (most recent call last):
    ...
    ValueError: schedule: geometric is a function that makes one, and was not called: write geometric(0.2).
    """
    if not callable(value):
        raise ValueError(f"{name}={value!r} is not a function: pass one such as {example}.")
    if makes_function(value):
        called = example if example.startswith(f"{called_name(value)}(") else f"{called_name(value)}(...)"
        raise ValueError(
            f"{name}: {called_name(value)} is a function that makes one, and was not called: write {called}."
        )
    if not takes_arguments(value, len(takes)):
        raise ValueError(
            f"{name}={called_name(value)} is called with {', '.join(takes)}, and takes {inspect.signature(value)}: "
            f"pass one such as {example}."
        )
    return value


def makes_function(value: Any) -> bool:
    """Whether what a function returns is a function, as its annotation says; a class makes instances.

    >>> from lt_lightning import geometric, magnitude
    >>> makes_function(geometric), makes_function(geometric(0.2)), makes_function(magnitude)
    (True, False, False)
    """
    function = value.func if isinstance(value, partial) else value
    signature = None if inspect.isclass(function) else _signature(function)
    return signature is not None and get_origin(signature.return_annotation) is Callable


def takes_arguments(function: Callable[..., Any], count: int) -> bool:
    """Whether a function can be called with so many positional arguments; True where nobody can tell."""
    signature = _signature(function)
    if signature is None:
        return True
    try:
        signature.bind(*[None] * count)
    except TypeError:
        return False
    return True


def called_name(function: Callable[..., Any]) -> str:
    """The name of a function, or of the class of an instance that can be called.

    >>> called_name(len), called_name(partial(len))
    ('len', 'len')
    """
    inner = function.func if isinstance(function, partial) else function
    return getattr(inner, "__name__", type(inner).__name__)


def _signature(function: Callable[..., Any]) -> inspect.Signature | None:
    for are_texts_read in (True, False):  # annotations are texts under `from __future__ import annotations`
        try:
            return inspect.signature(function, eval_str=are_texts_read)
        except Exception:  # what a text names may be unknown; some functions that are written in C have no signature
            continue
    return None
