"""The disk of a vehicles' host: the spool's SQLite file and the start counter, and what of them outlives a crash.

SQLite is the real one, in memory. What its last COMMIT left is on the disk only if the connection's own `PRAGMA synchronous` says
so; a crash may take the rest. The counter's file is on the disk once it was synced, and has its name once the folder was.
"""

from __future__ import annotations

import errno
import fcntl
import os
import random
import sqlite3
from collections.abc import Callable
from typing import Any

from simulation.kernel import Scheduler

SYNCHRONOUS_FULL = 2


class Disk:
    """What is written, and what of it is certain."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self.images: list[bytes] = [b""]
        """Images of the spool: the first is on the disk, the others are in the kernel's memory, the last is what is seen."""
        self.files: dict[str, str] = {}
        self._durable_files: dict[str, str] = {}
        self._synced: set[str] = set()
        self.written_at = 0.0
        """When the spool was written last."""
        self.failing = False
        """Whether it refuses to be read and written."""
        self.refused_at = -1.0
        """When it refused last."""
        self.on_commit: Callable[[Any], None] = lambda database: None
        self.on_rollback: Callable[[], None] = lambda: None

    def committed(self, image: bytes, durable: bool) -> None:
        """SQLite has written a commit."""
        if durable:
            self.images.clear()
        self.images.append(image)

    def written(self, name: str, text: str) -> None:
        """A file was written, not synced."""
        self.files[name] = text
        self._synced.discard(name)

    def synced(self, name: str) -> None:
        """A file's content is on the disk."""
        self._synced.add(name)

    def renamed(self, old: str, new: str) -> None:
        """A file has another name, in memory."""
        self.files[new] = self.files.pop(old)
        if old in self._synced:
            self._synced.remove(old)
            self._synced.add(new)
        else:
            self._synced.discard(new)

    def folder_synced(self) -> None:
        """Names are on the disk; content only of what was synced."""
        self._durable_files = {name: text if name in self._synced else "" for name, text in self.files.items()}

    def crash(self, power: bool) -> None:
        """The process died, and with the host's power what was not on the disk, or some of it."""
        if power:
            del self.images[self._rng.randrange(len(self.images)) + 1 :]
            if self._rng.random() < 0.5:
                self.files = dict(self._durable_files)

    def restore(self, image: bytes) -> None:
        """Another volume in place of the spool's."""
        self.images = [image]


class Database:
    """A SQLite connection to the disk's image."""

    def __init__(self, scheduler: Scheduler, disk: Disk) -> None:
        process = scheduler.current
        assert process is not None
        self._process, self._disk = process, disk
        self._real = sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        if disk.images[-1]:
            self._real.deserialize(disk.images[-1])

    def execute(self, statement: str, *arguments: Any) -> Any:
        """See sqlite3. A process may die before and after a commit; what comes between them is nobody's."""
        if statement == "PRAGMA journal_mode=WAL":
            return self._real.execute("SELECT 'wal'")
        if self._disk.failing and statement != "ROLLBACK":
            self._disk.refused_at = self._process.scheduler.now
            self._process.step()
            raise sqlite3.OperationalError("disk I/O error")
        if statement == "COMMIT":
            self._process.step()
            result = self._real.execute(statement)
            self._keep()
            self._disk.on_commit(self._real)
            self._process.step()
            return result
        if statement == "ROLLBACK":
            self._disk.on_rollback()
        if not self._process.alive:
            self._process.step()
        return self._real.execute(statement, *arguments)

    def executescript(self, script: str) -> None:
        """See sqlite3: steps of the schema, each with its own commit."""
        self._process.step()
        self._real.executescript(script)
        self._keep()

    def _keep(self) -> None:
        (synchronous,) = self._real.execute("PRAGMA synchronous").fetchone()
        self._disk.written_at = self._process.scheduler.now
        self._disk.committed(self._real.serialize(), synchronous >= SYNCHRONOUS_FULL)

    @property
    def in_transaction(self) -> bool:
        """See sqlite3."""
        return self._process.alive and self._real.in_transaction

    def close(self) -> None:
        """See sqlite3."""
        self._real.close()


class SQLite:
    """The module sqlite3, as far as the spool uses it."""

    Error, OperationalError = sqlite3.Error, sqlite3.OperationalError

    def __init__(self, scheduler: Scheduler, disk: Callable[[], Disk]) -> None:
        self._scheduler, self._disk = scheduler, disk

    def connect(self, path: Any, **_: Any) -> Database:
        """See sqlite3."""
        return Database(self._scheduler, self._disk())


class File:
    """An open file: a name, until something is written."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> File:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def write(self, text: str) -> None:
        """See io."""
        self._path.disk.written(self._path.name, text)

    def flush(self) -> None:
        """See io."""

    def fileno(self) -> Path:
        """What os.fsync is called with here."""
        return self._path


class Path:
    """pathlib.Path of the counter and its folder."""

    def __init__(self, disk: Disk, name: str) -> None:
        self.disk, self.name = disk, name

    @property
    def parent(self) -> Path:
        """See pathlib."""
        return Path(self.disk, "")

    def with_suffix(self, suffix: str) -> Path:
        """See pathlib."""
        return Path(self.disk, self.name + suffix)

    def read_text(self) -> str:
        """See pathlib."""
        if self.name not in self.disk.files:
            raise FileNotFoundError(self.name)
        return self.disk.files[self.name]

    def open(self, mode: str) -> File:
        """See pathlib."""
        assert mode == "w"
        self.disk.written(self.name, "")
        return File(self)

    def replace(self, target: Path) -> None:
        """See pathlib."""
        self.disk.renamed(self.name, target.name)


class OperatingSystem:
    """The modules os and fcntl, as far as the spool uses them. A file that is open is its path."""

    O_CREAT, O_RDWR, O_RDONLY = os.O_CREAT, os.O_RDWR, os.O_RDONLY
    LOCK_EX, LOCK_NB = fcntl.LOCK_EX, fcntl.LOCK_NB

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def open(self, path: Path, flags: int, mode: int = 0) -> Path:
        """See os."""
        return path

    def close(self, path: Path) -> None:
        """See os."""

    def fsync(self, path: Path) -> None:
        """See os."""
        process = self._scheduler.current
        assert process is not None
        process.step()
        if path.disk.failing:
            path.disk.refused_at = self._scheduler.now
            raise OSError(errno.EIO, "Input/output error")
        if path.name:
            path.disk.synced(path.name)
        else:
            path.disk.folder_synced()

    def flock(self, path: Path, how: int) -> None:
        """See fcntl. A host runs one process on its spool."""
