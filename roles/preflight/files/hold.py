"""Holds the lock of a run on one machine, and tells others who runs. Goes there as text, for any Python 3.

    hold.py NAME RUN WHO     says `held`, or `refused` and who holds it

The lock is a name among Linux's abstract sockets: no file, no rights, and it ends with this process, however that ends. The
process ends with its standard input, or when nothing came from there for 30 s: then the controller or the network is gone.
Any user of the machine may take such a name. So the kernel is asked whose process has it, and the refusal names it.
"""

import os
import pwd
import select
import socket
import struct
import sys
import time

SILENCE = 30
# A run that just ended may take a moment to let go
PATIENCE = 3


def holder(name: str) -> "tuple[str, str]":
    """Run and words of who holds the lock; the run counts only if it is of this user."""
    with socket.socket(socket.AF_UNIX) as asked:
        asked.settimeout(5)
        try:
            asked.connect(name)
            pid, uid, _ = struct.unpack("3i", asked.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, struct.calcsize("3i")))
            run, _, words = asked.makefile(encoding="utf-8", errors="replace").read(10000).partition("\n")
        except OSError:
            return "", f"a process that does not answer; `ss -xap` as root shows whose the name @{name[1:]} is"
    if not (run and words and (run + words).isprintable()):
        words = "what has the lock's name does not answer as a run does"
    return run if uid == os.geteuid() else "", f"{words}; its lock is held by process {pid} of user {user(uid)}"


def user(uid: int) -> str:
    """A user's name, or number where it has none."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


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
