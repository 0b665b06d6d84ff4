"""Writing files and directories so that a kill at any instant leaves the old one or the new one, whole."""

import errno
import os
import re
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

_GO_ON = "Nothing that was there is lost: the same command goes on from it."
_ADVICE = {
    **dict.fromkeys((errno.ENOSPC, errno.EDQUOT, errno.EFBIG), f"Make room and run again. {_GO_ON}"),
    **dict.fromkeys((errno.EROFS, errno.EACCES, errno.EPERM), "Make it writable, or choose another directory."),
}
"""Error number → what to do about it."""


def write_text(path: Path, text: str) -> None:
    """Write a text file atomically; a file that already holds the text is left alone."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file atomically; a file that already holds the content is left alone."""
    if path.exists() and path.read_bytes() == content:
        return
    with staged(path) as file:
        file.write(content)


@contextmanager
def staged(path: Path) -> Iterator[BinaryIO]:
    """Open a file for writing that takes its place when the block ends, after it has reached the disk.

    It is staged beside its target, since a rename is atomic only within a file system, and removed again if the block
    fails.

    Raises:
        OSError: if the disk is full or cannot be written; it says what to do.
    """
    stage = path.with_name(f".{path.name}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(stage, "w+b", buffering=1 << 20) as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        take_place(stage, path)
    except BaseException as error:
        with suppress(OSError):
            stage.unlink(missing_ok=True)
        explain(error, path)
        raise


def stage_of_directory(path: Path) -> Path:
    """A new name beside a directory to write, which ends with `.partial`.

    No other process has it: one that outlives its killed run might still write into the directory that it knows.
    """
    return path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")


def take_place(stage: Path, path: Path) -> None:
    """Let what was staged be the file or directory at `path`, at once if it is a file, else see `recover`."""
    old = path.with_name(f".{path.name}.old")
    if path.is_dir() or (stage.is_dir() and path.exists()):  # no rename replaces a directory
        remove(old)
        os.replace(path, old)
    os.replace(stage, path)
    sync(path.parent)
    remove(old)


def link(target: Path, path: Path) -> None:
    """Let `path` be a relative link to a file or directory, at once."""
    stage = path.with_name(f".{path.name}.partial")
    stage.unlink(missing_ok=True)
    stage.symlink_to(os.path.relpath(target, path.parent))
    os.replace(stage, path)
    sync(path.parent)


def take_copy(source: Path, path: Path) -> None:
    """Let `path` be what `source` is, at once: hard links to its files, or copies where those are impossible.

    Files are replaced and never changed, so what is linked stays as it is.
    """
    stage = stage_of_directory(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        if source.is_dir():
            shutil.copytree(source, stage, copy_function=link_or_copy)
        else:
            link_or_copy(source, stage)
        take_place(stage, path)
    except BaseException as error:
        with suppress(OSError):
            remove(stage)
        explain(error, path)
        raise
    remove(stage)  # which a rename leaves where both were the same file


def link_or_copy(source: str | Path, target: str | Path) -> None:
    """Link a file, or copy it to another file system, or to one without hard links."""
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)
        sync(target)


def recover(root: Path) -> None:
    """Finish what a kill left half done below `root`: directories that stand aside come back, unfinished ones go."""
    for old in _ours(root, "old"):
        path = old.with_name(old.name.removeprefix(".").removesuffix(".old"))
        if path.exists():
            remove(old)
        else:
            os.replace(old, path)
    for stage in _ours(root, "partial"):
        remove(stage)


def _ours(root: Path, ending: str) -> list[Path]:
    """What was staged or stands aside below a run directory, nothing of which a user would have named so."""
    names = re.compile(rf"\.(.+\.(ckpt|safetensors|csv|yaml|json)|done|stopped|trained_in)(\.[0-9a-f]{{8}})?\.{ending}")
    return [path for path in root.rglob(f".*.{ending}") if names.fullmatch(path.name)]


def remove(path: Path) -> None:
    """Remove a file or a directory, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def explain(error: BaseException, path: Path) -> None:
    """Raise an error that says what to do, if a full or a read-only disk lies behind this one."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, OSError):
        cause = cause.__cause__ or cause.__context__
    number = cause.errno or 0 if cause is not None else 0
    if number in _ADVICE:
        raise OSError(number, f"{os.strerror(number)}: {path} cannot be written. {_ADVICE[number]}") from error


def sync(path: str | Path) -> None:
    """Let what was written to a file, or renamed in a directory, reach the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
