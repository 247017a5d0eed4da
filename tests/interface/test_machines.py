"""What preflight refuses of a machine: an engine, an architecture, a clock or a user with which the containers could not run."""

from __future__ import annotations

import json
import os
import socketserver
import threading
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from interface.roles import ROOT, module
from interface.test_preflight import local, play

machine = module("roles/preflight/library/preflight_machine.py")
judge = module("roles/settings/filter_plugins/machines.py")

DOCKER = {
    "OperatingSystem": "Debian GNU/Linux 13 (trixie)",
    "SecurityOptions": ["name=apparmor", "name=seccomp,profile=builtin"],
    "DockerRootDir": "/var/lib/docker",
    "ServerVersion": "26.1.5",
    "Name": "host",
}


class Engine(socketserver.ThreadingMixIn, socketserver.UnixStreamServer):
    """Answers what the test says, by path."""

    daemon_threads = True

    def __init__(self, path: Path, answers: dict[str, Any]) -> None:
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                body = json.dumps(answers.get(self.path.partition("?")[0], [])).encode()
                self.send_response(200)
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def address_string(self) -> str:
                return "local"

            def log_message(self, format: str, *args: Any) -> None:
                pass

        super().__init__(str(path), Handler)


@pytest.fixture
def answers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """What the engine answers, by path; the module talks to it."""
    given: dict[str, Any] = {"/info": dict(DOCKER)}
    server = Engine(tmp_path / "docker.sock", given)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(machine, "ENGINE", str(tmp_path / "docker.sock"))
    yield given
    server.shutdown()
    server.server_close()


REFUSED = {
    "is Docker Desktop": {"OperatingSystem": "Docker Desktop"},
    "is rootless": {"SecurityOptions": ["name=seccomp,profile=builtin", "name=rootless"]},
    "maps users (userns-remap)": {"SecurityOptions": ["name=userns"]},
    "is podman": {"BuildahVersion": "1.33.7", "DockerRootDir": "/var/lib/containers/storage"},
    "is the snap package": {"DockerRootDir": "/var/snap/docker/common/var-lib-docker"},
}


def test_an_engine_of_docker_passes(answers: dict[str, Any]) -> None:
    assert judge.engine_refusals(machine.engine_facts(), "alpha") == []
    answers["/info"]["SecurityOptions"] = ["name=selinux"]
    assert judge.engine_refusals(machine.engine_facts(), "alpha", enforcing=False) == []


@pytest.mark.parametrize("words", REFUSED)
def test_an_engine_that_cannot_run_the_containers_is_refused(answers: dict[str, Any], words: str) -> None:
    answers["/info"] |= REFUSED[words]
    [refusal] = judge.engine_refusals(machine.engine_facts(), "alpha")
    assert refusal.startswith(f"The engine of alpha ({answers['/info']['OperatingSystem']}) {words}")
    assert refusal.endswith("Install Docker as a package of Debian or Ubuntu, or from Docker, run by root on Linux.")


def test_labels_of_an_enforcing_selinux_are_refused(answers: dict[str, Any]) -> None:
    answers["/info"]["SecurityOptions"] = ["name=seccomp,profile=builtin", "name=selinux"]
    [refusal] = judge.engine_refusals(machine.engine_facts(), "alpha", enforcing=True)
    assert 'Set "selinux-enabled": false in /etc/docker/daemon.json' in refusal


