"""The digits of scikit-learn: 8×8 images in grey, part of an installed package, so that nothing is downloaded."""

from __future__ import annotations

import numpy as np

from lipray.data.labelled import Labelled, labelled
from lipray.errors import DataError

TEST_SHARE = 0.25
SEED = 0
LEVELS = 16  # pixels are whole numbers from 0 to this


def read_digits(split: str) -> Labelled:
    """The 1,347 training or 450 test digits, of shape (1, 8, 8) and in [0, 1]; a quarter of every class is for tests.

    Args:
        split: ``train`` or ``test``. The split is that of ``examples/train_digits.py``.

    Raises:
        DataError: scikit-learn is not installed.
    """
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError as error:
        raise DataError(
            "digits", "they come with scikit-learn, which is not installed", hint="pip install scikit-learn"
        ) from error
    digits = load_digits()
    train, test = train_test_split(
        np.arange(len(digits.target)), test_size=TEST_SHARE, random_state=SEED, stratify=digits.target
    )
    index = train if split == "train" else test
    x = (digits.images[index, None] / LEVELS).astype(np.float32)
    return labelled(x, digits.target[index], f"digits ({split})", classes=10)
