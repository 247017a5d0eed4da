"""Defects planted one by one, each of which the simulation has to catch."""

from __future__ import annotations

import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

from telemetry import progress, spool, store
from telemetry.store import Fenced, Run, Unavailable, Written, decode_all, plan

from simulation.world import Defects, SimStore


class WithoutCompareAndSet(SimStore):
    """Writes what a worker decided by what it knew, whatever others wrote since then."""

    known: tuple[dict[store.Key, progress.Progress], dict[store.Key, dict[int, progress.Span]]] = ({}, {})

    def write(self, topic_id: uuid.UUID, topic: str, runs: Sequence[Run]) -> Written:
        """See SimStore."""
        outer, self.known = self.known, (dict(self.progress), {key: dict(spans) for key, spans in self.gaps.items()})
        mine = self.known
        try:
            return super().write(topic_id, topic, runs)
        finally:
            assert self.known is mine
            self.known = outer

    def commit(self, topic_id: uuid.UUID, topic: str, runs: Sequence[Run]) -> Written:
        """See SimStore."""
        for run in runs:
            last = self.offsets.get((topic_id, run.partition), (topic, 0, store.Fingerprint(None, None)))[2]
            self.offsets[topic_id, run.partition] = (topic, run.start, last)
        for key in {each.key for each in decode_all(runs, {}) if each.key}:
            self.progress[key] = self.known[0].get(key, progress.Progress())
            self.gaps[key] = dict(self.known[1].get(key, {}))
        return super().commit(topic_id, topic, runs)


class OffsetsFirst(SimStore):
    """Commits offsets in a transaction of their own, before the rows."""

    def commit(self, topic_id: uuid.UUID, topic: str, runs: Sequence[Run]) -> Written:
        """See SimStore."""
        before = dict(self.offsets)
        for run in runs:
            if self.offsets.get((topic_id, run.partition), ("", 0))[1] != run.start:
                raise Fenced("another worker")
            self.offsets[topic_id, run.partition] = (topic, run.end, store.fingerprint(run))
        if self.world.trouble(0.05):
            raise Unavailable("gone between the two")
        self.offsets = before
        return super().commit(topic_id, topic, runs)


class CacheFirst(SimStore):
    """Believes its own progress before the COMMIT is confirmed."""

    def commit(self, topic_id: uuid.UUID, topic: str, runs: Sequence[Run]) -> Written:
        """See SimStore."""
        if self.world.trouble(0.05):
            found = plan(decode_all(runs, {}), lambda key: self.progress.get(key, progress.Progress()), None)
            self.progress.update(found.after)
            raise Unavailable("gone before the commit")
        return super().commit(topic_id, topic, runs)


def _no_fill(*_: Any) -> bool:
    return False


def _one_epoch(self: store.Decoded) -> tuple[str, int] | None:
    return (self.upload.vin, 1) if self.upload else None


def _unsynced(self: spool.Spool, *arguments: Any, **more: Any) -> None:
    _init(self, *arguments, **more)
    self._database.execute("PRAGMA synchronous=OFF")


_init = spool.Spool.__init__


@contextmanager
def planted(name: str) -> Iterator[Defects]:
    """Plant a defect; what it changes in the product is put back afterwards."""
    with PATCHES[name]() if name in PATCHES else _nothing():
        yield CHANGES.get(name, Defects())


@contextmanager
def _nothing() -> Iterator[None]:
    yield


CHANGES = {
    "acks=1": Defects(acks="1"),
    "an answer from flush": Defects(answer_from_flush=True),
    "offsets committed before rows": Defects(store=OffsetsFirst),
    "no compare-and-set": Defects(store=WithoutCompareAndSet),
    "a cache advanced before COMMIT": Defects(store=CacheFirst),
}
PATCHES = {
    "seq <= last taken as duplicate inside a gap": lambda: patch.object(progress, "_fill", _no_fill),
    "a spool without fsync": lambda: patch.object(spool.Spool, "__init__", _unsynced),
    "an epoch left out": lambda: patch.object(store.Decoded, "key", property(_one_epoch)),
}
NAMES = [*CHANGES, *PATCHES]
