"""Tests against Postgres or Kafka run where one is given; elsewhere they are left out, for a test that never runs says nothing."""

from __future__ import annotations

import os

import pytest

GIVEN_BY = {"postgres": "TACHOGRAPH_TEST_POSTGRES", "psql": "TACHOGRAPH_TEST_PSQL", "broker": "TACHOGRAPH_TEST_KAFKA"}
"""A parameter of a test, and the variable that names what it runs against."""


def _lacks(item: pytest.Function) -> bool:
    parameters = list(item.callspec.params.values()) if hasattr(item, "callspec") else []
    return any(parameter in parameters and not os.environ.get(variable) for parameter, variable in GIVEN_BY.items())


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Leave out the tests whose Postgres or Kafka no variable names."""
    left_out = [item for item in items if isinstance(item, pytest.Function) and _lacks(item)]
    config.hook.pytest_deselected(items=left_out)
    items[:] = [item for item in items if item not in left_out]
