"""Keeps one holder of a lock (hold.py) for as long as a run lives, in a session of its own that no signal to the run reaches.

    keep.py RUN PROCESS PIPES COMMAND...

RUN is a file descriptor of the run, PROCESS its number, PIPES are those that it shares with its workers, joined by commas, and
COMMAND is the holder's.

Ends with the run, and takes along workers that a killed one left: each would finish its task, while the next run begins.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import sys
from pathlib import Path

# Far below the silence after which a holder ends
BEAT = 5


def workers(words: bytes, pipes: set[str]) -> set[int]:
    """Processes that are copies of the run: they have its command line, and one of its pipes open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if (process / "cmdline").read_bytes() != words:
                continue
            if any(os.readlink(each) in pipes for each in (process / "fd").iterdir()):
                found.add(int(process.name))
        except OSError:
            # Ended, or somebody else's
            continue
    return found


def end(worker: int) -> None:
    """End a worker and what it started, which is in its process group if it leads one."""
    try:
        if os.getpgid(worker) == worker:
            os.killpg(worker, signal.SIGKILL)
        else:
            os.kill(worker, signal.SIGKILL)
    except ProcessLookupError:
        # It ended by itself
        return


def main() -> None:
    """Run the program."""
    run, process, pipes, command = int(sys.argv[1]), sys.argv[2], set(sys.argv[3].split(",")), sys.argv[4:]
    words = Path(f"/proc/{process}/cmdline").read_bytes()
    with subprocess.Popen(command, stdin=subprocess.PIPE) as holder:
        assert holder.stdin
        ends = [run, os.pidfd_open(holder.pid)]
        while not (ended := select.select(ends, [], [], BEAT)[0]):
            os.write(holder.stdin.fileno(), b"\n")
        if run in ended:
            for worker in workers(words, pipes):
                end(worker)
        holder.terminate()


if __name__ == "__main__":
    main()
