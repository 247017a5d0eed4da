"""`make simulate seeds=N` runs seeds 0 to N-1; `make simulate seed=K` replays one with a trace. The exit status tells."""

from __future__ import annotations

import argparse
import sys
import time

from simulation.runs import replay, run_all

PROGRESS_INTERVAL = 10.0
"""Seconds between lines of progress."""


def main() -> int:
    """See above."""
    parser = argparse.ArgumentParser(prog="simulation", description=__doc__)
    which = parser.add_mutually_exclusive_group(required=True)
    which.add_argument("--seeds", type=int, help="how many seeds to run")
    which.add_argument("--seed", type=int, help="the seed to replay")
    arguments = parser.parse_args()
    if arguments.seed is not None:
        wrong = replay(arguments.seed)
        print(wrong or "the promise holds")
        return bool(wrong)
    begun = told = time.monotonic()
    violations = 0
    for done, (seed, wrong) in enumerate(run_all(range(arguments.seeds)), 1):
        if wrong:
            violations += 1
            print(f"seed {seed}: {wrong}\n  make simulate seed={seed}", flush=True)
        now = time.monotonic()
        if now - told > PROGRESS_INTERVAL or done == arguments.seeds:
            told = now
            rate = done / (now - begun) * 60
            print(f"{done} of {arguments.seeds} seeds, {rate:.0f} a minute, {violations} violations", flush=True)
    return bool(violations)


if __name__ == "__main__":
    sys.exit(main())
