"""A Kafka client that answers as told, for what the publisher asks of one."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any

from kafka.future import Future


class Client:
    """`outcome` gives a result or an exception for an upload; `refused` are exceptions that `send` itself raises for one."""

    def __init__(self) -> None:
        self.outcome: Callable[[bytes], Any] = lambda value: object()
        self.refused: Callable[[bytes], Exception | None] = lambda value: None
        self.sent: list[dict[str, Any]] = []
        self.held: list[tuple[Future, Any]] = []
        self.hold: Callable[[int], bool] = lambda partition: False
        """Whether the outcomes of a partition are not told yet."""

    def send(self, topic: str, **what: Any) -> Future:
        """See KafkaProducer."""
        error = self.refused(what["value"])
        if error is not None:
            raise error
        self.sent.append({"topic": topic} | what)
        outcome = self.outcome(what["value"])
        future = Future()
        if self.hold(what["partition"]):
            self.held.append((future, outcome))
        else:
            self._tell(future, outcome)
        return future

    def release(self) -> None:
        """Tell what was held, in a thread of the client's own."""
        held, self.held = self.held, []
        thread = threading.Thread(target=lambda: [self._tell(*each) for each in held])
        thread.start()
        thread.join()

    def close(self, timeout: float) -> None:
        """Nothing to close."""

    @staticmethod
    def _tell(future: Future, outcome: Any) -> None:
        if isinstance(outcome, BaseException):
            future.failure(outcome)
        else:
            future.success(outcome)
