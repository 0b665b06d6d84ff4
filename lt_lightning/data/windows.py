"""Batches of consecutive tokens and the token that follows each, from a text that lives on the training device."""

from typing import Any

import torch
from torch import Tensor

from lt_lightning.data.loader import Batch, Loader, Places
from lt_lightning.seeding import generator

NO_TARGET = -100
"""Target of a position behind the end of the text, which torch's `cross_entropy` ignores."""


class WindowLoader(Loader):
    """An iterable of (tokens, targets), both int64 [B, context]: windows of a text, and the token after each one.

    The windows of an epoch follow each other without a gap, so that each token is seen once an epoch. With shuffle they
    come in an order given by (seed, epoch), and so is where the first one starts, in 0 ... context - 1: windows differ
    from epoch to epoch; a last batch is filled up with the first ones. Without shuffle they cover the whole text in
    order, and the last window and batch are filled up with targets `NO_TARGET`, so that each token counts once whatever
    the number of ranks.

    Args:
        tokens: integers [N], on the device where batches are wanted.
        context: tokens of a window.
        shuffle: whether to train on them or to evaluate all.
        options: see `Loader`: batch_size, seed, rank, world_size, drop_last.

    Raises:
        ValueError: for a text that is too short, or sizes that cannot work.

    Example:
        >>> loader = WindowLoader(torch.arange(6), context=3, batch_size=2, seed=0, shuffle=False)
        >>> tokens, targets = next(iter(loader))
        >>> tokens.tolist(), targets.tolist()
        ([[0, 1, 2], [3, 4, 5]], [[1, 2, 3], [4, 5, -100]])
    """

    def __init__(self, tokens: Tensor, context: int, *, shuffle: bool, **options: Any) -> None:
        shortest = 2 * context if shuffle else 2
        if context < 1 or len(tokens) < shortest:
            raise ValueError(
                f"{len(tokens)} tokens for windows of data.context={context}, expected a context of at least 1 and at "
                f"least {shortest} tokens: set data.context, or data.path to a longer text"
            )
        count = (len(tokens) - context) // context if shuffle else -(-(len(tokens) - 1) // context)
        super().__init__(count, device=tokens.device, shuffle=shuffle, **options)
        self.context = context
        self._padded = torch.cat([tokens, tokens.new_full((context,), NO_TARGET)])

    def _drawn(self) -> Tensor | None:
        if not self.shuffle:
            return None
        draw = generator("offset", self.seed, self._epoch)
        return torch.randint(self.context, (), generator=draw).to(self.device)

    def _assemble(self, places: Places, order: Tensor | None, drawn: Tensor | None) -> Batch:
        if isinstance(places, slice):
            places = torch.arange(places.start, places.stop, device=self.device)
        starts = (places if order is None else order[places % self.count]) * self.context
        if drawn is not None:
            starts = starts + drawn
        index = starts[:, None] + torch.arange(self.context + 1, device=self.device)
        chosen = self._padded[index.clamp(max=len(self._padded) - 1)].long()
        return chosen[:, :-1].clamp(min=0), chosen[:, 1:]
