"""The tasks of role zookeeper around an ensemble that answers what the test says."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from interface.roles import ROOT

LINES = [f"server.{n}=192.0.2.{n}:2888:3888:participant;192.0.2.{n}:2181" for n in (1, 2, 3)]


@pytest.mark.parametrize(("options", "steps"), [(["--check"], []), ([], [f"-add {LINES[2]}"])])
def test_a_dry_run_counts_a_member_that_joins_once(tmp_path: Path, options: list[str], steps: list[str]) -> None:
    """Members that are new have joined when the ensemble is brought to the inventory's, or in a dry run were said to."""
    shutil.copy(ROOT / "roles/zookeeper/tasks/members.yml", tmp_path)
    live = {"ansible.builtin.set_fact": {"__zookeeper_live": {"stdout": "x", "stdout_lines": LINES[:2]}}}
    (tmp_path / "ask.yml").write_text(yaml.dump([live]))
    (tmp_path / "reconfigure.yml").write_text(yaml.dump([{"ansible.builtin.debug": {"msg": "<<{{ __zookeeper_change }}>>"}}]))
    play = {
        "hosts": "zookeeper",
        "gather_facts": False,
        "vars": {"__zookeeper_members": ["n1", "n2", "n3"], "__zookeeper_lines": LINES},
        "tasks": [{"ansible.builtin.import_tasks": "members.yml"}],
    }
    (tmp_path / "play.yml").write_text(yaml.dump([play]))
    hosts = {f"n{n}": {"zookeeper_id": n, "ansible_connection": "local"} for n in (1, 2, 3)}
    groups = {"zookeeper": {"hosts": hosts}, "zookeeper_new": {"hosts": {"n3": None}}}
    (tmp_path / "hosts.yml").write_text(yaml.dump({"all": {"children": groups}}))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "hosts.yml", "play.yml", *options],
        cwd=tmp_path, capture_output=True, text=True,
        env={
            "PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8", "HOME": str(tmp_path),
            "ANSIBLE_FILTER_PLUGINS": str(ROOT / "roles/zookeeper/filter_plugins"),
        },
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    assert (f"<<{steps}>>" in done.stdout) is bool(steps), done.stdout
    assert ("<<" in done.stdout) is bool(steps)
