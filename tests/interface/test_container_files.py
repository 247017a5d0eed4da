"""The files of a container: who can read them, and where they may lie."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from interface.roles import ROOT


def write(arguments: str, *options: str) -> subprocess.CompletedProcess[str]:
    """Call the module as Ansible does, where root's own umask lets nobody else read."""
    environment = os.environ | {
        "ANSIBLE_CALLBACK_RESULT_FORMAT": "json",
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
    }
    return subprocess.run(
        ["ansible", "localhost", "-m", "container_files", "-a", arguments, *options],
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


def told(done: subprocess.CompletedProcess[str]) -> dict[str, Any]:
    """The module's answer."""
    answer: dict[str, Any] = json.loads(done.stdout.partition("=>")[2])
    return answer


def test_what_the_trial_refuses_leaves_all_as_it_is(tmp_path: Path) -> None:
    def tried(content: str, command: str, *more: str) -> subprocess.CompletedProcess[str]:
        files = {"live/a": content}
        arguments = {"path": f"{tmp_path}/service", "uid": os.getuid(), "files": files, "trial": ["sh", "-c", command, "{folder}"]}
        return write(json.dumps(arguments), *more)

    assert tried("good", "grep -qx good $0/live/a").returncode == 0
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")}
    done = tried("bad", "cat $0/live/a; exit 3")
    assert done.returncode != 0
    assert "was left as it is, because its new files cannot work: bad" in told(done)["msg"]
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*")} == before
    # Nothing to be written, nothing to try; and a dry run tries nothing
    assert tried("good", "false").returncode == 0
    assert tried("bad", "false", "--check").returncode == 0


def test_live_files_are_read_again_until_a_reload_succeeded(tmp_path: Path) -> None:
    def live(content: str, *reload: str) -> subprocess.CompletedProcess[str]:
        arguments = {"path": f"{tmp_path}/service", "uid": os.getuid(), "files": {"a": content}, "live": ["a"], "reload": reload}
        return write(json.dumps(arguments))

    ran = tmp_path / "ran"
    # About to start: it reads them by itself
    assert not told(live("1"))["reloaded"]
    assert not told(live("1", "touch", str(ran)))["changed"]
    assert not ran.exists()
    assert told(live("2", "touch", str(ran)))["reloaded"]
    assert ran.exists()
    failed = live("3", "false")
    assert failed.returncode != 0
    assert "did not take its new files" in told(failed)["msg"]
    # The file is there already, and the service has not read it yet
    again = told(live("3", "true"))
    assert (again["written"], again["reloaded"], again["changed"]) == ([], True, True)
    assert not told(live("3", "false"))["changed"]
    # By hand
    (tmp_path / "service" / "a").write_text("4")
    assert told(live("3", "true"))["reloaded"]


@pytest.mark.parametrize("left", ["password", ".new-password", "live/password"])
@pytest.mark.parametrize("options", [["--diff"], ["--diff", "--check"]])
def test_a_difference_does_not_show_a_secret_that_is_not_wanted_any_more(tmp_path: Path, left: str, options: list[str]) -> None:
    """One that a run wrote, or began to write before it was killed, and one whose name is that of a public file now."""
    (tmp_path / "service" / left).parent.mkdir(parents=True)
    (tmp_path / "service" / left).write_text("hunter2")
    (tmp_path / "service" / left).chmod(0o644 if ".new-" in left else 0o400)
    done = write(f"path={tmp_path}/service uid={os.getuid()} files={{'a':'public','live/password':'other'}}", *options)
    assert done.returncode == 0, done.stdout
    assert "public" in done.stdout
    assert "hunter2" not in done.stdout


def test_a_secret_stands_in_no_log_of_the_module_s_arguments() -> None:
    """Ansible writes a module's arguments to the host's journal, but for those that the module names."""
    source = (ROOT / "roles/container/library/container_files.py").read_text()
    assert '"secrets": {"type": "dict", "default": {}, "no_log": True}' in source
