"""One run directory, one writing process.

The lock is the kernel's, of the kind that forked children do not inherit (`lockf`), so it ends with the process that
holds it, however that ends and whichever workers it leaves behind; the file only says who it is. On file systems
without such locks there is none, and a warning says so.
"""

import fcntl
import os
import socket
import tempfile
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from lt_lightning.disk.atomic import explain

_held: dict[Path, int] = {}
"""Lock file → its open descriptor."""

_holds: Counter[Path] = Counter()
"""Lock file → how often this process holds it: a loop left by an exception may live on in its traceback."""


class InUseError(RuntimeError):
    """Another process is at work in a directory."""


def _forget() -> None:
    """A forked child holds nothing, and must not end what its parent holds."""
    _held.clear()
    _holds.clear()


os.register_at_fork(after_in_child=_forget)


@contextmanager
def hold(path: Path) -> Iterator[None]:
    """Hold the lock of a run directory while a block runs.

    Args:
        path: the lock file; it exists while the lock is held.

    Raises:
        InUseError: if another process holds it; host and process are named.
    """
    path = path.resolve()
    if path not in _held:
        _held[path] = _acquire(path)
    _holds[path] += 1
    try:
        yield
    finally:
        _holds[path] -= 1
        if not _holds[path]:
            path.unlink(missing_ok=True)
            os.close(_held.pop(path))


def is_possible(path: Path) -> bool:
    """Whether the file system of a lock file has locks; it, and its folder, may not be there yet."""
    folder = next(parent for parent in path.resolve().parents if parent.is_dir())
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _acquire(path: Path) -> int:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        explain(error, path)
        raise
    try:
        fcntl.lockf(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except (BlockingIOError, PermissionError):
        holder = os.read(descriptor, 200).decode() or "another process"
        os.close(descriptor)
        raise InUseError(
            f"{path.parent} is in use by {holder}: two runs in one directory would overwrite each other. "
            "Wait for it to end, or choose another directory."
        ) from None
    except OSError as error:
        warnings.warn(f"{path.parent} cannot be locked ({error}): start no second run in it.", stacklevel=2)
        return descriptor
    if not path.exists() or os.fstat(descriptor).st_ino != path.stat().st_ino:
        os.close(descriptor)  # its holder removed it between our opening and locking it
        return _acquire(path)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())
    return descriptor
