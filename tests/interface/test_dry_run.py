"""Where there is no engine yet, a dry run completes, lists what is to be made, and writes nothing anywhere."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from interface.roles import ROOT

# In a mount namespace of its own, without an engine and its programs
HIDE = """
for path in /run/docker.sock $(command -v docker dockerd mmdebstrap); do
  [ ! -e "$path" ] || mount --bind /dev/null "$path"
done
exec "$@"
"""
CONTAINERS = {
    "node1": ["zookeeper", "kafka", "postgres", "nginx", "producer", "vehicle"],
    "node2": ["zookeeper", "kafka", "nginx", "producer", "consumer", "vehicle"],
    "node3": ["zookeeper", "kafka", "producer", "consumer", "vehicle"],
}


def files(*folders: Path) -> dict[str, tuple[int, int]]:
    """Every file, and every folder but Ansible's own, with size and time of change."""
    found = [path for folder in folders for path in folder.rglob("*") if "__pycache__" not in path.parts]
    return {str(path): (path.lstat().st_size, path.lstat().st_mtime_ns) for path in found if not path.is_dir()}


@pytest.fixture(scope="module")
def bare(tmp_path_factory: pytest.TempPathFactory) -> str:
    """What a dry run of all says from a clone without anything, where no engine answers."""
    folder = tmp_path_factory.mktemp("bare")
    (folder / "home").mkdir()
    shutil.copytree(ROOT, folder / "clone", ignore=shutil.ignore_patterns(".*", "build", "secrets", "tests", "__pycache__"))
    inventory = yaml.safe_load((ROOT / "inventory/local.yml").read_text())
    inventory["all"]["vars"]["instance"] = "tachograph-bare"
    for number, values in enumerate(inventory["all"]["hosts"].values(), 31):
        values["node_address"] = f"127.0.1.{number}"
    inventory["all"]["children"]["nginx"]["hosts"]["node1"]["nginx_extra_listen"] = ["127.0.1.31:18082"]
    (folder / "inventory.yml").write_text(yaml.safe_dump(inventory))
    before = files(folder)
    done = subprocess.run(
        ["unshare", "--mount", "--map-root-user", "bash", "-c", HIDE, "-",
         str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(folder / "inventory.yml"),
         "site.yml", "fleet.yml", "playbooks/self_check.yml", "--check", "--diff"],
        cwd=folder / "clone", text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, timeout=600,
        env={**os.environ, "HOME": str(folder / "home"), "ANSIBLE_CONFIG": str(folder / "clone/ansible.cfg"),
 "LC_ALL": "C.UTF-8", "PYTHONDONTWRITEBYTECODE": "1"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-5000:]
    assert files(folder) == before
    assert not Path("/etc/tachograph/tachograph-bare").exists()
    return " ".join(done.stdout.split())


@pytest.mark.parametrize("host", CONTAINERS)
def test_containers_are_listed_by_host(bare: str, host: str) -> None:
    for kind in CONTAINERS[host]:
        assert f"Container tachograph-bare-{kind}-{host} would be made from tachograph/" in bare


def test_images_packages_and_secrets_are_listed(bare: str) -> None:
    assert 'Build, which takes minutes and is shown by "tail -f build/images.log", base, java, ' in bare
    assert "Packages docker.io, iptables would be installed, and an engine would be started." in bare
    assert "changed: [node1] => (item=" in bare
    for secret in ("postgres_writer", "postgres_reader"):
        assert f"secrets/tachograph-bare/{secret}" in bare


def test_it_says_what_cannot_be_compared(bare: str) -> None:
    assert "node1 has no Docker Engine that answers." in bare
    assert "What there is on it cannot be compared yet" in bare
