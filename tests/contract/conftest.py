"""Tests against Postgres run where one is given; elsewhere they are not collected, for a test that never runs says nothing."""

from __future__ import annotations

import os

import pytest


def _parameters(item: pytest.Function) -> list[object]:
    return list(item.callspec.params.values()) if hasattr(item, "callspec") else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests against Postgres out where TACHOGRAPH_TEST_POSTGRES names none."""
    if os.environ.get("TACHOGRAPH_TEST_POSTGRES"):
        return
    left_out = [item for item in items if isinstance(item, pytest.Function) and "postgres" in _parameters(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
