"""One deployment for all system tests: its leftovers removed, provisioned, driven, and removed again.

TACHOGRAPH_KEEP=1 leaves it up for the next run, and uses one that is up.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from system import deployment
from system.deployment import KEEP

VEHICLES = 6


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Files run in the order of their names: the last ones end the deployment."""
    here = str(Path(__file__).parent)
    mine = sorted((item for item in items if str(item.path).startswith(here)), key=lambda item: item.path.name)
    places = [index for index, item in enumerate(items) if str(item.path).startswith(here)]
    for place, item in zip(places, mine, strict=True):
        items[place] = item


@pytest.fixture(scope="session")
def summary() -> Iterator[dict[str, Any]]:
    """The deployment's summary; the deployment is up as long as it is used."""
    deployment.have_engine()
    if not (KEEP and deployment.container("vehicle", "node3") in deployment.containers() and deployment.all_healthy()):
        deployment.SETTINGS.unlink(missing_ok=True)
        deployment.play("clean", "teardown.yml", "-e", "teardown_data=true")
        deployment.play("up", "site.yml", "fleet.yml", "playbooks/self_check.yml", "-e", f"num_vehicles={VEHICLES}")
    deployment.wait_for("all services ready", deployment.all_ready)
    yield json.loads((deployment.BUILD / "summary.json").read_text())
    if not KEEP:
        deployment.play("down", "teardown.yml", "-e", "teardown_data=true")


@pytest.fixture
def database(summary: dict[str, Any]) -> deployment.Database:
    """The database of the deployment."""
    return deployment.Database()
