"""The files of a container: who can read them, and where they may lie."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from interface.roles import ROOT


def write(arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the module as Ansible does, where root's own umask lets nobody else read."""
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    return subprocess.run(
        ["ansible", "localhost", "-m", "container_files", "-a", arguments],
        cwd=ROOT, env=environment, capture_output=True, text=True, umask=0o077,
    )  # fmt: skip


def test_a_strict_umask_hides_nothing_from_the_service(tmp_path: Path) -> None:
    (tmp_path / "units").mkdir(mode=0o755)
    done = write(
        f"path={tmp_path}/service uid={os.getuid()} files={{'live/count':'1'}} secrets={{'password':'x'}}"
        f" elsewhere={{'{tmp_path}/units/a.service':'y'}}"
    )
    assert done.returncode == 0, done.stdout
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {
        "service": 0o755, "service/live": 0o755, "service/live/count": 0o644, "service/password": 0o400,
        "units": 0o755, "units/a.service": 0o644,
    }  # fmt: skip


@pytest.mark.parametrize("files", ["files={'../a':'1'}", "files={'/etc/a':'1'}", "secrets={'../a':'1'}", "elsewhere={'a':'1'}"])
def test_a_name_that_leads_elsewhere_is_refused(tmp_path: Path, files: str) -> None:
    done = write(f"path={tmp_path}/service uid={os.getuid()} {files}")
    assert done.returncode != 0
    assert "must be" in done.stdout
    assert not list(tmp_path.iterdir())


def test_what_a_killed_run_was_writing_does_not_stay(tmp_path: Path) -> None:
    left = [tmp_path / "service" / ".new-a", tmp_path / "units" / ".new-a.service"]
    for file in left:
        file.parent.mkdir()
        file.write_text("half")
    done = write(f"path={tmp_path}/service uid={os.getuid()} files={{'a':'1'}} elsewhere={{'{tmp_path}/units/a.service':'y'}}")
    assert done.returncode == 0, done.stdout
    assert {str(path.relative_to(tmp_path)): path.read_text() for path in tmp_path.rglob("*") if path.is_file()} == {
        "service/a": "1", "units/a.service": "y",
    }  # fmt: skip
