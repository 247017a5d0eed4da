"""Seeds without a violation, and every planted defect caught."""

from __future__ import annotations

import multiprocessing

import pytest

from simulation.__main__ import BLOCK, run
from simulation.defects import NAMES

SEEDS = 2000
MOST = 400
"""Seeds within which a planted defect has to show."""


def test_no_seed_violates_anything() -> None:
    with multiprocessing.Pool() as pool:
        found = [each for block in pool.imap(run, [(first, BLOCK, "") for first in range(1, SEEDS, BLOCK)]) for each in block]
    assert [(seed, violation) for seed, violation, _ in found] == []


@pytest.mark.parametrize("name", NAMES)
def test_a_planted_defect_is_caught(name: str) -> None:
    with multiprocessing.Pool() as pool:
        for first, found in zip(
            range(1, MOST, BLOCK), pool.imap(run, [(first, BLOCK, name) for first in range(1, MOST, BLOCK)]), strict=True
        ):
            if found:
                print(f"{name}: caught within {first + BLOCK - 1} seeds, {found[0][1]}")
                pool.terminate()
                return
    raise AssertionError(f"{name} was not caught by {MOST} seeds")