def test_an_engine_that_does_not_answer_is_not_judged(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(machine, "ENGINE", str(tmp_path / "nothing"))
    assert judge.engine_refusals(machine.engine_facts(), "alpha") == []
    assert machine.old_images(time.time()) == []


def test_only_our_images_of_yesterday_are_old(answers: dict[str, Any]) -> None:
    now = 1_800_000_000.0
    tag = "0123456789ab"
    answers["/images/json"] = [
        {"Created": now - 90_000, "RepoTags": [f"tachograph/kafka:{tag}", f"r.example:5000/fleet/tachograph/kafka:{tag}"]},
        {"Created": now - 80_000, "RepoTags": [f"tachograph/nginx:{tag}"]},
        # An operator's own, made from ours: it inherits the label
        {"Created": now - 90_000, "RepoTags": ["example/kafka:1", "tachograph/kafka:mine"]},
        {"Created": now - 90_000, "RepoTags": None},
    ]
    assert machine.old_images(now) == [f"r.example:5000/fleet/tachograph/kafka:{tag}", f"tachograph/kafka:{tag}"]


@pytest.mark.parametrize(
    ("environment", "named"),
    [
        ({}, ""),
        ({"DOCKER_HOST": ""}, ""),
        ({"DOCKER_HOST": "unix:///var/run/docker.sock", "DOCKER_CONTEXT": "default"}, ""),
        ({"DOCKER_HOST": "tcp://192.0.2.9:2375"}, "DOCKER_HOST of local = 'tcp://192.0.2.9:2375' names another engine than "),
        ({"DOCKER_CONTEXT": "far"}, "DOCKER_CONTEXT of local = 'far' names another engine than "),
    ],
)
def test_another_engine_in_the_environment_is_named(environment: dict[str, str], named: str) -> None:
    found = machine.check_environment("local", environment)
    assert len(found) == bool(named)
    assert all(each.startswith(named) and each.endswith(f"Unset {next(iter(environment))}.") for each in found)


def test_a_user_who_is_somebody_elses_is_named() -> None:
    container = {"kind": "kafka", "node": "node1", "uid": os.getuid()}
    [problem] = machine.check_users([container])
    assert problem.startswith(f"kafka_uid = {os.getuid()} (node1) is the user ")
    assert "Set settings_uid_base before the first start" in problem
    assert machine.check_users([container | {"uid": 1_999_999_999}]) == []


def test_an_account_made_for_the_service_may_have_its_user(monkeypatch: pytest.MonkeyPatch) -> None:
    class Entry:
        pw_name = "tachograph-kafka"

    monkeypatch.setattr(machine.pwd, "getpwuid", lambda uid: Entry)
    assert machine.check_users([{"kind": "kafka", "node": "node1", "uid": 10092}]) == []
    Entry.pw_name = "alice"
    assert len(machine.check_users([{"kind": "kafka", "node": "node1", "uid": 10092}])) == 1


def test_another_architecture_is_refused_unless_all_images_are_the_operators() -> None:
    answers = {
        "alpha": {"architecture": "x86_64", "builds": True},
        "beta": {"architecture": "aarch64", "builds": True},
        "gamma": {"architecture": "aarch64", "builds": False},
    }
    [problem] = judge.architecture_problems(answers, "x86_64")
    assert problem.startswith("beta has architecture aarch64, and images are built on the controller, which has x86_64.")
    assert judge.architecture_problems(answers | {"beta": answers["gamma"]}, "x86_64") == []


def test_clocks_that_differ_for_certain_are_named() -> None:
    near = {"alpha": {"clock": [-0.2, 0.3]}, "beta": {"clock": [0.9, 2.0]}, "gamma": {}}
    assert judge.clock_problems(near) == []
    assert judge.clock_problems({}) == []
    [problem] = judge.clock_problems(near | {"delta": {"clock": [1.31, 1.4]}})
    assert problem.startswith("The clock of delta is ahead of the clock of alpha by 1.0 s at least, more than 1 s.")
    assert "NTP" in problem


# Through Ansible

BEHIND = """#!{python}
import sys, time
real = time.time
time.time = lambda: real() - 30
sys.argv = sys.argv[1:] or [""]
exec(compile(open(sys.argv[0]).read() if sys.argv[0] else sys.stdin.read(), "module", "exec"), {{"__name__": "__main__"}})
"""


def test_a_machine_whose_clock_is_behind_is_refused(tmp_path: Path) -> None:
    """Its Python is the tools' with a clock of its own."""
    python = tmp_path / "python"
    python.write_text(BEHIND.format(python=ROOT / ".venv/bin/python"))
    python.chmod(0o755)
    inventory = local()
    inventory["all"]["hosts"]["node3"] |= {"machine": "late", "ansible_python_interpreter": str(python)}
    # Dry, without a lock: what holds it has another way to this Python
    said = play(tmp_path, inventory, "--check")
    assert "- The clock of node1 is ahead of the clock of node3 by " in said
    ahead = float(said.partition("node3 by ")[2].partition(" s at least")[0])
    assert 20 < ahead <= 30


@pytest.mark.parametrize("name", ["DOCKER_HOST"])
def test_another_engine_is_refused_before_anything_is_touched(tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(name, "unix:///nowhere/docker.sock")
    assert f"- {name} of local = 'unix:///nowhere/docker.sock' names another engine" in play(tmp_path, local())
