"""The Lightning data module for one text, read character by character, that fits into the device's memory."""

from typing import Any

import lightning as L
from torch import Tensor

from lt_lightning import require
from lt_lightning.data.characters import encode, read_text
from lt_lightning.data.place import device, place
from lt_lightning.data.windows import WindowLoader


class Text(L.LightningDataModule):
    """A text as windows of characters on the training device, read once for any number of Trainers.

    The text is divided in order: training, then validation, then test. Where no test text is set aside
    (`test_fraction=0`, so that `val/loss` is of the same text as what nanoGPT publishes), the test text is the
    validation text: then a test at the best validation is no independent measurement.

    Nothing is read until `prepare_data` or `setup`. The loaders are fresh ones at every call, so each fit has its own
    position. Windows are those of `WindowLoader`; in evaluation each starts without what came before it.

    Args:
        path: file, folder or hub name, see `characters.read_text`.
        vocabulary: number of different characters in the whole text, which decides the size of the network.
        context: characters of a window.
        batch_size: training windows per step, of all processes together, so that their number changes no result.
        seed: of order and offset.
        eval_batch_size: validation and test windows per step and process.
        val_fraction: of the text, in (0, 1).
        test_fraction: of the text, in [0, 1).
        text_column: of a data set on the hub.

    Raises:
        ValueError: here for impossible sizes; in `prepare_data` and `setup` for another vocabulary than declared;
            where a loader is made, for a text that is too short or a batch_size that does not divide by the number of
            processes.

    Example:
        >>> import tempfile, pathlib
        >>> folder = tempfile.TemporaryDirectory()
        >>> _ = pathlib.Path(folder.name, "input.txt").write_text("to be or not to be " * 20)
        >>> data = Text(folder.name, vocabulary=7, context=8, batch_size=4, seed=0)
        >>> data.setup("fit")
        >>> tokens, targets = next(iter(data.train_dataloader()))
        >>> tokens.shape, bool((tokens[:, 1:] == targets[:, :-1]).all())
        (torch.Size([4, 8]), True)
    """

    def __init__(
        self,
        path: str,
        *,
        vocabulary: int,
        context: int,
        batch_size: int,
        seed: int,
        eval_batch_size: int = 256,
        val_fraction: float = 0.1,
        test_fraction: float = 0.0,
        text_column: str = "text",
    ) -> None:
        super().__init__()
        _check(vocabulary=vocabulary, context=context, batch_size=batch_size, eval_batch_size=eval_batch_size)
        _check_fractions(val_fraction, test_fraction)
        if isinstance(seed, bool) or not isinstance(seed, int):
            raise ValueError(f"data.seed={seed!r} must be a whole number: set data.seed=0")
        self.path, self.text_column = path, text_column
        self.vocabulary, self.context = vocabulary, context
        self.batch_size, self.eval_batch_size, self.seed = batch_size, eval_batch_size, seed
        self.val_fraction, self.test_fraction = val_fraction, test_fraction
        self._parts: dict[str, Tensor] = {}

    def prepare_data(self) -> None:
        """Read the text once per node, so that the other ranks find what the hub's library has cached."""
        self._load()

    def setup(self, stage: str | None = None) -> None:
        """Put the text on this rank's device, unless it is there already."""
        self._load()
        self._parts = {name: tokens.to(device(self.trainer)) for name, tokens in self._parts.items()}

    def train_dataloader(self) -> WindowLoader:
        """Return shuffled batches; under `Trainer(overfit_batches=...)` the same ones in every epoch."""
        shuffle = not getattr(self.trainer, "overfit_batches", 0)
        return self._loader("train", batch_size=self.batch_size, shuffle=shuffle)

    def val_dataloader(self) -> WindowLoader:
        """Return the windows of the validation text in order."""
        return self._evaluation("val")

    def test_dataloader(self) -> WindowLoader:
        """Return the windows of the test text in order."""
        return self._evaluation("test" if self.test_fraction else "val")

    def _load(self) -> None:
        if self._parts:
            return
        tokens, characters = encode(read_text(self.path, self.text_column))
        if len(characters) != self.vocabulary:
            raise ValueError(
                f"data.path={self.path} has {len(characters)} different characters, expected "
                f"data.vocabulary={self.vocabulary}: set data.vocabulary={len(characters)}"
            )
        self._parts = _divide(tokens, self.val_fraction, self.test_fraction)

    def _evaluation(self, part: str) -> WindowLoader:
        world_size = place(self.trainer)["world_size"]
        return self._loader(part, batch_size=self.eval_batch_size * world_size, shuffle=False)

    def _loader(self, part: str, **options: Any) -> WindowLoader:
        if not self._parts:
            raise RuntimeError("no data yet: call setup('fit') first, as a Trainer does")
        return WindowLoader(self._parts[part], self.context, seed=self.seed, **place(self.trainer), **options)


def _divide(tokens: Tensor, val_fraction: float, test_fraction: float) -> dict[str, Tensor]:
    """Cut the text, in order, where nanoGPT does: training ends at the whole part of its share."""
    ends = [int(len(tokens) * share) for share in (1 - val_fraction - test_fraction, 1 - test_fraction)]
    train, val, test = tokens.tensor_split(ends)
    return {"train": train, "val": val, "test": test}


def _check(**sizes: int) -> None:
    for name, size in sizes.items():
        if isinstance(size, bool) or not isinstance(size, int) or size < 1:
            raise ValueError(f"data.{name}={size}, expected at least 1: set data.{name}=1 or a larger whole number")


def _check_fractions(val_fraction: float, test_fraction: float) -> None:
    numbers = require.is_number(val_fraction) and require.is_number(test_fraction)
    if not (numbers and 0 < val_fraction < 1 and 0 <= test_fraction < 1 - val_fraction):
        raise ValueError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction}, expected shares of the text "
            "that leave some to train on: set data.val_fraction=0.1 data.test_fraction=0.0"
        )
