"""Plays that lead on: each holds the lock, and asks the role for what its spec knows."""

from __future__ import annotations

import re

import pytest
from interface.roles import ROOT, load
from telemetry.consumer import remedy

PLAYS = {"accept_loss": "main", "redrive": "redrive", "delete_stored": "delete_stored"}


@pytest.mark.parametrize("path", sorted(path.name for path in ROOT.glob("*.yml") if path.name != "requirements.yml"))
def test_a_playbook_beside_the_readme_is_the_one_of_its_name(path: str) -> None:
    assert [each["ansible.builtin.import_playbook"] for each in load(path)] == [f"playbooks/{path}"]


@pytest.mark.parametrize(("name", "entry"), PLAYS.items())
def test_a_play_that_leads_on_holds_the_lock_and_gives_what_the_spec_knows(name: str, entry: str) -> None:
    [play] = load(f"playbooks/{name}.yml")
    lock, act = play["tasks"]
    assert play["hosts"] == "consumers"
    assert lock["ansible.builtin.include_role"] == {"name": "preflight", "tasks_from": "lock"}
    assert act["ansible.builtin.include_role"].get("tasks_from", "main") == entry
    assert act["vars"].keys() == load("roles/remedy/meta/argument_specs.yml")["argument_specs"][entry]["options"].keys()


@pytest.mark.parametrize("entry", [*PLAYS.values(), "accept_loss"])
def test_the_role_asks_for_commands_that_there_are(entry: str) -> None:
    text = (ROOT / f"roles/remedy/tasks/{entry}.yml").read_text()
    commands = re.findall(r"__remedy_arguments: .*?\[ *'?(\w+)", text)
    assert commands
    assert remedy.__doc__
    assert [each for each in commands if f"telemetry remedy {each} " not in remedy.__doc__] == []


@pytest.mark.parametrize("entry", [*PLAYS.values(), "accept_loss"])
def test_a_dry_run_asks_and_does_nothing(entry: str) -> None:
    [ask] = [each for each in load("roles/remedy/tasks/run.yml") if "community.docker.docker_container_exec" in each]
    assert ask["check_mode"] is False
    for task in load(f"roles/remedy/tasks/{entry}.yml"):
        if task.get("ansible.builtin.include_tasks") == "run.yml":
            looks = task["vars"]["__remedy_arguments"] in (["partitions"], ["stored"], ["dead_letters"])
            assert looks is not ("not ansible_check_mode" in str(task.get("when", ""))), task["name"]


@pytest.mark.parametrize(
    ("given", "good"), [("3", True), ("3:500", True), ("all", True), ("", True), ("x", False), ("3:", False), ("3-5", False)]
)
def test_what_is_not_a_place_is_refused(given: str, good: bool) -> None:
    [task] = [each for each in load("roles/remedy/tasks/delete_stored.yml") if "ansible.builtin.fail" in each]
    pattern = re.search(r"match\('(.*)'\)", task["when"])
    assert pattern
    assert bool(re.match(pattern[1], given)) is good
