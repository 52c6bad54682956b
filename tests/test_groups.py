"""Tests of a group run in one worker process: they share a database, a cluster, or memory."""

from __future__ import annotations

import os

import pytest


@pytest.mark.xdist_group("groups")
def test_groups_are_kept_together(request: pytest.FixtureRequest) -> None:
    if "PYTEST_XDIST_WORKER" not in os.environ:
        pytest.skip("there is one process")
    # pytest-xdist distributes by this name; versions of pytest that it does not know lack the "@".
    assert request.node.nodeid.endswith("@groups")
