"""A run that would do nothing fails, and names what to do: Ansible itself skips a play without hosts, with exit status 0."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from interface.roles import ROOT, load

PARTS = {"begin", "begin_hosts", "rolling"}
"""Playbooks that others import; nobody runs them alone."""
PLAYBOOKS = sorted(path.stem for path in (ROOT / "playbooks").glob("*.yml") if path.stem not in PARTS)
TAGGED = {"site", "fleet", "self_check"}
"""`make up` gives all three the same arguments."""
GROUPS = ["zookeeper", "kafka", "postgres", "nginx", "producers", "consumers", "vehicles"]


def run(folder: Path, *arguments: str, config: Path | None = ROOT / "ansible.cfg", hosts: str = "a b", **groups: str) -> str:
    """What a dry run of playbooks says, which has to be refused; the inventory has these hosts."""
    lines = [f"{host} ansible_connection=local instance=tachograph-begin" for host in hosts.split()]
    for group, members in groups.items():
        lines += [f"[{group}]", *members.split()]
    (folder / "inventory.ini").write_text("\n".join(lines))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("ANSIBLE_")}
    environment |= {"PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "LC_ALL": "C.UTF-8"}
    environment |= {"ANSIBLE_CONFIG": str(config)} if config else {}
    done = subprocess.run(
        ["ansible-playbook", "--check", "-i", str(folder / "inventory.ini"), *arguments],
        cwd=folder, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


def playbook(name: str) -> str:
    return str(ROOT / "playbooks" / f"{name}.yml")


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_every_playbook_begins_with_the_refusals(name: str) -> None:
    """It names the groups that its own plays have, and whether these have tags."""
    first, *plays = load(f"playbooks/{name}.yml")
    given = first.get("vars", {})
    assert first["ansible.builtin.import_playbook"] == "begin.yml"
    assert given.keys() <= {"begin_groups", "begin_tags"}
    assert given.get("begin_tags", False) is (name in TAGGED)
    assert any("tags" in play for play in plays) <= (name in TAGGED)
    wanted = {play["hosts"] for play in plays if "hosts" in play} - {"localhost"}
    if "all" in wanted:
        assert "begin_groups" not in given
    else:
        assert wanted == set(given["begin_groups"]) <= set(GROUPS)


def test_a_part_is_imported_by_a_playbook() -> None:
    """What none imports is run alone, and has to begin with the refusals."""
    names = [*PLAYBOOKS, *PARTS]
    imports = {play.get("ansible.builtin.import_playbook", "") for name in names for play in load(f"playbooks/{name}.yml")}
    assert {part for part in PARTS if not any(f"{part}.yml" in each for each in imports)} == set()


@pytest.mark.parametrize("name", PLAYBOOKS)
def test_a_folder_that_others_may_write_to_is_refused_in_words(name: str, tmp_path: Path) -> None:
    """Ansible reads no ansible.cfg there, so it would find neither roles nor modules."""
    (tmp_path / "ansible.cfg").write_text((ROOT / "ansible.cfg").read_text())
    tmp_path.chmod(0o777)
    said = run(tmp_path, playbook(name), config=None, **dict.fromkeys(GROUPS, "a"))
    assert f"Nothing was done: Ansible did not read {ROOT}/ansible.cfg." in said
    assert f'Run "cd {ROOT} && chmod o-w ." first.' in said


def test_an_inventory_without_hosts_is_refused(tmp_path: Path) -> None:
    said = run(tmp_path, playbook("verify"), hosts="")
    assert f"Nothing was done: group all has no host in {tmp_path}/inventory.ini. Name an inventory with hosts by -i" in said


def test_a_group_without_hosts_is_refused(tmp_path: Path) -> None:
    said = run(tmp_path, playbook("accept_loss"), kafka="a b")
    assert "Nothing was done: group consumers has no host in" in said


def test_a_limit_without_a_host_of_the_group_is_refused(tmp_path: Path) -> None:
    said = run(tmp_path, playbook("redrive"), "--limit", "b", consumers="a")
    assert "Nothing was done: --limit b leaves no host of group consumers, which has a." in said


def test_tags_that_leave_all_out_are_refused(tmp_path: Path) -> None:
    said = run(tmp_path, playbook("verify"), "--tags", "kafka")
    assert "Nothing was done: this playbook has no tags, and --tags kafka leaves all of it out." in said


@pytest.mark.parametrize("arguments", [["--limit", "nobody"], ["-i", "nowhere.yml"]])
def test_what_ansible_refuses_itself_stays_refused(arguments: list[str], tmp_path: Path) -> None:
    run(tmp_path, playbook("verify"), *arguments)
