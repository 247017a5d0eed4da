"""The running test deployment, through its doors only: playbooks, HTTP, Kafka's protocol, SQL and the engine."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar

import psycopg2
import requests

KEEP = os.environ.get("TACHOGRAPH_KEEP") == "1"
"""Leave the deployment up for the next run, and use one that is up."""
ROOT = Path(__file__).resolve().parents[2]
INVENTORY = ROOT / "tests" / "inventory" / "system.yml"
INSTANCE = "tachograph-test"
NGINX = "http://127.0.0.1:18080"
NODES = {"node1": "127.0.1.11", "node2": "127.0.1.12", "node3": "127.0.1.13"}
PRODUCERS = [f"http://{address}:5001" for address in NODES.values()]
CONSUMERS = [f"http://{NODES[name]}:5002" for name in ("node2", "node3")]
VEHICLES = [f"http://{address}:5003" for address in NODES.values()]
BOOTSTRAP = [f"{address}:9092" for address in NODES.values()]
BUILD = ROOT / "build" / "test"
SETTINGS = BUILD / "settings.json"
"""What tests have set, for all runs that follow."""

T = TypeVar("T")


class NotYet(Exception):
    """What is waited for is not there yet, and why. An assertion that fails within a wait ends it."""


def wait_for(what: str, check: Callable[[], T | None], seconds: float = 60) -> T:
    """The first true value of check; fails after some seconds, naming what was waited for and what was last seen."""
    deadline = time.monotonic() + seconds
    seen: T | Exception | None = None
    while time.monotonic() < deadline:
        try:
            found = seen = check()
        except (NotYet, requests.RequestException, psycopg2.Error, subprocess.SubprocessError) as error:
            seen = error
        else:
            if found:
                return found
        time.sleep(0.2)
    raise AssertionError(f"{what}: not within {seconds:.0f} s; last seen: {seen!r}")


class Result:
    """What a playbook run did."""

    def __init__(self, log: str) -> None:
        self.log = log
        recap = re.findall(r"^(\S+)\s+: ok=(\d+)\s+changed=(\d+)\s+unreachable=(\d+)\s+failed=(\d+)", log, re.MULTILINE)
        self.changed = sum(int(each[2]) for each in recap)

    def module_calls(self) -> int:
        """Results of tasks that ran a module, one a host; needs the callback ansible.posix.json."""
        on_the_controller = {"set_fact", "debug", "group_by", "assert", "fail", "include_vars", "validate_argument_spec", "meta"}
        names = [each["action"].rpartition(".")[2] for _, _, each in self.results() if not each.get("skipped")]
        return sum(name not in on_the_controller and not name.startswith("include") for name in names)

    def results(self) -> Iterator[tuple[str, str, dict[str, Any]]]:
        """Host, task and result of all that was done; needs the callback ansible.posix.json."""
        # Before and after it stands what other callbacks print
        document, _ = json.JSONDecoder().raw_decode(self.log, self.log.index("{\n"))
        for one in document["plays"]:
            for task in one["tasks"]:
                for host, result in task["hosts"].items():
                    yield host, task["task"]["name"], result

    def changes(self) -> dict[tuple[str, str], Any]:
        """Host and task of all that changed, or would, with the difference; needs the callback ansible.posix.json.

        A task's name is that which it has on the host that came to it first, so the host's own name is left out.
        """
        named = ((host, re.sub(r"-node\d\b", "", task), result) for host, task, result in self.results())
        return {(host, task): result.get("diff") for host, task, result in named if result.get("changed")}


def have_engine() -> None:
    """Start an engine if none answers: only then can leftovers be seen, and removed."""
    run("engine", "ansible", "node1", "-m", "ansible.builtin.include_role", "-a", "name=docker_engine")


def play(name: str, *arguments: str, **how: Any) -> Result:
    """Run playbooks against the test inventory."""
    return run(name, "ansible-playbook", *arguments, **how)


def run(name: str, *command: str, refused: bool = False, **how: Any) -> Result:
    """Run an Ansible command; the output is kept in build/test. It has to succeed, or to be refused."""
    process = begin(*command, **how)
    said, _ = process.communicate()
    (BUILD / f"{name}.log").write_text(said)
    tail = "\n".join(said.splitlines()[-60:])
    what = f"{' '.join(command)} {'was not refused' if refused else 'failed'} ({BUILD / name}.log):\n{tail}"
    assert (process.returncode == 0) is not refused, what
    return Result(said)


def begin(*command: str, callback: str = "ansible.builtin.default", inventory: Path = INVENTORY) -> subprocess.Popen[str]:
    """Start an Ansible command, as the leader of a process group; against the test inventory if no other is given."""
    BUILD.mkdir(parents=True, exist_ok=True)
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_STDOUT_CALLBACK": callback,
    }
    settings = ["-e", f"@{SETTINGS}"] if SETTINGS.exists() and inventory == INVENTORY else []
    return subprocess.Popen(
        [*command, "-i", str(inventory), *settings],
        cwd=ROOT, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip


def set_for_all_runs(**values: Any) -> None:
    """Set variables, beside those that tests before have set."""
    known = json.loads(SETTINGS.read_text()) if SETTINGS.exists() else {}
    SETTINGS.write_text(json.dumps(known | values))


def docker(*arguments: str, stdin: str | None = None) -> str:
    """What the docker client prints."""
    return subprocess.run(["docker", *arguments], check=True, capture_output=True, text=True, input=stdin).stdout


def containers() -> list[str]:
    """Names of the instance's containers."""
    return docker("ps", "--all", "--filter", f"label=tachograph.instance={INSTANCE}", "--format", "{{.Names}}").split()


