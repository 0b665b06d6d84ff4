"""1,797 handwritten digits of 8x8 pixels, shipped with the package: real data without network or wait.

The file `digits.npz` holds the test part of "Optical recognition of handwritten digits" by E. Alpaydin and C.
Kaynak (UCI Machine Learning Repository, 1998, https://doi.org/10.24432/C50P49), licensed under CC BY 4.0
(https://creativecommons.org/licenses/by/4.0/). It is the selection and the order of scikit-learn's
`load_digits`; the values were converted to uint8 and are otherwise unchanged.
"""

from pathlib import Path

import numpy as np
import torch

from lt_lightning.data.splits import Splits


def digits(test_size: int = 360) -> Splits:
    """Return the embedded digits, pixels 0 (paper) to 16 (ink); the last `test_size` are the test.

    The samples seem to come writer by writer, so the tail holds handwriting that training has hardly met: a
    harder and more honest test than a random one.

    Raises:
        ValueError: unless 0 < test_size < 1797.

    Example:
        >>> splits = digits()
        >>> splits.train_images.shape, splits.test_images.shape
        (torch.Size([1437, 1, 8, 8]), torch.Size([360, 1, 8, 8]))
    """
    with np.load(Path(__file__).with_name("digits.npz")) as file:
        images, labels = torch.from_numpy(file["images"])[:, None], torch.from_numpy(file["labels"]).long()
    if isinstance(test_size, bool) or not isinstance(test_size, int) or not 0 < test_size < len(labels):
        raise ValueError(
            f"test_size={test_size}, expected 0 < test_size < {len(labels)}: set data.source.test_size=360"
        )
    return Splits(images[:-test_size], labels[:-test_size], images[-test_size:], labels[-test_size:])
