"""Tests against Postgres or Kafka run where one is given; elsewhere they are left out, for a test that never runs says nothing."""

from __future__ import annotations

import os

import pytest

GIVEN_BY = {"postgres": "TACHOGRAPH_TEST_POSTGRES", "psql": "TACHOGRAPH_TEST_PSQL", "broker": "TACHOGRAPH_TEST_KAFKA"}
"""The variable by which each kind of way to the real one is given."""


def _parameters(item: pytest.Function) -> list[object]:
    return list(item.callspec.params.values()) if hasattr(item, "callspec") else []


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave the tests out to which no way is given."""
    missing = [kind for kind, variable in GIVEN_BY.items() if not os.environ.get(variable)]
    left_out = [item for item in items if isinstance(item, pytest.Function) and any(kind in _parameters(item) for kind in missing)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
