"""Plays for many hosts: what a task costs a host does not grow with them, and stateless services roll by a tenth of their group."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from benchmark.hosts import costs
from interface.roles import ROOT

PLAYS = (("site.yml", "--tags", "images"), ("fleet.yml",), ("teardown.yml",))


@pytest.mark.parametrize("together", [False, True], ids=["a machine each", "one machine"])
def test_no_task_reads_the_variables_of_all_hosts_for_each_host(together: bool) -> None:
    few, many = (costs(size, together, PLAYS) for size in (3, 9))
    grown = {task: (few[task].reads, cost.reads) for task, cost in many.items() if task in few and cost.reads > few[task].reads + 1}
    assert not grown


ROLE = {
    "sort.yml": [{"name": "Sort", "ansible.builtin.group_by": {"key": "thing_{{ plan | default('rolling') }}"}}],
    "main.yml": [
        {
            "name": "Run",
            "ansible.builtin.debug": {"msg": "batch {{ ansible_play_batch | length }} {{ ansible_play_batch[0] }}"},
        }
    ],
}


def ansible(*arguments: str | Path, roles: Path | None = None) -> str:
    """What ansible-playbook says."""
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", *arguments],
        cwd=ROOT, env=os.environ | {"LC_ALL": "C.UTF-8"} | ({"ANSIBLE_ROLES_PATH": str(roles)} if roles else {}), text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout
    return done.stdout


def batches(folder: Path, hosts: int, *arguments: str) -> list[int]:
    """How many hosts of a group of that many are replaced at a time."""
    tasks = folder / "roles/thing/tasks"
    tasks.mkdir(parents=True)
    for name, content in ROLE.items():
        (tasks / name).write_text(yaml.safe_dump(content))
    variables = {"rolling_kind": "thing", "rolling_group": "things"}
    imported = {"import_playbook": str(ROOT / "playbooks/rolling.yml"), "vars": variables}
    (folder / "play.yml").write_text(yaml.safe_dump([imported]))
    (folder / "inventory.ini").write_text("[things]\n" + "".join(f"h{number}\n" for number in range(hosts)))
    said = ansible("-i", folder / "inventory.ini", folder / "play.yml", *arguments, roles=folder / "roles")
    return [int(turn.split()[0]) for turn in dict.fromkeys(re.findall(r"msg: batch (.+)", said))]


@pytest.mark.parametrize(("hosts", "sizes"), [(1, [1]), (2, [1, 1]), (19, [1] * 19), (25, [2] * 12 + [1])], ids=str)
def test_a_tenth_of_a_group_is_replaced_at_a_time(tmp_path: Path, hosts: int, sizes: list[int]) -> None:
    assert batches(tmp_path, hosts) == sizes


def test_a_limit_leaves_the_tenth_as_it_is(tmp_path: Path) -> None:
    assert batches(tmp_path, 25, "--limit", "h1,h2,h3") == [2, 1]


def test_what_is_not_replaced_goes_at_once(tmp_path: Path) -> None:
    assert batches(tmp_path, 25, "-e", "plan=at_once") == [25]


def test_a_tag_takes_all_three_plays_of_its_group_and_no_other() -> None:
    listed = ansible("-i", "inventory/local.yml", "site.yml", "--tags", "producers", "--list-tasks")
    said = re.sub(r"(?m)^\[WARNING\].*\n", "", listed)
    # Without those whose one task is always done
    found = [play for play in said.split("\n  play #") if re.search(r"TAGS: \[producers\]\n", play)]
    assert [re.sub(r"^\d+ \(.*?\): |\tTAGS.*", "", play.splitlines()[0]) for play in found] == [
        "Producers, sorted by what is to be done",
        "Producers that are new, stopped or unchanged",
        "Producers that run and change, a tenth of the group at a time",
    ]
