"""The tasks of role verify around a proof that answers what the test says."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from interface.roles import ROOT

# Keeps what it is asked and given, and answers as the file `answers` has it: exit status and words
PROOF = """
import json, pathlib, sys
folder = pathlib.Path(__file__).parent
command = sys.argv[1]
with (folder / "commands").open("a") as file:
    print(command, file=file)
(folder / command).write_text(sys.stdin.read())
status, words = json.loads((folder / "answers").read_text()).get(command, (0, ""))
print(words, file=sys.stderr if status == 2 else sys.stdout)
sys.exit(status)
"""
MODULE = """#!/usr/bin/python
from ansible.module_utils.basic import AnsibleModule
module = AnsibleModule(argument_spec={{name: {{"no_log": False}} for name in {names}}})
module.exit_json(changed=False, **{result})
"""
MODULES = {
    "verify_fault": (
        ["instance", "container", "action", "seconds", "address", "outward", "leader_port"],
        {"hit": True, "begun": 10.0, "healed": 11.0, "bit": True, "proof": "it was killed"},
    ),
    "verify_logs": (["instance", "since", "secrets", "traces"], {"lines": [{"text": "a line"}]}),
}
VARIABLES: dict[str, Any] = {
    "__verify_fault": {"name": "broker", "kind": "kafka", "action": "kill", "hosts": ["a"], "leader": False},
    "__verify_config": {"seed": "7"},
    "__verify_environment": {},
    "__verify_kafka": {},
    "__verify_names": ["broker"],
    "__verify_groups": {"kafka": ["a"]},
    "__verify_secrets": ["hunter2"],
    "__verify_traces": [],
    "__verify_since": 0,
    "instance": "i",
    "node_address": "127.0.0.1",
    "verify_hold_seconds": 1,
    "verify_minutes": 2,
    "verify_recovery_timeout": 16,
    "verify_report_file": "report.json",
    "verify_rounds": 3,
    "verify_seed": 7,
    "zookeeper_client_port": 2181,
    "ansible_become": False,
    "ansible_connection": "local",
    "ansible_python_interpreter": sys.executable,
}


def run(folder: Path, tasks: str, answers: dict[str, tuple[int, str]]) -> tuple[int, str, list[str]]:
    """Exit status and words of a run of one of the role's task files, and the proof's commands that it ran."""
    (folder / "proof.py").write_text(PROOF)
    (folder / "answers").write_text(json.dumps(answers))
    for name, (names, result) in MODULES.items():
        (folder / f"{name}.py").write_text(MODULE.format(names=names, result=result))
    variables = VARIABLES | {"__verify_command": [sys.executable, str(folder / "proof.py")], "verify_dir": str(folder)}
    include = {"ansible.builtin.include_tasks": str(ROOT / "roles/verify/tasks" / tasks)}
    (folder / "play.yml").write_text(yaml.dump([{"hosts": "a,b", "gather_facts": False, "tasks": [include], "vars": variables}]))
    environment = {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "LC_ALL": "C.UTF-8",
        "ANSIBLE_LIBRARY": str(folder),
        "ANSIBLE_FILTER_PLUGINS": str(ROOT / "roles/settings/filter_plugins"),
    }
    done = subprocess.run(
        ["ansible-playbook", "-vvv", "-i", "a,b,", str(folder / "play.yml")],
        cwd=ROOT, env=os.environ | environment, capture_output=True, text=True,
    )  # fmt: skip
    return done.returncode, " ".join((done.stdout + done.stderr).split()), (folder / "commands").read_text().split()


def test_a_fault_that_is_not_overcome_is_noted_before_the_round_ends(tmp_path: Path) -> None:
    status, said, commands = run(tmp_path, "fault.yml", {"wait": (1, "waiting for rows")})
    assert (status, commands) == (2, ["wait", "wait", "note"])
    assert json.loads((tmp_path / "note").read_text()) == {
        "name": "broker", "kind": "kafka", "action": "kill", "hosts": ["a"], "begun": 10.0, "healed": 11.0, "bit": True,
        "proof": "it was killed", "settled": None,
    }  # fmt: skip
    assert "broker is over, but after 16 s this is still so: waiting for rows" in said


def test_a_fault_that_is_overcome_is_noted_with_the_time(tmp_path: Path) -> None:
    status, said, commands = run(tmp_path, "fault.yml", {"wait": (0, "17.5")})
    assert (status, commands) == (0, ["wait", "note"]), said
    assert json.loads((tmp_path / "note").read_text())["settled"] == 17.5


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        ((0, "the table"), "the table"),
        ((3, "the table"), "The verdict is not clean; report.json has all of it."),
        ((2, "There is no ledger"), "There is no ledger"),
    ],
)
def test_a_round_ends_well_only_with_a_clean_verdict_and_no_secret_is_shown(
    tmp_path: Path, answer: tuple[int, str], words: str
) -> None:
    status, said, _ = run(tmp_path, "judge.yml", {"judge": answer})
    assert status == (2 if answer[0] else 0)
    assert words in said
    given = json.loads((tmp_path / "judge").read_text())
    assert given == {"lines": [{"text": "a line"}] * 2, "secrets": ["hunter2"], "traces": []}
    # The module that looks through the logs keeps its own secrets to itself: its stand-in does not
    assert "hunter2" not in said.partition("Compare what is stored")[2]


def test_a_wish_that_cannot_be_carried_out_is_refused_in_words(tmp_path: Path) -> None:
    status, said, _ = run(tmp_path, "plan.yml", {"plan": (2, "faults: broker needs 1 hosts")})
    assert status == 2
    assert "faults: broker needs 1 hosts" in said
    given = json.loads((tmp_path / "plan").read_text())
    assert given == {"faults": ["broker"], "groups": {"kafka": ["a"]}, "seed": "7", "rounds": 3}


def test_a_fleet_is_watched_each_minute_and_waited_for_as_long_as_it_takes(tmp_path: Path) -> None:
    status, said, commands = run(tmp_path, "finish.yml", {"finish": (2, "The fleet of the proof failed: it was full")})
    assert (status, commands) == (2, ["watch", "watch", "finish"])
    assert "The fleet of the proof failed: it was full" in said


def test_a_drive_begins_with_a_ledger_and_its_fleet_goes_on_by_itself(tmp_path: Path) -> None:
    status, said, commands = run(tmp_path, "drive.yml", {"wait": (0, "17.5")})
    assert status == 0, said
    # The fleet is not waited for
    assert [each for each in commands if each != "drive"] == ["start", "wait"]
    assert json.loads((tmp_path / "start").read_text()) == {"seed": "7"}
