"""Many seeds, by all cores; one seed, with a trace."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator

from simulation.defects import planted
from simulation.world import World


def run(seed: int) -> tuple[int, str]:
    """Run a seed; returns what is wrong with it, empty if nothing is."""
    try:
        World(seed).run()
    except Exception as error:
        return seed, f"{type(error).__name__}: {error}"
    return seed, ""


def run_all(seeds: Iterable[int]) -> Iterator[tuple[int, str]]:
    """Run seeds by all cores, in no order."""
    # A process grows with what its seeds leave behind; a new one now and then costs nothing.
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=100) as pool:
        yield from pool.imap_unordered(run, seeds, chunksize=20)


def caught(defect: str, most: int) -> tuple[int, str] | None:
    """The first seed that notices a planted defect, and what it says; None if none of so many does."""
    with planted(defect) as arguments:
        for seed in range(most):
            try:
                World(seed, **arguments).run()
            except Exception as error:
                return seed, f"{type(error).__name__}: {error}"
    return None


def replay(seed: int) -> str:
    """Run a seed and print all that happens; returns what is wrong with it."""
    try:
        World(seed, print).run()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""
