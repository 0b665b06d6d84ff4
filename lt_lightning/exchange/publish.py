"""Tickets on the Hugging Face hub: the file, and a model card that says what it is and how to load it."""

import os
import tempfile
from pathlib import Path

from lt_lightning.exchange import hub
from lt_lightning.exchange.ticketfile import NAME, TicketFile, load_ticket
from lt_lightning.masks import density, kept, total

CARD = "README.md"
"""Where the hub looks for a repository's card."""

_TEMPLATE = """\
---
library_name: lt_lightning
tags:
- lottery-ticket
- pruning
- sparsity
- pytorch
---

# A lottery ticket that keeps {share} of the weights

Masks and starting weights, found by pruning, rewinding and training again with lt_lightning: round {round}, arm
`{arm}`. Of {total:,} prunable weights {kept:,} are kept, a density of {density:.6g}. These are the weights *before*
training, at the rewind point; whoever trains them under the masks trains the ticket.

```python
from lt_lightning import load_ticket

ticket = load_ticket("{address}")
masks = ticket.apply(model)        # the model that it was found in: starting weights loaded, pruned ones zero
```

The file is safetensors, and needs no lt_lightning to be read: `mask/NAME` holds the bits of a mask, the first weight in
the highest bit, `state/NAME` a weight or buffer, and the metadata `shapes` the shapes of the masks.

## What was measured

{metrics}

## Layers

| layer | shape | kept | of | density |
|---|---|---|---|---|
{layers}

Written by {versions}; configuration `{config}`.
"""


def push_ticket(
    path: str | os.PathLike[str],
    repo_id: str,
    path_in_repo: str = NAME,
    *,
    private: bool | None = None,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> str:
    """Put a ticket on the Hugging Face hub, with what its fit measured and a model card; `lt-lightning[hub]`.

    The repository is made if there is none. The card is the README.md beside the file, and takes the place of one that
    is there. Both come in one commit.

    Args:
        path: as for `load_ticket`.
        repo_id: "user/repo".
        path_in_repo: such as "round-03/ticket.safetensors", where a repository holds several.
        private: whether a repository that is made can be seen by its owner alone; None: as the owner's account says.
        token: of the hub; None: the one that `hf auth login` or HF_TOKEN gave.
        revision: the branch, which must exist; None: main.
        message: of the commit.

    Returns:
        The address of exactly this ticket, for `load_ticket`: "hf://user/repo@commit/ticket.safetensors".

    Raises:
        FileNotFoundError: if there is no such file.
        ValueError: if it is not a ticket, or the names do not do.
        OSError: if the hub refuses.
        ModuleNotFoundError: if huggingface_hub is not installed.
    """
    if repo_id.count("/") != 1 or not path_in_repo.endswith(".safetensors"):
        raise ValueError(
            f"repo_id={repo_id!r}, path_in_repo={path_in_repo!r}: expected a repository such as 'user/repo', and in it "
            f"a path that ends with .safetensors, such as 'round-03/{NAME}'."
        )
    ticket = load_ticket(path if isinstance(path, str) else Path(path))
    card = str(Path(path_in_repo).with_name(CARD))
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder, NAME)
        ticket.write(file)
        text = make_card(ticket, str(hub.Address(repo_id, path_in_repo, revision)))
        commit = hub.upload(
            repo_id,
            {path_in_repo: file, card: text.encode()},
            message=message or f"Ticket of round {ticket.round} ({ticket.arm}), density {density(ticket.masks):.4g}",
            private=private,
            token=token,
            revision=revision,
        )
    return str(hub.Address(repo_id, path_in_repo, commit))


def make_card(ticket: TicketFile, address: str) -> str:
    """The model card of a ticket, in Markdown.

    Args:
        ticket: with its metrics, if they are known.
        address: where it will be, for `load_ticket`.
    """
    share = density(ticket.masks)
    layers = [
        f"| `{name}` | {' x '.join(map(str, mask.shape))} | {int(mask.sum()):,} | {mask.numel():,} "
        f"| {density({name: mask}) if mask.numel() else 1:.4g} |"
        for name, mask in ticket.masks.items()
    ]
    metrics = [f"| {name} | {value:.6g} |" for name, value in ticket.metrics.items()]
    table = "\n".join(["Of the network that was trained from here:", "", "| | |", "|---|---|", *metrics])
    return _TEMPLATE.format(
        share=f"{100 * share:.3g}%",
        round=ticket.round,
        arm=ticket.arm,
        total=total(ticket.masks),
        kept=kept(ticket.masks),
        density=share,
        address=address,
        metrics=table if metrics else "Nothing is recorded.",
        layers="\n".join(layers),
        versions=", ".join(f"{name} {version}" for name, version in ticket.versions.items()) or "an unknown version",
        config=ticket.config or "unknown",
    )
