"""Images that nobody needs go; those of others, and those that a container uses, stay."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml
from interface.roles import ROOT

DOCKER = r"""#!/bin/bash
echo "$*" >> "$(dirname "$0")/asked"
case "$1" in
  volume) printf '%s\n' mine $OTHERS ;;
  ps) case "$*" in *--quiet*) echo c1 ;; *) printf '%s\n' mine running ;; esac ;;
  inspect) echo sha256:1 ;;
  images)
    printf '%s\n' "tachograph/kafka:aaaaaaaaaaaa sha256:1" "r:5000/tachograph/kafka:aaaaaaaaaaaa sha256:1" \
      "tachograph/nginx:bbbbbbbbbbbb sha256:2" "example/kafka:1 sha256:3" "<none>:<none> sha256:4" ;;
esac
"""
OLD = [
    "tachograph/kafka:aaaaaaaaaaaa",
    "r:5000/tachograph/kafka:aaaaaaaaaaaa",
    "tachograph/nginx:bbbbbbbbbbbb",
    "tachograph/java:cccccccccccc",
]


def unused(folder: Path, *, others: str = "", check: bool = False) -> tuple[dict[str, Any], str]:
    """What the module answers where the engine is the stub, and the last thing that the stub was asked."""
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    arguments = {
        "ANSIBLE_MODULE_ARGS": {"names": OLD, "instance": "mine", "_ansible_check_mode": check, "_ansible_remote_tmp": str(folder)}
    }
    done = subprocess.run(
        [ROOT / ".venv/bin/python", ROOT / "roles/images/library/images_unused.py", json.dumps(arguments)],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}", "OTHERS": others}, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer, (folder / "asked").read_text().splitlines()[-1]


def test_what_no_container_uses_is_removed(tmp_path: Path) -> None:
    answer, last = unused(tmp_path)
    assert answer["removed"] == ["tachograph/nginx:bbbbbbbbbbbb"]
    assert answer["changed"]
    assert last == "rmi tachograph/nginx:bbbbbbbbbbbb"


def test_a_dry_run_removes_nothing(tmp_path: Path) -> None:
    answer, last = unused(tmp_path, check=True)
    assert answer["changed"]
    assert answer["removed"] == ["tachograph/nginx:bbbbbbbbbbbb"]
    assert not last.startswith("rmi")


@pytest.mark.parametrize(("others", "stopped"), [("running", []), ("idle running", ["idle"])])
def test_images_of_a_stopped_instance_stay(tmp_path: Path, others: str, stopped: list[str]) -> None:
    answer, _ = unused(tmp_path, others=others)
    assert answer["stopped"] == stopped
    assert bool(answer["removed"]) is not bool(stopped)


PLAY = [
    {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "ansible.builtin.include_role": {"name": "images", "tasks_from": "tidy"},
                "vars": {"images_old": "{{ old | default([]) + query('image') }}", "ansible_become": False},
            }
        ],
        "roles": ["settings"],
    }
]


def tidy(folder: Path, *old: str) -> tuple[str, str]:
    """What a play says that tidies up, and everything that the stub of the engine's client was asked."""
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    (folder / "asked").touch()
    (folder / "play.yml").write_text(yaml.safe_dump(PLAY))
    local = {"ansible_connection": "local", "ansible_python_interpreter": "{{ ansible_playbook_python }}"}
    (folder / "inventory.yml").write_text(yaml.safe_dump({"nginx": {"hosts": {"node1": local}}}))
    done = subprocess.run(
        [ROOT / ".venv/bin/ansible-playbook", "-i", folder / "inventory.yml", folder / "play.yml", "-e", json.dumps({"old": old})],
        env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}",
             "ANSIBLE_CONFIG": str(ROOT / "ansible.cfg"), "LC_ALL": "C.UTF-8"},
        cwd=folder, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout, (folder / "asked").read_text()


def test_what_the_controller_builds_today_stays_and_costs_no_call(tmp_path: Path) -> None:
    said, asked = tidy(tmp_path)
    assert asked == ""
    said, asked = tidy(tmp_path, "tachograph/nginx:bbbbbbbbbbbb")
    assert "Images that nobody used, removed: tachograph/nginx:bbbbbbbbbbbb" in said
    assert "rmi tachograph/nginx:bbbbbbbbbbbb" in asked
