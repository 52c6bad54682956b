"""Threads of the processes that are this project's own: the command line, the demo, FiftyOne's.

OpenMP, by which PyTorch computes on CPUs, reads its settings once, when torch is imported. A user's
own process is left as it is.
"""

from __future__ import annotations

import math
import os
import sys
from collections.abc import MutableMapping
from pathlib import Path

CGROUP = Path("/sys/fs/cgroup")
"""Where Linux says how much a container may use."""


def usable_processors(cgroup: Path = CGROUP) -> int:
    """Return the number of processors that this process may use, which a container can limit.

    Args:
        cgroup: Folder of the container's limits.
    """
    count = os.cpu_count() or 1
    if hasattr(os, "sched_getaffinity"):
        count = len(os.sched_getaffinity(0))
    share = _cpu_share(cgroup)
    return count if share is None else max(1, min(count, math.ceil(share)))


def _cpu_share(cgroup: Path) -> float | None:
    """Processors' worth of time that a container may use; None: all."""
    try:
        if (cgroup / "cpu.max").exists():
            quota, period = (cgroup / "cpu.max").read_text().split()
        else:
            folder = cgroup / "cpu"
            quota = (folder / "cpu.cfs_quota_us").read_text()
            period = (folder / "cpu.cfs_period_us").read_text()
        share = float(quota) / float(period)
    except (OSError, ValueError, ZeroDivisionError):  # no limit, or not Linux
        return None
    return share if share > 0 else None


def share_processors(environment: MutableMapping[str, str] | None = None) -> bool:
    """Let PyTorch share the processors with other processes; call it before torch is imported.

    Threads that wait for others sleep (``OMP_WAIT_POLICY=passive``): threads that wait in a loop
    hold a processor that the slowest of them may need. In a container there are no more threads
    than the processors that it may use (``OMP_NUM_THREADS``); PyTorch counts those of the machine.
    What is set already stays.

    Args:
        environment: Variables of the process, which are changed; None: ``os.environ``.

    Returns:
        Whether it has an effect: False where torch is imported already.
    """
    if "torch" in sys.modules:
        return False
    environment = os.environ if environment is None else environment
    environment.setdefault("OMP_WAIT_POLICY", "passive")
    usable = usable_processors()
    if usable < (os.cpu_count() or 1):
        environment.setdefault("OMP_NUM_THREADS", str(usable))
    return True
