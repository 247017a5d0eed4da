"""Filters that derive Postgres's sizes from the memory of its container. No I/O."""

from __future__ import annotations

from typing import Any

MIB = 2**20
GIB = 2**30
SESSION = 96 * MIB
"""What a session maps beside the shared buffers before it runs a query: programs, libraries and small tables (88 MiB, measured)."""
LOCK = 400
"""Bytes of shared memory for a lock, at most."""


def postgres_sizes(memory: int, connections: int) -> dict[str, str]:
    """Lines of postgresql.conf that follow from the container's memory in bytes.

    A quarter of the memory is enough for every connection to sort at once; never less than Postgres's own 4 MiB.
    """
    return {
        "effective_cache_size": mebibytes(memory * 3 // 4),
        "work_mem": mebibytes(max(4 * MIB, memory // (4 * connections))),
        "maintenance_work_mem": mebibytes(min(max(16 * MIB, memory // 16), 2 * GIB)),
        "max_wal_size": mebibytes(min(max(2 * GIB, memory // 4), 16 * GIB)),
    }


def postgres_session(memory: int, shared_buffers: int, locks: int) -> int:
    """KiB of address space that one process may have, as `ulimit -v` counts.

    Half of what the container has beside the shared buffers is for its queries: one that wants more fails, and is not a reason for
    the kernel to kill the database. locks: the size of the table of locks.
    """
    return (shared_buffers + SESSION + LOCK * locks + (memory - shared_buffers) // 2) // 1024


def mebibytes(size: int) -> str:
    """A size as postgresql.conf has it."""
    return f"{size // MIB}MB"


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"postgres_sizes": postgres_sizes, "postgres_session": postgres_session}
