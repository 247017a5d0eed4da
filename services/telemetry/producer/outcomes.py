"""What /readyz says of uploads: whether Kafka confirms them, and whether there is room for more.

Times are arguments, in seconds of any clock that only goes forward.
"""

from __future__ import annotations

import threading
from collections.abc import Container

from telemetry.health import Health, Reason

QUIET = 10.0
"""Seconds without a refusal after which the queue has room, and without a taken upload after which it has none."""


class Outcomes:
    """What became of uploads, by partition. Told by the threads that send them, and asked by the one that watches."""

    def __init__(self, health: Health, recent: float) -> None:
        """`recent`: seconds for which an outcome says something of now."""
        self._health, self._recent = health, recent
        self._lock = threading.Lock()
        self._failing: dict[int, tuple[float, str]] = {}
        self._succeeded: dict[int, float] = {}
        self._failures: tuple[float, float] | None = None

    @property
    def failing(self) -> frozenset[int]:
        """Partitions whose last upload failed."""
        with self._lock:
            return frozenset(self._failing)

    @property
    def failures(self) -> tuple[float, float] | None:
        """When the first and the last upload failed that no success came after."""
        with self._lock:
            return self._failures

    def succeeded(self, partition: int, now: float) -> None:
        """Kafka holds an upload."""
        with self._lock:
            self._failures = None
            self._succeeded[partition] = now
            if self._failing.pop(partition, None):
                # What Kafka holds now is the best proof that it can be reached and takes uploads
                self._health.clear(Reason.KAFKA)
                self._health.clear(Reason.PARTITIONS)
                self._judge(now)

    def failed(self, partition: int, error: str, now: float) -> None:
        """Kafka did not confirm an upload."""
        with self._lock:
            self._failing[partition] = (now, error)
            self._failures = (self._failures[0] if self._failures else now, now)
            self._judge(now)

    def forget(self, unwritable: Container[int], now: float) -> None:
        """Forget what failed a while ago, gets no uploads to prove itself by, and is writable again."""
        with self._lock:
            old = [number for number, (when, _) in self._failing.items() if number not in unwritable and now - when > self._recent]
            for number in old:
                del self._failing[number]
            if old:
                self._judge(now)

    def _judge(self, now: float) -> None:
        """Ready as long as some partition takes uploads; degraded while some does not."""
        names = ", ".join(f"{number} ({error})" for number, (_, error) in sorted(self._failing.items()))
        healthy = any(number not in self._failing and when > now - self._recent for number, when in self._succeeded.items())
        if self._failing and not healthy:
            self._health.set_reason(Reason.PUBLISH, f"Kafka does not confirm uploads: partition {names}")
        else:
            self._health.clear(Reason.PUBLISH)
        partly = f"partitions that do not take uploads: {names}" if self._failing and healthy else None
        self._health.set_degraded(Reason.PUBLISH, partly)


class Room:
    """Whether uploads are refused because too many wait: degraded while some are taken, not ready when none was for a while."""

    def __init__(self, health: Health) -> None:
        self._health = health
        self._refused: float | None = None
        self._none_since: float | None = None
        """When the first one was refused that no taken one came after."""
        self._shut = False

    def took(self) -> None:
        """An upload was taken."""
        self._none_since = None
        if self._shut:
            self._open()

    def refused(self, now: float) -> None:
        """An upload was refused."""
        self._refused = now
        if self._none_since is None:
            self._none_since = now
        self.judge(now, full=True)

    def judge(self, now: float, full: bool) -> bool:
        """To be called now and then until it returns False: nothing is left to tell. `full`: one more would be refused."""
        if not full:
            self._none_since = None
            self._open()
        elif self._none_since is not None and now - self._none_since >= QUIET:
            self._shut = True
            self._health.set_reason(Reason.QUEUE, "no upload is taken: too many wait for Kafka")
        recent = self._refused is not None and now - self._refused < QUIET
        partly = "uploads are refused: too many wait for Kafka (producer_queue_uploads, producer_queue_bytes)"
        self._health.set_degraded(Reason.QUEUE, partly if recent and not self._shut else None)
        return recent or full

    def _open(self) -> None:
        self._shut = False
        self._health.clear(Reason.QUEUE)
