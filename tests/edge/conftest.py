"""A real nginx of the product's image and configuration, before producers that do what a test asks of them."""

from __future__ import annotations

import json
import os
import resource
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from edge.running import ROOT, Nginx, Producers
from render.conftest import render  # noqa: F401  # the fixture

INVENTORY = ROOT / "tests/inventory/edge.yml"


@pytest.fixture(scope="session")
def engine() -> None:
    """An engine that answers, with the images; both are made if they are missing, and stay."""
    for role in ("docker_engine", "images"):
        done = subprocess.run(
            [ROOT / ".venv/bin/ansible", "nginx", "-i", INVENTORY, "-m", "ansible.builtin.include_role", "-a", f"name={role}"],
            cwd=ROOT,
            env=os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, done.stdout + done.stderr


@pytest.fixture(scope="session")
def run_nginx(
    engine: None,
    render: Callable[..., dict[str, Any]],  # noqa: F811
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[..., Nginx]:
    """A function of a node and settings of the role: nginx as it would run there, to be entered."""

    def run(node: str, **settings: Any) -> Nginx:
        return Nginx(render(3, "-i", str(INVENTORY), "-e", json.dumps(settings))[node]["nginx"], tmp_path_factory.mktemp(node))

    return run


@pytest.fixture(scope="session")
def producers() -> Iterator[Producers]:
    """One at each address."""
    # Many clients and producers live in this process
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, 16384), hard))
    with Producers() as all_of_them:
        yield all_of_them


@pytest.fixture(scope="session")
def nginx(run_nginx: Callable[..., Nginx], producers: Producers) -> Iterator[Nginx]:
    """nginx with every setting at its default."""
    with run_nginx("node1") as running:
        yield running


@pytest.fixture(scope="session")
def small(run_nginx: Callable[..., Nginx], producers: Producers) -> Iterator[Nginx]:
    """Another one, whose bounds are soon reached."""
    settings = {"nginx_address_requests": 4, "nginx_balancers": ["127.0.31.96/27", "127.0.31.50"], "nginx_body_timeout": 1}
    with run_nginx("node2", **settings) as running:
        yield running
