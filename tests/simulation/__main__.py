"""`make simulate seeds=N` runs seeds 0 to N-1; `make simulate seed=K` replays one with a trace. The exit status tells.

With --defects: which seed catches each planted defect, and what heals those that no seed can catch.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections import Counter

from simulation.defects import CAUGHT
from simulation.runs import catch_all, replay, run_all

PROGRESS_INTERVAL = 10.0
"""Seconds between lines of progress."""


def simulate(seeds: int) -> bool:
    """Run many seeds; tells whether any breaks the promise."""
    begun = told = time.monotonic()
    violations = 0
    happened: Counter[str] = Counter()
    for done, result in enumerate(run_all(range(seeds)), 1):
        happened.update(result.happened)
        if result.wrong:
            violations += 1
            print(f"seed {result.seed}: {result.wrong}\n  make simulate seed={result.seed}", flush=True)
        now = time.monotonic()
        if now - told > PROGRESS_INTERVAL or done == seeds:
            told = now
            rate = done / (now - begun) * 60
            print(f"{done} of {seeds} seeds, {rate:.0f} a minute, {violations} violations", flush=True)
    for kind, count in sorted(happened.items(), key=lambda each: (each[1], each[0])):
        print(f"{100 * count / seeds:5.1f} % of the seeds: {kind}")
    return bool(violations)


def report() -> bool:
    """Print what catches each defect; tells whether one is missed that nothing heals."""
    missed = False
    for each in catch_all():
        missed |= each.seed is None and each.names in CAUGHT
        print(f"{each.names}: {each.says or 'MISSED'}" if each.seed is None else f"{each.names}: seed {each.seed}: {each.says}")
    return missed


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seeds", type=int, help="how many seeds to run")
    which.add_argument("--seed", type=int, help="the seed to replay")
    which.add_argument("--defects", action="store_true", help="plant defects, and say which seed catches each")
    arguments = parser.parse_args()
    if arguments.defects:
        return report()
    if arguments.seed is not None:
        wrong = replay(arguments.seed)
        print(wrong or "the promise holds")
        return bool(wrong)
    return simulate(arguments.seeds)


if __name__ == "__main__":
    sys.exit(main())
