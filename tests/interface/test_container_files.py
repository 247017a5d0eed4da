"""The files of a container can be read by their service, whatever the host's root keeps to itself."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from roles import ROOT


def test_a_strict_umask_hides_nothing_from_the_service(tmp_path: Path) -> None:
    arguments = f"path={tmp_path}/service uid={os.getuid()}"
    environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    subprocess.run(
        ["ansible", "localhost", "-m", "container_files", "-a", arguments + " files={'live/count':'1'} secrets={'password':'x'}"],
        cwd=ROOT, env=environment, check=True, capture_output=True, umask=0o077,
    )  # fmt: skip
    modes = {str(path.relative_to(tmp_path)): path.stat().st_mode & 0o777 for path in tmp_path.rglob("*")}
    assert modes == {"service": 0o755, "service/live": 0o755, "service/live/count": 0o644, "service/password": 0o400}
