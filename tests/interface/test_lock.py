"""One run at a time: a second is refused and told who runs, and the lock ends with its run, however that ends."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from interface.roles import ROOT

HOLD = ROOT / "roles/preflight/files/hold.py"
# A machine is reached by this: the last argument is the command for its shell
SSH = """#!/bin/bash
exec sh -c "${@: -1}"
"""


class Runs:
    """Playbooks on an instance of their own, one that ends and one that goes on."""

    def __init__(self, folder: Path, connection: str) -> None:
        self.folder, self.started = folder, list[subprocess.Popen[str]]()
        # No other run of this test sleeps as long
        self.seconds = 10_000_000 + os.getpid()
        # What the test itself has open and the machine's name make instances of parallel runs differ
        variables = {"instance": f"lock-{os.getpid()}-{connection}", "machine": "local", "ansible_connection": connection}
        variables |= {"ansible_python_interpreter": sys.executable, "ansible_ssh_executable": str(folder / "ssh")}
        variables |= {"settings_secrets_dir": str(folder / "secrets")}
        (folder / "ssh").write_text(SSH)
        (folder / "ssh").chmod(0o755)
        (folder / "inventory.yml").write_text(yaml.dump({"all": {"hosts": {"a": {}, "b": {}}, "vars": variables}}))
        lock = {"ansible.builtin.include_role": {"name": "preflight", "tasks_from": "lock"}}
        marks = [{"ansible.builtin.command": f"touch {folder}/touched"}]
        sleep = [{"ansible.builtin.command": f"sh -c 'touch {folder}/asleep; exec sleep {self.seconds}'"}]
        for name, tasks in {"ends": marks, "goes_on": sleep}.items():
            (folder / f"{name}.yml").write_text(yaml.dump([{"hosts": "all", "gather_facts": False, "tasks": [lock, *tasks]}]))

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        """A run as the leader of a process group, as a terminal starts it."""
        environment = os.environ | {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
        self.started.append(
            subprocess.Popen(
                ["ansible-playbook", "-i", f"{self.folder}/inventory.yml", *arguments],
                cwd=ROOT, env=environment, text=True, start_new_session=True,
                stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            )
        )  # fmt: skip
        return self.started[-1]

    def goes_on(self) -> subprocess.Popen[str]:
        """A run that has taken the locks and is in the middle of a task."""
        run = self.start(f"{self.folder}/goes_on.yml")
        deadline = time.monotonic() + 60
        while not (self.folder / "asleep").exists() and run.poll() is None and time.monotonic() < deadline:
            time.sleep(0.1)
        assert (self.folder / "asleep").exists(), run.communicate()[0]
        return run

    def ends(self, *arguments: str) -> tuple[int, str]:
        """Exit status and output of a run that has little to do."""
        run = self.start(f"{self.folder}/ends.yml", *arguments)
        return run.wait(60), run.communicate()[0]

    def touched(self) -> bool:
        """Whether a run came beyond its lock."""
        return (self.folder / "touched").exists()

    def asleep(self) -> bool:
        """Whether the task of the run that goes on is at work."""
        for file in Path("/proc").glob("[0-9]*/cmdline"):
            # Others come and go
            with contextlib.suppress(FileNotFoundError, ProcessLookupError):
                if file.read_bytes() == f"sleep\0{self.seconds}\0".encode():
                    return True
        return False


@pytest.fixture(params=["local", "ssh"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[Runs]:
    """Runs, of which none is left afterwards."""
    result = Runs(tmp_path, request.param)
    yield result
    for run in result.started:
        if run.poll() is None:
            os.killpg(run.pid, signal.SIGKILL)
            run.wait()


def test_a_host_whose_python_ansible_looks_for_is_locked_too(runs: Runs) -> None:
    _, said = runs.ends("-e", "ansible_python_interpreter=auto")
    # Which one Ansible then finds for its modules is not our affair
    assert "TASK [ansible.builtin.command]" in said, said


def test_a_second_run_is_refused_and_told_who_runs(runs: Runs) -> None:
    first = runs.goes_on()
    status, said = runs.ends()
    said = " ".join(said.split())
    assert status != 0
    assert not runs.touched()
    assert "Another run is under way on the controller: " in said
    assert f" on {socket.gethostname()}, process {first.pid} (ansible-playbook {runs.folder}/goes_on.yml), since 2" in said
    # Another clone has other secrets, and the machine in common
    status, said = runs.ends("-e", "settings_secrets_dir=/elsewhere")
    assert status != 0
    assert not runs.touched()
    assert "Another run is under way on host a: " in " ".join(said.split())
    # A dry run reads, and is let through; a proof goes beside a change
    assert runs.ends("--check")[0] == 0
    assert runs.ends("-e", "preflight_lock=verify")[0] == 0
    (runs.folder / "touched").unlink()
    # Another instance is another matter
    assert runs.ends("-e", "settings_secrets_dir=/elsewhere", "-e", f"instance=other-{os.getpid()}")[0] == 0
    assert runs.touched()


def test_the_lock_and_the_work_end_with_a_killed_run(runs: Runs) -> None:
    first = runs.goes_on()
    assert runs.asleep()
    os.killpg(first.pid, signal.SIGKILL)
    # Not even waited for: a process that its parent has not looked at yet is dead, too
    status, said = runs.ends()
    assert status == 0, said
    assert not runs.asleep()


def test_several_playbooks_of_one_process_are_one_run(runs: Runs) -> None:
    status, said = runs.ends(f"{runs.folder}/ends.yml", f"{runs.folder}/ends.yml")
    assert status == 0, said
    assert runs.ends()[0] == 0


def holder(name: str, silence: str = "30") -> subprocess.Popen[str]:
    """A holder of which the controller's end is in hand."""
    text = HOLD.read_text().replace("SILENCE = 30", f"SILENCE = {silence}")
    return subprocess.Popen(
        [sys.executable, "-c", text, name, f"run of {name}", "who it is"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )


def test_a_holder_ends_with_its_connection_and_when_the_controller_falls_silent() -> None:
    name = f"tachograph/lock-{os.getpid()}"
    with holder(name) as first:
        assert first.stdout
        assert first.stdout.readline() == "held\n"
        assert first.stdin
        first.stdin.close()
        assert first.wait(5) == 0
    with holder(name, silence="1") as silent:
        assert silent.stdout
        assert silent.stdout.readline() == "held\n"
        assert silent.wait(5) == 0
