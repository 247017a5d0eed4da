"""Molecule's scenarios, one after the other, on hosts that are made once for all of them.

TACHOGRAPH_KEEP=1 leaves the hosts for the next run, and uses those that are there.
"""

from __future__ import annotations

import fcntl
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KEEP = os.environ.get("TACHOGRAPH_KEEP") == "1"
SCENARIOS = sorted(path.parent.name for path in ROOT.glob("molecule/*/molecule.yml") if path.parent.name != "default")
# A whole cluster, whose hosts all restart at once
LONG = {"cluster"}
# Roles that make, change or remove nothing on a host of their own
NO_SCENARIO = {"lab", "preflight", "remedy", "self_check", "settings", "status", "support", "verify"}


def molecule(name: str, *arguments: str, state: Path) -> None:
    """Run Molecule; all that it says is kept in build. A state of its own lets it begin anew whatever became of an earlier run."""
    environment = {
        **os.environ,
        "MOLECULE_EPHEMERAL_DIRECTORY": str(state),
        # The tools of this environment, and no others
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
        "NO_COLOR": "1",
    }
    log = ROOT / "build" / f"molecule-{name}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        done = subprocess.run(
            ["molecule", *arguments, "--no-command-borders"], cwd=ROOT, env=environment, stdout=output, stderr=subprocess.STDOUT
        )
    assert done.returncode == 0, f"the last lines of {log}:\n" + "\n".join(log.read_text().splitlines()[-60:])


@pytest.fixture(scope="module")
def alone() -> Iterator[None]:
    """Wait for another run on this machine to end: what each does first is to remove the hosts of an earlier one."""
    path = Path(tempfile.gettempdir()) / "tachograph-molecule.lock"
    # Whoever comes first makes it; the lock itself needs no right to write
    if not path.exists():
        path.touch()
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.fixture(scope="module")
def hosts(alone: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    """The hosts, with their images."""
    if not (KEEP and (ROOT / "build/molecule/known_hosts").exists()):
        molecule("create", "create", state=tmp_path_factory.mktemp("create"))
    yield
    if not KEEP:
        molecule("destroy", "destroy", state=tmp_path_factory.mktemp("destroy"))


@pytest.mark.usefixtures("hosts")
@pytest.mark.parametrize("scenario", [pytest.param(each, marks=pytest.mark.long) if each in LONG else each for each in SCENARIOS])
def test_scenario(scenario: str, tmp_path: Path) -> None:
    """`molecule test` succeeds."""
    molecule(scenario, "test", "--scenario-name", scenario, state=tmp_path)


def test_every_role_that_changes_a_host_has_a_scenario() -> None:
    roles = {path.name for path in (ROOT / "roles").iterdir()}
    assert set(SCENARIOS) == roles - NO_SCENARIO | {"cluster", "survival"}
