"""Tests against Postgres and Kafka run where these are given, and are left out elsewhere: a test that never runs says nothing."""

from __future__ import annotations

import os

import pytest

GIVEN_BY = {"postgres": "TACHOGRAPH_TEST_POSTGRES", "kafka": "TACHOGRAPH_TEST_KAFKA"}
"""A parameter, and the variable that says where it is."""


def _parameters(item: pytest.Function) -> list[object]:
    return list(item.callspec.params.values()) if hasattr(item, "callspec") else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests out against what no variable names."""
    missing = {kind for kind, variable in GIVEN_BY.items() if not os.environ.get(variable)}
    left_out = [item for item in items if isinstance(item, pytest.Function) and missing & {*map(str, _parameters(item))}]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
