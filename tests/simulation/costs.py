"""What work costs: time that passes for a process or a server by what it touches. It is counted, never measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from simulation.kernel import Scheduler

SPAN = 1e-4
"""Seconds for each open gap that a walk is handed: what one costs in a walk of an upload with 1,000 gaps of its own."""
RECORD = 2e-6
"""Seconds for a record, or a declared gap, of an upload: it is decoded, walked, encoded and compared."""
ROW = 1e-5
"""Seconds for a row that a statement of Postgres touches."""


class Costs:
    """What work costs in one run."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self.factor = 1.0
        """How much slower machines are than the measured one; in place of gaps in numbers that take long to make."""

    def rows(self, count: int) -> float:
        """Seconds of the server for so many rows."""
        return count * ROW * self.factor

    def walked(self, walk: Callable[..., Any]) -> Callable[..., Any]:
        """telemetry.consumer.progress.walk, which takes its time."""

        def wrapper(progress: Any, records: Sequence[Any], gaps: Sequence[Any]) -> Any:
            process = self._scheduler.current
            assert process is not None
            process.work((len(progress.gaps) * SPAN + (len(records) + len(gaps)) * RECORD) * self.factor)
            return walk(progress, records, gaps)

        return wrapper
