"""Molecule's scenarios, each from the making of its hosts to their removal."""

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


@pytest.fixture
def alone() -> Iterator[None]:
    """Wait for another run on this machine to end: what each does first is to remove the hosts of an earlier one."""
    path = Path(tempfile.gettempdir()) / "tachograph-molecule.lock"
    # Whoever comes first makes it; the lock itself needs no right to write
    if not path.exists():
        path.touch()
    with path.open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


@pytest.mark.usefixtures("alone")
@pytest.mark.parametrize("scenario", ["container"])
def test_scenario(scenario: str, tmp_path: Path) -> None:
    """`molecule test` succeeds. A state of its own lets it begin anew whatever became of an earlier run."""
    environment = {
        **os.environ,
        "MOLECULE_EPHEMERAL_DIRECTORY": str(tmp_path),
        # The tools of this environment, and no others
        "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
        "NO_COLOR": "1",
    }
    log = ROOT / "build" / f"molecule-{scenario}.log"
    log.parent.mkdir(exist_ok=True)
    with log.open("w") as output:
        done = subprocess.run(
            ["molecule", "test", "--no-command-borders", "--scenario-name", scenario],
            cwd=ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    assert done.returncode == 0, f"the last lines of {log}:\n" + "\n".join(log.read_text().splitlines()[-60:])
