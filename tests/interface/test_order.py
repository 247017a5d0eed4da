"""In which order members of a cluster change: whoever leads is the last."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from interface.roles import load

ROLLING = [play for play in load("playbooks/site.yml") if play.get("hosts", "").endswith(("zookeeper_rolling", "kafka_rolling"))]


@pytest.mark.parametrize("play", ROLLING, ids=lambda play: play["hosts"])
def test_who_leads_is_the_last(play: dict[str, object], tmp_path: Path) -> None:
    group = str(play["hosts"]).rpartition(":")[2]
    sort = [
        {"ansible.builtin.group_by": {"key": group}},
        # As the roles' tasks do it, where n1 leads
        {"ansible.builtin.group_by": {"key": f"{group}_first"}, "when": "inventory_hostname != 'n1'"},
    ]
    plays = [
        {"hosts": "all", "gather_facts": False, "tasks": sort},
        {
            "hosts": play["hosts"],
            "gather_facts": False,
            "serial": play["serial"],
            "tasks": [{"ansible.builtin.debug": {"msg": "turn"}}],
        },
    ]
    (tmp_path / "plays.yml").write_text(yaml.safe_dump(plays))
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "-i", "n1,n2,n3,", "plays.yml"],
        cwd=tmp_path,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.findall(r'ok: \[(n\d)\] => \{?\s*"?msg', done.stdout) == ["n2", "n3", "n1"]


def test_both_clusters_have_such_a_play() -> None:
    assert [play["hosts"] for play in ROLLING] == ["zookeeper_rolling_first:zookeeper_rolling", "kafka_rolling_first:kafka_rolling"]
