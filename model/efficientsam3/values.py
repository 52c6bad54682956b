"""What counts as a number in an argument: True and False do not."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np


def is_share(value: Any) -> bool:
    """Whether a value is a number in [0, 1].

    Args:
        value: Any value. False, True and NaN are none.
    """
    if isinstance(value, (bool, np.bool_)):
        return False
    try:
        return bool(0 <= value <= 1)
    except (TypeError, ValueError, RuntimeError):  # RuntimeError: a tensor of several numbers
        return False


def is_whole(value: Any, least: int | None = 0) -> bool:
    """Whether a value is a whole number.

    Args:
        value: Any value. False and True are none.
        least: The smallest number that is right. None: any is.
    """
    if isinstance(value, (bool, np.bool_)):
        return False
    try:
        number = operator.index(value)
    except TypeError:
        return False
    return least is None or number >= least
