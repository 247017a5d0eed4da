"""Holds the lock of a run on one machine, and tells others who runs. Goes there as text, for any Python 3.

    hold.py NAME RUN WHO     says `held`, or `refused` and who holds it

The lock is a name among Linux's abstract sockets: no file, no rights, and it ends with this process, however that ends. The
process ends with its standard input, or when nothing came from there for 30 s: then the controller or the network is gone.
"""

import os
import select
import socket
import sys
import time

SILENCE = 30
# A run that just ended may take a moment to let go
PATIENCE = 3


def holder(name: str) -> "tuple[str, str]":
    """Run and words of who holds the lock."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(5)
        try:
            asked.connect(name)
            run, _, words = asked.makefile(encoding="utf-8").read().partition("\n")
        except OSError:
            run, words = "", ""
    return run, words or "a run that does not answer"


def take(lock: socket.socket, name: str, run: str) -> str:
    """Take the lock; what is to be said."""
    deadline = time.monotonic() + PATIENCE
    while True:
        try:
            lock.bind(name)
        except OSError:
            theirs, words = holder(name)
            if theirs == run:
                return "held"
            if time.monotonic() > deadline:
                return "refused " + words
            time.sleep(0.2)
        else:
            lock.listen(8)
            return ""


def main() -> None:
    """Run the program."""
    name, run, who = "\0" + sys.argv[1], sys.argv[2], sys.argv[3]
    lock = socket.socket(socket.AF_UNIX)
    answer = take(lock, name, run)
    print(answer or "held", flush=True)
    heard = time.monotonic()
    while not answer and time.monotonic() - heard < SILENCE:
        for ready in select.select([lock, sys.stdin], [], [], SILENCE)[0]:
            if ready is lock:
                with lock.accept()[0] as asking:
                    asking.sendall((run + "\n" + who).encode())
            elif os.read(ready.fileno(), 1024):
                heard = time.monotonic()
            else:
                return


main()
