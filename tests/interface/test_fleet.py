"""Plays of the fleet where some of its hosts do not answer, have left, or know another fleet. They run on tests/stub.py."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import stub
import yaml
from interface.roles import ROOT


class Run(NamedTuple):
    """What a dry run of fleet.yml ended with."""

    status: int
    said: str

    @property
    def driving(self) -> set[str]:
        """Hosts whose vehicles it would have touched."""
        _, _, compared = self.said.partition("TASK [container : Compare ")
        return set(re.findall(r"(?:ok|changed): \[(\w)\]", compared.partition(" TASK [")[0]))


def fleet(hosts: str, count: int = 4) -> str:
    """The fleet file that a host has; its place among them is its own."""
    return json.dumps({"num_vehicles": count, "host_index": 0, "host_count": len(hosts), "hosts": list(hosts)})


LEAVER = {"name": "tachograph-silent-vehicle-c", "kind": "vehicle", "node": "c", "volumes": []}
Play = Callable[..., Run]


@pytest.fixture
def play(tmp_path: Path) -> Play:
    """A dry run of fleet.yml.

    group: the hosts of group `vehicles` in their order; last: host to the text of its fleet file; silent: hosts that do not answer;
    idle: further hosts of the inventory; answer: host to further values of what its modules answer; network: of the hosts, which in
    127.0.0.0/8 are all on one machine.
    """

    def run(
        group: str, last: dict[str, str], *arguments: str, silent: str = "", idle: str = "", answer: dict[str, Any] | None = None,
        network: str = "198.51.100",
    ) -> Run:  # fmt: skip
        hosts: dict[str, dict[str, Any]] = {}
        for number, host in enumerate(sorted({*group, *idle}), 11):
            python = stub.interpreter(tmp_path, host, {"stdout": last.get(host, "")} | (answer or {}).get(host, {}))
            hosts[host] = {"node_address": f"{network}.{number}", "ansible_python_interpreter": str(python)}
            if host in silent:
                # Nobody listens there
                hosts[host] |= {"ansible_connection": "ssh", "ansible_host": "127.0.0.1", "ansible_port": 9}
        one: dict[str, Any] = {"hosts": {"a": {}}}
        inventory = {
            "all": {
                "vars": {
                    "instance": "tachograph-silent", "ansible_connection": "local", "ansible_become": False,
                    "container_supervisor": "docker", **({"machine": "one"} if network.startswith("127.") else {}),
                },
                "hosts": hosts,
                "children": {
                    "zookeeper": {"hosts": {"a": {"zookeeper_id": 1}}},
                    "kafka": {"hosts": {"a": {"kafka_broker_id": 1}}},
                    **dict.fromkeys(("postgres", "nginx", "producers", "consumers"), one),
                    "vehicles": {"hosts": {host: {} for host in group}},
                },
            }
        }  # fmt: skip
        # An inventory in YAML keeps the order of a group's hosts as they are first named
        file = tmp_path / "inventory.yml"
        file.write_text(yaml.safe_dump(inventory, sort_keys=False))
        done = subprocess.run(
            [Path(sys.executable).parent / "ansible-playbook", "-i", file, "fleet.yml", "--check", *arguments],
            cwd=ROOT, env=os.environ | {"LC_ALL": "C.UTF-8", "COLUMNS": "500"}, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
        )  # fmt: skip

        return Run(done.returncode, " ".join(done.stdout.split()))

    return run


def known(hosts: Sequence[str], group: str) -> dict[str, str]:
    """All these hosts have the fleet of that group."""
    return {host: fleet(group) for host in hosts}


def test_all_vehicle_hosts_answer(play: Play) -> None:
    run = play("abc", known("abc", "abc"))
    assert run.status == 0, run.said
    assert run.driving == {"a", "b", "c"}


def test_a_silent_host_is_left_out_and_named_at_the_end(play: Play) -> None:
    run = play("abc", known("ab", "abc"), silent="c")
    assert run.status == 2, run.said
    assert run.driving == {"a", "b"}
    assert "Left out, because they do not answer: c." in run.said


def test_the_count_may_change_while_a_host_is_silent(play: Play) -> None:
    run = play("abc", known("ab", "abc"), "-e", "num_vehicles=40", silent="c")
    assert run.driving == {"a", "b"}, run.said


def test_another_silent_host_is_a_problem(play: Play) -> None:
    run = play("ab", known("ab", "ab"), silent="c", idle="c")
    assert run.status == 2
    assert run.driving == set()
    assert "c cannot be asked: " in run.said


@pytest.mark.parametrize("group", ["abcd", "acb"], ids=["added", "another order"])
def test_no_vehicle_moves_while_a_host_is_silent(play: Play, group: str) -> None:
    run = play(group, known("ab", "abc"), silent="c")
    assert run.status == 2
    assert run.driving == set()
    assert "but c would not hear of it" in run.said


def test_no_vehicle_moves_away_from_hosts_that_limit_leaves_out(play: Play) -> None:
    run = play("abc", known("ab", "ab"), "--limit", "a,c")
    assert run.status == 2
    assert run.driving == set()
    assert "(added: c), so vehicles move to other hosts, but b would not hear of it" in run.said


def test_a_host_that_vanished_from_the_inventory_is_asked_about(play: Play) -> None:
    run = play("ab", known("ab", "abc"))
    assert run.status == 2
    assert run.driving == set()
    assert "but c is not in the inventory any more" in run.said
    assert "-e vehicle_gone=c." in run.said
    assert play("ab", known("ab", "abc"), "-e", "vehicle_gone=c").driving == {"a", "b"}


def test_a_host_that_left_the_group_is_drained_and_its_vehicles_move(play: Play) -> None:
    run = play("ab", known("ab", "abc"), idle="c", answer={"c": {"leavers": [LEAVER]}})
    assert run.status == 0, run.said
    assert run.driving == {"a", "b"}


def test_vehicles_do_not_move_while_the_host_that_left_the_group_keeps_its_own(play: Play) -> None:
    run = play("ab", known("ab", "abc"), "--tags", "vehicles", idle="c", answer={"c": {"leavers": [LEAVER]}})
    assert run.status == 2
    assert run.driving == set()
    assert "but c keeps its vehicles, because of --limit, --tags" in run.said


def test_hosts_with_different_counts_are_named(play: Play) -> None:
    run = play("ab", {"a": fleet("ab", 100), "b": fleet("ab", 30)})
    assert run.status == 2
    assert run.driving == set()
    assert "different counts: 30 on b; 100 on a." in run.said
    assert play("ab", {"a": fleet("ab", 100), "b": fleet("ab", 30)}, "-e", "num_vehicles=100").driving == {"a", "b"}


def test_a_new_host_that_can_ask_no_other_does_not_guess_the_count(play: Play) -> None:
    # Here nobody answers in the place of a host that is not there
    run = play("ab", {}, "--limit", "b", network="127.0.35")
    assert run.status == 2
    assert run.driving == set()
    assert "is not known here, and a did not say. Say it: -e num_vehicles=COUNT" in run.said
    assert play("ab", {}, "--limit", "b", "-e", "num_vehicles=7", network="127.0.35").driving == {"b"}
