"""The promise holds whatever the scheduler does, and the simulation notices when the product is damaged."""

from __future__ import annotations

import os
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from simulation.defects import DEFECTS
from simulation.runs import caught, run_all
from simulation.world import World

SEEDS = 2000
MOST_SEEDS = 1000
"""Within which every planted defect is caught."""
TESTS = Path(__file__).parents[1]


def test_the_promise_holds() -> None:
    assert {seed: wrong for seed, wrong in run_all(range(SEEDS)) if wrong} == {}


@pytest.mark.parametrize("defect", DEFECTS)
def test_a_planted_defect_is_caught(defect: str) -> None:
    assert caught(defect, MOST_SEEDS) is not None


def test_the_same_seed_is_the_same_run() -> None:
    """In another process, too, whose sets have another order."""

    def trace(seed: int, hash_seed: str) -> bytes:
        environment = os.environ | {"PYTHONHASHSEED": hash_seed, "PYTHONPATH": f"{TESTS.parent / 'services'}:{TESTS}"}
        command = [sys.executable, "-m", "simulation", "--seed", str(seed)]
        return subprocess.run(command, env=environment, capture_output=True, check=True, timeout=60).stdout

    for seed in range(3):
        first = trace(seed, "1")
        assert first.count(b"\n") > 50
        assert trace(seed, "2") == first


def test_what_can_break_does() -> None:
    """Over some seeds every kind of fault happens; one that never does would prove nothing."""
    happened: Counter[str] = Counter()
    signs = (
        "vehicles dies", "producer 0 dies", "consumer 1 dies", "consumer 0 is paused", "producer 1 is paused", "vehicles is paused",
        "dies with its host", "is cut off", "leads partition", "Postgres stops", "loses a COMMIT", "loses the answer to a COMMIT",
        "replaced by a backup", "replaced by an empty one", "is answered 422", "is answered 503", "is answered 0", "writes poison",
    )  # fmt: skip
    for seed in range(200):
        lines: list[str] = []
        World(seed, lines.append).run()
        text = "\n".join(lines)
        happened.update(sign for sign in signs if sign in text)
    assert [sign for sign in signs if happened[sign] < 2] == []
