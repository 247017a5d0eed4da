"""Loops that have to come round.

A call into a library that never returns leaves a process that looks alive, and works in part or not at all. The Kafka client has
such calls: what waits for a connection that is being made has no timeout of its own (kafka-python 3.0.12,
KafkaConnection.send_request). So each loop that calls it has a watchdog, which another thread checks, and a process whose loop
does not come round is ended, to be started again.
"""

from __future__ import annotations

import sys
import threading


class Watchdog:
    """Watches one thread's loop: the loop feeds it, another thread checks it."""

    def __init__(self, thread: threading.Thread, limit: float) -> None:
        """`limit`: seconds that one round may take, every timeout within it included."""
        self._thread, self._limit = thread, limit
        self._quiet = 0.0

    def feed(self) -> None:
        """The loop has come round."""
        self._quiet = 0.0

    def check(self, seconds: float) -> str | None:
        """To be called every so many seconds; why the process has to end, None while the loop is well.

        Counts the checks and asks no clock: a process that was stopped for a while and goes on is not to blame.
        """
        self._quiet += seconds
        if self._quiet <= self._limit:
            return None
        frame = sys._current_frames().get(self._thread.ident or 0)
        where = f"it is in {frame.f_code.co_filename}:{frame.f_lineno}" if frame else "its thread has ended"
        return f"the loop '{self._thread.name}' has not come round for {self._quiet:.0f} s; {where}"
