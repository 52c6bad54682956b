"""Wait for a database that goes away for a while, such as one that restarts."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import TypeVar

from pymongo.errors import AutoReconnect

from .steps import RunError

logger = logging.getLogger(__name__)

WAIT_SECONDS = 120.0
"""How long a run waits for a database that does not answer."""

T = TypeVar("T")


def retry(action: Callable[[], T]) -> T:
    """Do something with the database, again and again while it does not answer.

    Args:
        action: what is done; doing it again must give the same result.

    Raises:
        RunError: the database did not answer for ``WAIT_SECONDS``.
    """
    lost, pause = None, 0.1
    while True:
        try:
            return action()
        except AutoReconnect as error:
            now = time.monotonic()
            if lost is None:
                lost = now
                logger.warning("the database does not answer, and is waited for: %s", error)
            if now - lost > WAIT_SECONDS:
                raise RunError(
                    f"the database has not answered for {now - lost:.0f} s; what was done before "
                    "is stored, and the same request continues"
                ) from error
            time.sleep(pause)
            pause = min(2 * pause, 2.0)