def started(kinds: str = r"\w+") -> dict[str, str]:
    """Container to the time it was started, of kinds that match."""
    names = [name for name in containers() if re.fullmatch(rf"{INSTANCE}-({kinds})-\w+", name)]
    out = docker("inspect", "--format", "{{.Name}} {{.State.StartedAt}} {{.Id}}", *names) if names else ""
    return {line.split()[0].lstrip("/"): line for line in out.splitlines()}


def container(kind: str, node: str) -> str:
    """A container's name."""
    return f"{INSTANCE}-{kind}-{node}"


def main_process(name: str) -> int:
    """The service's own process id on this machine: the child of the container's init; 0 while there is none."""
    init = int(docker("inspect", "--format", "{{.State.Pid}}", name))
    children = Path(f"/proc/{init}/task/{init}/children")
    try:
        return int(children.read_text().split()[0])
    except (FileNotFoundError, ProcessLookupError, IndexError):
        return 0


class Database:
    """The database as its superuser, by the socket inside the container."""

    def rows(self, statement: str) -> list[list[Any]]:
        """Rows of a query, each value as JSON has it."""
        out = self.run(f"SELECT coalesce(json_agg(t), '[]') FROM ({statement}) t")
        return [list(row.values()) for row in json.loads(out)]

    def run(self, statements: str) -> str:
        """What statements print, in one transaction."""
        return docker(
            "exec",
            container("postgres", "node1"),
            "psql",
            "-XqAt1",
            "-v",
            "ON_ERROR_STOP=1",
            "-d",
            "av_telemetry",
            "-c",
            statements,
        )

    def value(self, statement: str) -> Any:
        """The one value of a query."""
        return self.rows(statement)[0][0]


def ready(url: str) -> dict[str, Any]:
    """The body of a service's /readyz."""
    body: dict[str, Any] = requests.get(f"{url}/readyz", timeout=5).json()
    return body


def all_ready() -> bool:
    """Every producer, consumer and vehicle host is ready; if not, the error says which is not, and why."""
    bodies = {url: ready(url) for url in [*PRODUCERS, *CONSUMERS, *VEHICLES]}
    if waiting := {url: body["reasons"] for url, body in bodies.items() if not body["ready"]}:
        raise NotYet(waiting)
    return True


def all_healthy() -> bool:
    """Whether every container of the instance is healthy."""
    out = docker("ps", "--all", "--filter", f"label=tachograph.instance={INSTANCE}", "--format", "{{.Status}}")
    return all("(healthy)" in line for line in out.splitlines())


def memory(name: str) -> int:
    """Bytes that a container's processes hold, the kernel's page cache left out; `docker stats` says 0 at times."""
    init = docker("inspect", "--format", "{{.State.Pid}}", name).strip()
    groups = dict(line.split(":", 2)[1:] for line in Path(f"/proc/{init}/cgroup").read_text().splitlines())
    first = Path("/sys/fs/cgroup/memory" + groups["memory"]) if "memory" in groups else Path("/sys/fs/cgroup" + groups[""])
    stat = dict(line.split() for line in (first / "memory.stat").read_text().splitlines())
    return int(stat["total_rss"] if "total_rss" in stat else stat["anon"])
