"""`python -m simulation SEEDS [--first SEED] [--defect NAME]`: run seeds on all cores; one seed alone prints its trace."""

from __future__ import annotations

import argparse
import logging
import multiprocessing
import os
import sys
import tempfile
import time
from pathlib import Path

from simulation.defects import NAMES, planted
from simulation.world import simulate

BLOCK = 20


def run(task: tuple[int, int, str]) -> list[tuple[int, str, list[str]]]:
    """The seeds of a block that violate something."""
    first, count, defect = task
    logging.disable(logging.CRITICAL)
    found = []
    with planted(defect) as defects:
        for seed in range(first, first + count):
            violation, trace = simulate(seed, folder() / f"{os.getpid()}-{seed}", defects)
            if violation or count == 1:
                found.append((seed, violation, trace))
    return found


def folder() -> Path:
    """Where spools lie: in memory, if the machine has such a place."""
    return Path("/dev/shm" if Path("/dev/shm").is_dir() else tempfile.gettempdir()) / "tachograph-simulation"


def main() -> int:
    """The exit status: 0 when no seed violated anything."""
    parser = argparse.ArgumentParser(prog="simulation")
    parser.add_argument("seeds", type=int)
    parser.add_argument("--first", type=int, default=1)
    parser.add_argument("--defect", choices=NAMES, default="")
    given = parser.parse_args()
    last = given.first + given.seeds
    size = min(BLOCK, given.seeds)
    tasks = [(first, min(size, last - first), given.defect) for first in range(given.first, last, size)]
    begun, done, violations = time.monotonic(), 0, 0
    with multiprocessing.Pool() as pool:
        for task, found in zip(tasks, pool.imap(run, tasks), strict=True):
            done += task[1]
            for seed, violation, trace in found:
                violations += bool(violation)
                print(f"\rseed {seed}: {violation or 'clean'}")
                if given.seeds == 1:
                    print("\n".join(trace))
            rate = 60 * done / (time.monotonic() - begun)
            print(f"\r{done} of {given.seeds} seeds, {rate:.0f} a minute, {violations} violations", end="", flush=True)
    print()
    return 1 if violations else 0


if __name__ == "__main__":
    sys.exit(main())
