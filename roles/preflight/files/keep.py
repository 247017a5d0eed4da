"""Keeps one holder of a lock (hold.py) for as long as a run lives, in a session of its own that no signal to the run reaches.

    keep.py PROCESS PIPE COMMAND...     PROCESS: file descriptor of the run; PIPE: what its workers have open; COMMAND: the holder's

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


def workers(pipe: str) -> set[int]:
    """Leaders of process groups that have the pipe open."""
    found = set()
    for process in Path("/proc").glob("[0-9]*"):
        try:
            if any(os.readlink(each) == pipe for each in (process / "fd").iterdir()):
                found.add(os.getpgid(int(process.name)))
        except OSError:
            # Ended, or somebody else's
            continue
    return found


def main() -> None:
    """Run the program."""
    run, pipe, command = int(sys.argv[1]), sys.argv[2], sys.argv[3:]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as holder:
        assert holder.stdin
        ends = [run, os.pidfd_open(holder.pid)]
        while not (ended := select.select(ends, [], [], BEAT)[0]):
            os.write(holder.stdin.fileno(), b"\n")
        if run in ended:
            for group in workers(pipe):
                os.killpg(group, signal.SIGKILL)
        holder.terminate()


main()
