"""Many seeds, by all cores; one seed, with a trace; defects, and which seed catches each."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Iterable, Iterator
from typing import Any, NamedTuple

from simulation.defects import DEFECTS, TOGETHER, planted
from simulation.world import World

MOST_SEEDS = 1000
"""Within which every planted defect is caught that nothing heals."""
HEALED_SEEDS = 100
"""How many a defect is tried with that something heals."""


class Result(NamedTuple):
    """What came of a seed."""

    seed: int
    wrong: str
    """What is wrong with it, empty if nothing is."""
    happened: frozenset[str]
    """Kinds of faults that happened."""


class Catch(NamedTuple):
    """Which seed noticed planted defects first, and what it says; None if none did."""

    names: str
    seed: int | None
    says: str


def run(seed: int, **arguments: Any) -> Result:
    """Run a seed."""
    world, wrong = World(seed, **arguments), ""
    try:
        world.run()
    except Exception as error:
        wrong = f"{type(error).__name__}: {error}"
    return Result(seed, wrong, frozenset(world.scheduler.happened))


def run_all(seeds: Iterable[int]) -> Iterator[Result]:
    """Run seeds by all cores, in no order."""
    # A process grows with what its seeds leave behind; a new one now and then costs nothing.
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=100) as pool:
        yield from pool.imap_unordered(run, seeds, chunksize=20)


def caught(names: str) -> Catch:
    """Which seed catches a defect, or some that are joined by ` + `: what the seed says without them does not count."""
    healed = names in DEFECTS and DEFECTS[names].healed_by
    for seed in range(HEALED_SEEDS if healed else MOST_SEEDS):
        with planted(names) as arguments:
            wrong = run(seed, **arguments).wrong
        if wrong and not run(seed).wrong:
            return Catch(names, seed, wrong)
    return Catch(names, None, f"healed by {healed}" if healed else "")


def catch_all() -> Iterator[Catch]:
    """Every defect alone, and those together that heal each other; by all cores, in order."""
    with multiprocessing.get_context("spawn").Pool(os.cpu_count(), maxtasksperchild=1) as pool:
        yield from pool.imap(caught, [*DEFECTS, *(" + ".join(names) for names in TOGETHER)])


def replay(seed: int) -> str:
    """Run a seed and print all that happens; returns what is wrong with it."""
    return run(seed, trace=print).wrong
