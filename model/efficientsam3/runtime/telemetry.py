"""OpenVINO reports its import and its use to its makers unless it is told not to."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

_lock = threading.RLock()


@contextmanager
def without_telemetry() -> Iterator[None]:
    """Nothing is sent, and no file about it is made, while OpenVINO or NNCF work for us.

    The package ``openvino_telemetry``, which both use where it is installed, starts a process for
    each report. It counts a user who was never asked as one who agrees.
    """
    try:
        from openvino_telemetry.utils.opt_in_checker import ConsentCheckResult, OptInChecker
        from openvino_telemetry.utils.sender import TelemetrySender
    except ImportError:
        yield
        return
    with _lock:
        check, send = OptInChecker.check, TelemetrySender.send
        OptInChecker.check = lambda *_, **__: ConsentCheckResult.DECLINED
        TelemetrySender.send = lambda *_, **__: None
        try:
            yield
        finally:
            OptInChecker.check, TelemetrySender.send = check, send


def import_openvino() -> Any:
    """Import OpenVINO, of which nothing is reported.

    Raises:
        ImportError: It is not installed.
    """
    with without_telemetry():
        import openvino
    return openvino
