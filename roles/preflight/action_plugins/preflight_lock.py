"""Action plugin: one run at a time on an instance, by a lock on the controller and one on the machine.

Both last as long as the main ansible-playbook process, whatever playbooks it has: a holder (files/hold.py) on the machine has the
lock, and a keeper (files/keep.py) on the controller tells it that the run lives.
"""

from __future__ import annotations

import getpass
import hashlib
import os
import re
import select
import shlex
import socket
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from ansible import context
from ansible.plugins.action import ActionBase
from ansible.utils.display import Display

FILES = Path(__file__).resolve().parents[1] / "files"
# Longer than a connection takes to be refused
ANSWER = 30
ANSWERED = re.compile(r"^(held|refused .*)\n", re.MULTILINE)


def process(pid: int) -> str:
    """Names a process for good: numbers come again, the time of a start does not."""
    started = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[19]
    return f"{socket.gethostname()} {pid} {started}"


def holder(python: str, lock: str) -> list[str]:
    """The command that holds a lock for the run to which this worker belongs."""
    main = os.getppid()
    user, playbooks = os.environ.get("SUDO_USER") or getpass.getuser(), " ".join(context.CLIARGS["args"])
    who = f"{user} on {socket.gethostname()}, process {main} (ansible-playbook {playbooks}), since {time.strftime('%F %T %Z')}"
    return [python, "-c", (FILES / "hold.py").read_text(), lock, process(main), who]


def queue() -> str:
    """The pipe by which all workers of this run answer.

    Private parts of Ansible, as ansible-core 2.19.14 has them: on an update look at Display.set_queue, and for `_there` below at
    _build_command of the connection plugin ssh.
    """
    return os.readlink(f"/proc/self/fd/{Display()._final_q._writer.fileno()}")


def answer(pipe: int) -> str:
    """What a holder says; what ssh says before is part of it."""
    said, deadline = "", time.monotonic() + ANSWER
    while not ANSWERED.search(said) and select.select([pipe], [], [], max(0, deadline - time.monotonic()))[0]:
        more = os.read(pipe, 4096).decode(errors="replace")
        if not more:
            break
        said += more
    return said


def take(place: str, command: list[Any]) -> str:
    """Start a keeper with its holder; why there is no lock, or nothing."""
    run = os.pidfd_open(os.getppid())
    keeper = subprocess.Popen(
        [sys.executable, FILES / "keep.py", str(run), queue(), *command],
        pass_fds=[run], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, start_new_session=True,
    )  # fmt: skip
    os.close(run)
    assert keeper.stdout
    with keeper.stdout as stream:
        said = answer(stream.fileno())
    if said.endswith("held\n"):
        return ""
    keeper.kill()
    if "refused " in said:
        return (
            f"Another run is under way on {place}: {said.partition('refused ')[2].strip()}. Nothing was touched. "
            "Wait until it ends, or end it; its lock ends with it."
        )
    return f"No lock could be taken on {place}: {said.strip() or 'no answer'}"


class ActionModule(ActionBase):
    """Takes the locks, or answers as `refused` who has them."""

    def run(self, tmp: str | None = None, task_vars: dict[str, Any] | None = None) -> dict[str, Any]:
        """Take the controller's lock, then that of this host's machine."""
        variables = task_vars or {}
        result: dict[str, Any] = super().run(tmp, variables)
        kind = f"/{self._task.args['of']}" if self._task.args["of"] else ""
        # What runs of one controller share is the folder of secrets
        folder = hashlib.sha256(self._task.args["secrets"].encode()).hexdigest()[:16]
        places = {"the controller": holder(sys.executable, f"tachograph/{folder}{kind}")}
        python = str(self._templar.template(variables.get("ansible_python_interpreter", "python3")))
        # Words by which Ansible looks for one itself: auto, auto_silent ...
        if python.startswith("auto"):
            python = "python3"
        places[f"host {variables['inventory_hostname']}"] = self._there(
            holder(python, f"tachograph/{self._task.args['instance']}{kind}")
        )
        for place, command in places.items():
            if command and (refused := take(place, command)):
                return result | {"refused": refused}
        return result

    def _there(self, command: list[str]) -> list[Any]:
        """The command that runs `command` on the host; empty where that cannot be."""
        connection = self._connection
        match connection.transport:
            case "local":
                return command
            case "ssh":
                # Opens the connection that the holder shares; a host out of reach is told as one
                self._low_level_execute_command("true")
                program = connection.get_option("ssh_executable")
                return list(connection._build_command(program, "ssh", connection.host, shlex.join(command)))
            case other:
                Display().warning(f"No lock can be held on a host that is reached by {other}: only the controller's counts.")
                return []
