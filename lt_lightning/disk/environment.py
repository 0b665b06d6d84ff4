"""What a run was computed with: versions, hardware, and the command, in `environment.json` of the run directory.

The file is a list: one entry for each environment that has finished a fit, so that a run which went on elsewhere tells
of both. Nothing depends on it. Reading it imports no torch.
"""

import json
import os
import platform
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from lt_lightning.disk.atomic import write_text
from lt_lightning.disk.redact import redacted

NAME = "environment.json"

Environment = dict[str, Any]
"""Names → texts or numbers: command, hardware and the versions of `PACKAGES`."""

PACKAGES = ("lt-lightning", "torch", "lightning", "hydra-core", "numpy", "safetensors")
"""What can change a result."""


def note(directory: str | os.PathLike[str], command: str) -> None:
    """Add the environment at hand to those of a run, unless it is there already; call at the end of a fit.

    Args:
        directory: the run directory.
        command: what was typed.
    """
    path, here = Path(directory, NAME), {"command": command} | describe()
    known = read(directory)
    if here not in known:
        write_text(path, json.dumps([*known, here], indent=1) + "\n")


def read(directory: str | os.PathLike[str]) -> list[Environment]:
    """The environments that have finished fits of a run; none if nothing noted them, or the file is damaged.

    >>> read("/nowhere")
    []
    """
    with suppress(OSError, ValueError):
        found: Any = json.loads(Path(directory, NAME).read_bytes())
        if isinstance(found, list) and all(isinstance(each, dict) for each in found):
            return redacted(found)
    return []


def describe() -> Environment:
    """The environment of this process. It does not wake a GPU that nothing has used.

    >>> describe()["python"] == sys.version.split()[0]
    True
    """
    import torch

    told: Environment = {"system": platform.platform(), "processor": _processor(), "cores": os.cpu_count()}
    told["threads"] = torch.get_num_threads()
    if torch.cuda.is_initialized():
        told["gpu"] = torch.cuda.get_device_name()
        told["cuda"] = torch.version.cuda
    told["processes"] = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    return told | {"python": sys.version.split()[0]} | {name: _version(name) for name in PACKAGES}


def _processor() -> str:
    """The name of the processor as Linux tells it, or its kind."""
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text("utf-8", "replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _version(package: str) -> str | None:
    with suppress(PackageNotFoundError):
        return version(package)
    return None
