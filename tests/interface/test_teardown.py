"""What a teardown with --limit takes, where names of nodes begin with names of others."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from roles import ROOT

DOCKER = """#!/bin/bash
case "$1" in
  version) echo 26 ;;
  ps) printf '%s\\n' i-kafka-a i-kafka-a-b i-kafka-a.b i-vehicle-aa ;;
  volume) printf '%s\\n' i-kafka-a-data i-kafka-a-b-data i-kafka-a.b-data i-vehicle-aa-spool ;;
esac
"""


def removed(folder: Path, nodes: str) -> set[str]:
    """Names that a dry run of the script would remove."""
    (folder / "docker").write_text(DOCKER)
    (folder / "docker").chmod(0o755)
    done = subprocess.run(
        ["bash", str(ROOT / "roles/teardown/files/remove.sh"), "i", "true", "true", nodes, "any"],
        env=os.environ | {"PATH": f"{folder}:{os.environ['PATH']}"}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return {line.split()[-1] for line in done.stdout.splitlines() if line.startswith("removed")}


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
