"""What a teardown takes, and how: with --limit, where names of nodes begin with names of others, and where nothing is kept."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest
from interface.roles import ROOT

DOCKER = """#!/bin/bash
echo "$*" >> "$(dirname "$0")/asked"
case "$1" in
  version) echo 26 ;;
  ps) printf '%s\\n' i-kafka-a i-kafka-a-b i-kafka-a.b i-vehicle-aa ;;
  volume) printf '%s\\n' i-kafka-a-data i-kafka-a-b-data i-kafka-a.b-data i-vehicle-aa-spool ;;
esac
"""


def remove(folder: Path, dry: str, data: str, nodes: str) -> str:
    """What the script says, with an engine of two nodes and no systemd."""
    for name, text in {"docker": DOCKER, "systemctl": "", "iptables": "", "find": ""}.items():
        (folder / name).write_text(text or "#!/bin/bash\n")
        (folder / name).chmod(0o755)
    return subprocess.run(
        ["bash", str(ROOT / "roles/teardown/files/remove.sh"), "i", dry, data, nodes, "any"],
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}, capture_output=True, text=True, check=True,
    ).stdout  # fmt: skip


def removed(folder: Path, nodes: str) -> set[str]:
    """Names that a dry run of the script would remove."""
    return {line.split()[-1] for line in remove(folder, "true", "true", nodes).splitlines() if line.startswith("removed")}


@pytest.mark.parametrize(
    ("nodes", "names"),
    [
        ("a", {"i-kafka-a", "i-kafka-a-data"}),
        ("a-b|aa", {"i-kafka-a-b", "i-kafka-a-b-data", "i-vehicle-aa", "i-vehicle-aa-spool"}),
        (r"a\.b", {"i-kafka-a.b", "i-kafka-a.b-data"}),
        ("b", set()),
    ],
)
def test_a_limit_takes_exactly_its_nodes(tmp_path: Path, nodes: str, names: set[str]) -> None:
    assert removed(tmp_path, nodes) == names


def test_without_a_limit_all_goes(tmp_path: Path) -> None:
    assert len(removed(tmp_path, "")) == 8


@pytest.mark.parametrize(
    ("data", "first"),
    [
        ("false", "stop i-kafka-a i-kafka-a-b i-kafka-a.b i-vehicle-aa"),
        ("true", "stop i-kafka-a i-kafka-a-b i-kafka-a.b i-vehicle-aa"),
        ("all", "stop -t 0 i-kafka-a i-kafka-a-b i-kafka-a.b i-vehicle-aa"),
    ],
)
def test_only_where_nothing_is_kept_all_is_killed(tmp_path: Path, data: str, first: str) -> None:
    remove(tmp_path, "false", data, "")
    asked = (tmp_path / "asked").read_text().splitlines()
    assert next(line for line in asked if line.startswith("stop")) == first
    assert any(line.startswith("volume rm") for line in asked) == (data != "false")


def test_a_dry_run_asks_for_nothing_to_end(tmp_path: Path) -> None:
    remove(tmp_path, "true", "all", "")
    assert not [line for line in (tmp_path / "asked").read_text().splitlines() if line.split()[0] in ("stop", "rm")]
