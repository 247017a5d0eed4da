"""Clocks: every host has its own, which may be wrong. The scheduler's time is the true one; only differences of it are told."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from simulation.kernel import Scheduler

START = 1_700_000_000.0
"""Seconds since 1970 at which runs begin: 22:13:20 of a day."""
BEFORE_MIDNIGHT = 6390.0
"""Seconds that may be added to it, so that a run's faults happen around midnight."""
MINUTE, HOUR, DAY, YEAR = 60.0, 3600.0, 86_400.0, 365.25 * 86_400
AHEAD = (
    2 * MINUTE, 2 * HOUR, 20 * HOUR, 1.5 * DAY, 3 * DAY, 5.5 * DAY, 7.5 * DAY, 31 * DAY, 400 * DAY,
    12 * YEAR, 90 * YEAR, 300 * YEAR,
)  # fmt: skip
BEHIND = (
    2 * MINUTE, 2 * HOUR, 20 * HOUR, 1.5 * DAY, 4 * DAY, 7.5 * DAY, 31 * DAY, 400 * DAY, 12 * YEAR, 23 * YEAR, 53.9 * YEAR,
)  # fmt: skip
"""By how much a clock may be wrong: beyond a day, Kafka's retention, the table's; in 2000, in 1970, after 2100, after 2255."""


class Clock:
    """A host's clock."""

    def __init__(self, scheduler: Scheduler, begun: float = START) -> None:
        self._scheduler, self._begun = scheduler, begun
        self.offset = 0.0
        """Seconds that it is ahead of the true time."""

    def time(self) -> float:
        """Seconds since 1970 that it shows."""
        return max(0.0, self._begun + self._scheduler.now + self.offset)

    def moment(self) -> datetime:
        """The same as a point in time."""
        return datetime(1970, 1, 1, tzinfo=UTC) + timedelta(seconds=self.time())


class Time:
    """The module time, as far as the product uses it: by the clock of the process that asks."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler

    def monotonic(self) -> float:
        """See time. It never jumps, whatever happens to the clock."""
        return self._scheduler.now

    def time(self) -> float:
        """See time."""
        process = self._scheduler.current
        assert process is not None
        return process.clock.time()

    def time_ns(self) -> int:
        """See time."""
        return int(self.time() * 1e6) * 1000

    def sleep(self, seconds: float) -> None:
        """See time."""
        process = self._scheduler.current
        assert process is not None
        process.sleep(seconds)
