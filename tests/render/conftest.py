"""Renders everything for clusters of 1, 3 and 5 hosts, each once."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
SECRETS = {
    "postgres_writer": "writers-secret-word",
    "postgres_reader": "readers-secret-word",
    "zookeeper_super": "supers-secret-word",
}
Rendered = dict[str, Any]


def inventory(size: int) -> dict[str, Any]:
    """The default for three hosts, else all kinds spread over machines that are reached by SSH."""
    if size == 3:
        local: dict[str, Any] = yaml.safe_load((ROOT / "inventory/local.yml").read_text())
        return local
    hosts = [f"host{n}" for n in range(1, size + 1)]
    # Ids that are neither in order nor without holes
    ids = dict(zip(hosts, [7, 3, 250, 1, 12], strict=False))
    return {
        "all": {
            "hosts": {host: {"ansible_host": f"192.0.2.{n}"} for n, host in enumerate(hosts, 11)},
            "children": {
                "zookeeper": {"hosts": {host: {"zookeeper_id": ids[host]} for host in hosts}},
                "kafka": {"hosts": {host: {"kafka_broker_id": ids[host]} for host in hosts}},
                "postgres": {"hosts": {hosts[-1]: {}}},
                "nginx": {"hosts": dict.fromkeys(hosts[:2])},
                "producers": {"hosts": dict.fromkeys(hosts)},
                "consumers": {"hosts": dict.fromkeys(hosts[:4])},
                "vehicles": {"hosts": dict.fromkeys(hosts)},
            },
        }
    }


@pytest.fixture(scope="session")
def render(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Rendered]:
    """A function of the number of hosts and further arguments of ansible-playbook."""

    @cache
    def run(size: int, *arguments: str) -> tuple[subprocess.CompletedProcess[str], Path]:
        folder = tmp_path_factory.mktemp(f"render{size}-")
        for name, secret in SECRETS.items():
            (folder / name).write_text(f"{secret}\n")
        (folder / "inventory.yml").write_text(yaml.safe_dump(inventory(size)))
        variables = {"num_vehicles": "30", "settings_secrets_dir": str(folder), "render_file": str(folder / "rendered.json")}
        done = subprocess.run(
            [
                *(str(ROOT / ".venv/bin/ansible-playbook"), "--check", "-i", str(folder / "inventory.yml")),
                *("-e", json.dumps(variables), str(ROOT / "tests/render/render.yml"), *arguments),
            ],
            env={
                **os.environ,
                "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"),
                "ANSIBLE_ROLES_PATH": f"{ROOT}/tests/render/roles:{ROOT}/roles",
                "ANSIBLE_NOCOLOR": "1",
                "LC_ALL": "C.UTF-8",
            },
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )
        return done, folder / "rendered.json"

    def rendered(size: int, *arguments: str) -> Rendered:
        done, file = run(size, *arguments)
        assert done.returncode == 0, done.stdout + done.stderr
        found: Rendered = json.loads(file.read_text())
        return found

    return rendered
