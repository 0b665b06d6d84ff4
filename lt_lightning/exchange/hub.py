"""Files on the Hugging Face hub, and how their addresses are written; `pip install lt-lightning[hub]`."""

import os
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import NamedTuple
from urllib.parse import quote, unquote

SCHEME = "hf://"


class Address(NamedTuple):
    """A file in a model repository.

    Args:
        repo_id: "user/repo".
        path: of the file in the repository.
        revision: a branch, tag or commit; None: the main branch.
    """

    repo_id: str
    path: str
    revision: str | None

    def __str__(self) -> str:
        revision = f"@{quote(self.revision, safe='')}" if self.revision else ""
        return f"{SCHEME}{self.repo_id}{revision}/{self.path}"


def is_address(path: str | os.PathLike[str]) -> bool:
    """Whether this is an address on the hub.

    >>> is_address("hf://user/repo"), is_address("runs/mine/round-03/ticket.safetensors")
    (True, False)
    """
    return isinstance(path, str) and path.startswith(SCHEME)


def parse(address: str, name: str) -> Address:
    """The parts of an address as huggingface_hub's own file system writes it; `name` is the file if it names none.

    Raises:
        ValueError: if it is no address.

    >>> parse("hf://user/repo@v1/round-03/ticket.safetensors", "ticket.safetensors")
    Address(repo_id='user/repo', path='round-03/ticket.safetensors', revision='v1')
    >>> str(parse("hf://user/repo", "ticket.safetensors"))
    'hf://user/repo/ticket.safetensors'
    """
    user, _, rest = address.removeprefix(SCHEME).partition("/")
    repo, _, path = rest.partition("/")
    repo, _, revision = repo.partition("@")
    if not (is_address(address) and user and repo) or "@" in user:
        raise ValueError(
            f"{address!r} is no address of a ticket on the hub: write hf://user/repo, hf://user/repo/folder/{name} or "
            f"hf://user/repo@revision/{name}."
        )
    return Address(f"{user}/{repo}", path or name, unquote(revision) or None)


def fetch(address: str, name: str) -> Path:
    """Download a file into huggingface_hub's cache, if it is not there, and say where it is.

    Raises:
        ValueError: if it is no address.
        OSError: if the hub does not give it.
        ModuleNotFoundError: if huggingface_hub is not installed.
    """
    found = parse(address, name)
    return Path(_library().hf_hub_download(found.repo_id, found.path, revision=found.revision))


def upload(
    repo_id: str,
    files: Mapping[str, Path | bytes],
    *,
    message: str,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
) -> str:
    """Commit files to a model repository, at once, which is made if there is none.

    Args:
        repo_id: "user/repo".
        files: path in the repository → file or content.
        message: of the commit.
        private: whether a repository that is made can be seen by its owner alone; None: as the owner's account says.
        token: of the hub; None: the one that `hf auth login` or HF_TOKEN gave.
        revision: the branch, which must exist; None: main.

    Returns:
        The commit.

    Raises:
        OSError: if the hub refuses.
        ModuleNotFoundError: if huggingface_hub is not installed.
    """
    library = _library()
    api = library.HfApi(token=token)
    api.create_repo(repo_id, private=private, exist_ok=True)
    adds = [
        library.CommitOperationAdd(path, content if isinstance(content, bytes) else str(content))
        for path, content in files.items()
    ]
    return api.create_commit(repo_id, adds, commit_message=message, revision=revision).oid


def _library() -> ModuleType:
    try:
        import huggingface_hub
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            'the Hugging Face hub needs huggingface_hub: pip install "lt-lightning[hub]"', name=error.name
        ) from error
    return huggingface_hub
