"""What work costs: time that passes for a process or a server by what it touches. It is counted, never measured."""

from __future__ import annotations

from bisect import bisect_left, bisect_right
from collections.abc import Callable, Sequence
from typing import Any

from simulation.kernel import Scheduler

SPAN = 1e-4
"""Seconds for each open gap that was read for a walk, or that it has to touch: what one costs beside 1,000 gaps of an upload."""
RECORD = 2e-6
"""Seconds for a record, or a declared gap, of an upload: it is decoded, walked, encoded and compared."""
ROW = 1e-5
"""Seconds for a row that a statement of Postgres touches."""


class Costs:
    """What work costs in one run."""

    def __init__(self, scheduler: Scheduler) -> None:
        self._scheduler = scheduler
        self._results: dict[int, Any] = {}
        """What walks came to, by identity; kept, so that no other object gets it."""
        self.factor = 1.0
        """How much slower machines are than the measured one; in place of gaps in numbers that take long to make."""

    def rows(self, count: int) -> float:
        """Seconds of the server for so many rows."""
        return count * ROW * self.factor

    def walked(self, walk: Callable[..., Any]) -> Callable[..., Any]:
        """telemetry.consumer.progress.walk, which takes its time.

        All that was read for it costs; of what an earlier upload of the batch left in memory, the gaps that overlap the upload.
        """

        def wrapper(progress: Any, records: Sequence[Any], gaps: Sequence[Any]) -> Any:
            process = self._scheduler.current
            assert process is not None
            spans = len(progress.gaps)
            if id(progress) in self._results:
                firsts = [*(each.seq for each in records[:1]), *(each.from_seq for each in gaps[:1])]
                lasts = [*(each.seq for each in records[-1:]), *(each.to_seq for each in gaps[-1:])]
                spans = bisect_right(progress.gaps, max(lasts), key=lambda span: span.first)
                spans -= bisect_left(progress.gaps, min(firsts), key=lambda span: span.last)
            process.work((spans * SPAN + (len(records) + len(gaps)) * RECORD) * self.factor)
            step = walk(progress, records, gaps)
            self._results[id(step.progress)] = step.progress
            return step

        return wrapper
