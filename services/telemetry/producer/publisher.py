"""Group commit into Kafka: an upload is handed over, and its promise is kept when every in-sync replica has it.

One thread commits. It takes all that is waiting, sends it, waits for Kafka's answers, and tells the event loop of all of them in
one wake-up. Under load it lets a window pass first, so that more uploads share a request: a request is what costs. When idle
there is no window.

The client's idempotence is off: with it one refused record, or one retried batch that expires, leaves a client that fails or never
answers again. Exactly once does not come from it, but from (vin, epoch, seq) in the store.

Waits nest: metadata 2 s < request 4 s < delivery 8 s < the producer's answer 9 s.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, Protocol

from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from telemetry import clients
from telemetry import topic as topics
from telemetry.health import Health, Reason
from telemetry.record import KAFKA_HEADERS, MAX_BODY, Refused
from telemetry.settings import ProducerSettings
from telemetry.watchdog import Watchdog

log = logging.getLogger(__name__)

METADATA_TIMEOUT, REQUEST_TIMEOUT, DELIVERY_TIMEOUT = 2.0, 4.0, 8.0
STRAGGLER_GRACE = 0.25
"""Seconds after which a commit no longer waits for partitions that do not answer; their uploads are answered later."""
TOPIC_CHECK_INTERVAL = 60.0
PARTITION_CHECK_INTERVAL = 3.0
RETRY_INTERVAL = 2.0
WEDGED = 20.0
"""Seconds without an outcome, or of nothing but failures that Kafka does not explain, after which the client is given up."""
WATCH_LIMIT = 40.0
"""Seconds that one look at Kafka may take: a new client and two requests, each with a connection of its own."""


def unavailable(message: str) -> Refused:
    """What cannot be made durable now."""
    return Refused(503, "unavailable", message)


class Publisher(Protocol):
    """Takes uploads and makes them durable."""

    def publish(self, key: bytes, value: bytes) -> asyncio.Future[Refused | None]:
        """Hand over one upload; called in the event loop, never blocks.

        The future becomes None when every in-sync replica holds the upload, and a Refused (413 or 503) when it may not.
        Raises Refused at once when nothing can be taken.
        """

    def drain(self) -> None:
        """Take nothing more; what was taken is finished."""

    @property
    def waiting(self) -> int:
        """Uploads taken and not yet answered."""


class FakePublisher:
    """A publisher in memory: keeps every promise, unless `answer` or `full` says otherwise."""

    def __init__(self) -> None:
        self.published: list[tuple[bytes, bytes]] = []
        self.answer: Callable[[bytes, bytes], Refused | None] = lambda key, value: None
        self.full = False
        self._draining = False
        self.waiting = 0

    def publish(self, key: bytes, value: bytes) -> asyncio.Future[Refused | None]:
        """See Publisher."""
        if self.full or self._draining:
            raise unavailable("No room. Send it again.")
        future: asyncio.Future[Refused | None] = asyncio.get_running_loop().create_future()
        outcome = self.answer(key, value)
        if outcome is None:
            self.published.append((key, value))
        future.set_result(outcome)
        return future

    def drain(self) -> None:
        """See Publisher."""
        self._draining = True


class _Item:
    """One upload on its way."""

    __slots__ = ("future", "key", "outcome", "partition", "taken", "value")

    def __init__(self, key: bytes, value: bytes, future: asyncio.Future[Refused | None]) -> None:
        self.key, self.value, self.future = key, value, future
        self.taken = time.monotonic()
        self.partition = -1
        self.outcome: Refused | None = None


def _settle(items: list[_Item]) -> None:
    """Keep promises; runs in the event loop. One that nobody waits for any more is cancelled already."""
    for item in items:
        if not item.future.done():
            item.future.set_result(item.outcome)


make_producer = partial(clients.make_client, KafkaProducer)


class KafkaPublisher:
    """The publisher that speaks with Kafka. Start it inside the running event loop."""

    def __init__(
        self,
        settings: ProducerSettings,
        health: Health,
        make_client: Callable[..., Any] = make_producer,
        give_up: Callable[[str], object] = lambda why: None,
    ) -> None:
        """`give_up` is called, in the event loop, when the client must not be used any longer: end the process."""
        self._settings, self._health, self._make_client, self._give_up = settings, health, make_client, give_up
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        """The committing thread waits for it, and no other: an upload wakes one."""
        self._ending = threading.Condition()
        self._queue: deque[_Item] = deque()
        self._answered: deque[_Item] = deque()
        self._pending: dict[int, _Item] = {}
        """Taken and not answered, the oldest first."""
        self._waiting_bytes = 0
        self._client: Any = None
        self._connecting = time.monotonic()
        """When the try to connect began that is under way."""
        self._partitions = 0
        self._failing: dict[int, tuple[float, str]] = {}
        self._succeeded: dict[int, float] = {}
        self._failures: tuple[float, float] | None = None
        """When the first and the last upload failed that no success came after."""
        self._draining = self._ended = False
        self._threads = [
            threading.Thread(target=self._commit_forever, name="commit", daemon=True),
            threading.Thread(target=self._watch_forever, name="watch", daemon=True),
        ]
        self.watchdog = Watchdog(self._threads[1], WATCH_LIMIT)
        """Of the thread that watches everything else."""

    def start(self) -> None:
        """Begin to connect, and to commit once connected."""
        self._health.set_reason(Reason.KAFKA, "not connected to Kafka yet")
        self._health.clear(Reason.START)
        for thread in self._threads:
            thread.start()

    @property
    def waiting(self) -> int:
        """See Publisher."""
        return len(self._pending)

    def publish(self, key: bytes, value: bytes) -> asyncio.Future[Refused | None]:
        """See Publisher."""
        if self._draining:
            raise unavailable("This producer is shutting down. Send it again.")
        if self._client is None or not self._partitions:
            raise unavailable("Kafka cannot be reached. Send it again.")
        if self.waiting >= self._settings.queue_uploads or self._waiting_bytes + len(value) > self._settings.queue_bytes:
            raise unavailable("Too many uploads are waiting for Kafka. Send it again.")
        item = _Item(key, value, self._loop.create_future())
        with self._condition:
            self._pending[id(item)] = item
            self._waiting_bytes += len(value)
            self._queue.append(item)
            self._condition.notify()
        return item.future

    def drain(self) -> None:
        """See Publisher."""
        self._draining = True

    def close(self, timeout: float = 5.0) -> None:
        """End the threads and the client; what is unanswered by now stays unknown to its sender."""
        with self._condition:
            self._ended = True
            self._condition.notify()
        with self._ending:
            self._ending.notify()
        self._threads[0].join(timeout)
        if self._client is not None:
            try:
                self._client.close(timeout=timeout)
            except KafkaError as error:
                log.warning("closing the Kafka client: %s", error)

    # The committing thread

    def _connect(self) -> Any:
        return self._make_client(
            acks="all",
            enable_idempotence=False,
            allow_auto_create_topics=False,
            max_block_ms=int(METADATA_TIMEOUT * 1000),
            delivery_timeout_ms=int(DELIVERY_TIMEOUT * 1000),
            reconnect_backoff_max_ms=1000,
            retry_backoff_ms=100,
            max_request_size=5 * MAX_BODY,
            batch_size=4 * MAX_BODY,
            # Costs a quarter of the client's time; ours are in /metrics
            metrics_enabled=False,
            **clients.options(self._settings, f"producer-{self._settings.name}", REQUEST_TIMEOUT),
        )

    def _unreachable(self, error: Exception) -> str:
        return f"Kafka cannot be reached at {','.join(self._settings.bootstrap_servers)}: {error}"

    def _commit_forever(self) -> None:
        while not self._ended and self._client is None:
            self._connecting = time.monotonic()
            try:
                self._client = self._connect()
            except (KafkaError, OSError) as error:
                self._health.set_reason(Reason.KAFKA, self._unreachable(error))
                with self._condition:
                    self._condition.wait(RETRY_INTERVAL)
        busy = False
        while True:
            with self._condition:
                while not self._queue and not self._answered and not self._ended:
                    self._condition.wait()
                    # Company comes only under load: the first upload after a pause goes at once.
                    busy = False
            if self._ended and not self._queue:
                return
            if busy:
                time.sleep(self._settings.commit_window_ms / 1000)
            busy = self._commit()

    def _commit(self) -> bool:
        """Send all that waits, and tell what has been answered. Returns whether there was company."""
        with self._condition:
            batch = list(self._queue)
            self._queue.clear()
        pending = {id(item) for item in batch}
        for position, item in enumerate(batch):
            item.partition = topics.partition_of(item.key, self._partitions)
            try:
                future = self._client.send(
                    self._settings.topic, value=item.value, key=item.key, headers=KAFKA_HEADERS, partition=item.partition
                )
            except (MessageSizeTooLargeError, RecordListTooLargeError):
                self._resolve(item, Refused(413, "too_large", "Kafka refuses an upload of this size. Send fewer records in one."))
                continue
            except KafkaError as error:
                # Without metadata the next would wait as long and fail the same way.
                for rest in batch[position:]:
                    self._resolve(rest, self._failed(rest, error))
                break
            future.add_both(lambda result, item=item: self._done(item, result))
        deadline = time.monotonic() + STRAGGLER_GRACE
        told: list[_Item] = []
        with self._condition:
            while True:
                while self._answered:
                    item = self._answered.popleft()
                    pending.discard(id(item))
                    told.append(item)
                left = deadline - time.monotonic()
                if not pending or left <= 0:
                    break
                self._condition.wait(left)
            for item in told:
                del self._pending[id(item)]
            self._waiting_bytes -= sum(len(item.value) for item in told)
        if told:
            self._loop.call_soon_threadsafe(_settle, told)
        return len(batch) > 1

    def _done(self, item: _Item, result: Any) -> None:
        """Kafka's answer for one upload; runs in the client's thread, or at once in ours."""
        if not isinstance(result, BaseException):
            outcome = None
            self._failures = None
            self._succeeded[item.partition] = time.monotonic()
            if self._failing.pop(item.partition, None):
                # What Kafka holds now is the best proof that it can be reached and takes uploads.
                self._health.clear(Reason.KAFKA)
                self._health.clear(Reason.PARTITIONS)
                self._judge()
        elif isinstance(result, (MessageSizeTooLargeError, RecordListTooLargeError)):
            outcome = Refused(413, "too_large", "Kafka refuses an upload of this size. Send fewer records in one.")
        else:
            outcome = self._failed(item, result)
        self._resolve(item, outcome)

    def _failed(self, item: _Item, error: BaseException) -> Refused:
        now = time.monotonic()
        self._failing[item.partition] = (now, type(error).__name__)
        self._failures = (self._failures[0] if self._failures else now, now)
        self._judge()
        return unavailable("Kafka did not confirm the upload in time; it may or may not be stored. Send it again.")

    def _resolve(self, item: _Item, outcome: Refused | None) -> None:
        item.outcome = outcome
        with self._condition:
            self._answered.append(item)
            self._condition.notify()

    def _judge(self) -> None:
        """Ready as long as some partition takes uploads; degraded while some does not."""
        failing = dict(self._failing)
        names = ", ".join(f"{number} ({error})" for number, (_, error) in sorted(failing.items()))
        recent = time.monotonic() - DELIVERY_TIMEOUT
        healthy = [number for number, when in list(self._succeeded.items()) if number not in failing and when > recent]
        if failing and not healthy:
            self._health.set_reason(Reason.PUBLISH, f"Kafka does not confirm uploads: partition {names}")
        else:
            self._health.clear(Reason.PUBLISH)
        self._health.set_degraded(Reason.PUBLISH, f"partitions that do not take uploads: {names}" if failing and healthy else None)

    # The watching thread

    def _watch_forever(self) -> None:
        admin: KafkaAdminClient | None = None
        config: Any = None
        checked = -TOPIC_CHECK_INTERVAL
        while not self._ended:
            self.watchdog.feed()
            try:
                if admin is None:
                    admin = clients.connect_admin(self._settings, f"producer-{self._settings.name}-watch", REQUEST_TIMEOUT)
                due = time.monotonic() - checked >= TOPIC_CHECK_INTERVAL
                topic = topics.describe(admin, self._settings.topic, None if due else config)
                if due or topic is None:
                    settings = self._settings
                    problems = topics.faults(
                        topic, settings.topic, settings.partitions, settings.replication_factor, settings.min_insync_replicas,
                        settings.topic_retention_ms,
                    )  # fmt: skip
                    if problems:
                        self._health.set_reason(Reason.TOPIC, "; ".join(problems))
                    else:
                        self._health.clear(Reason.TOPIC)
                        checked = time.monotonic()
                if topic is not None:
                    config = topic.config
                    # Partitions that were added by hand would part a vehicle's records
                    self._partitions = min(len(topic.partitions), self._settings.partitions)
                    self._look_at(topic)
                    self._look_at_client(topic)
                if self._client is not None:
                    self._health.clear(Reason.KAFKA)
            except (KafkaError, OSError, AttributeError, ValueError) as error:
                # A client whose brokers are all gone also ends in errors of its own making; a new one is made.
                self._health.set_reason(Reason.KAFKA, self._unreachable(error))
                if admin is not None:
                    self._close(admin)
                    admin = None
            with self._ending:
                self._ending.wait_for(lambda: self._ended, PARTITION_CHECK_INTERVAL)
        if admin is not None:
            self._close(admin)

    def _close(self, admin: KafkaAdminClient) -> None:
        try:
            admin.close()
        except (KafkaError, OSError, RuntimeError) as error:
            log.info("closing the watching client: %s", error)

    def _look_at(self, topic: topics.Topic) -> None:
        """Readiness by what the controller says of the partitions, whether or not uploads come."""
        unwritable = topic.unwritable()
        if len(unwritable) == len(topic.partitions):
            self._health.set_reason(Reason.PARTITIONS, "no partition can take uploads: too few replicas are in sync")
        else:
            self._health.clear(Reason.PARTITIONS)
        names = ", ".join(map(str, unwritable))
        some = unwritable and len(unwritable) < len(topic.partitions)
        self._health.set_degraded(Reason.PARTITIONS, f"partitions with too few replicas in sync: {names}" if some else None)
        # What failed a while ago, gets no uploads to prove itself by, and is writable again
        now = time.monotonic()
        for number, (when, _) in list(self._failing.items()):
            if number not in unwritable and now - when > DELIVERY_TIMEOUT:
                self._failing.pop(number, None)
                self._judge()

    def _look_at_client(self, topic: topics.Topic) -> None:
        """Give the client up when it is broken while Kafka is well; only called when another client has just heard from Kafka.

        Seen with other settings of this client: after an expired batch no future resolves any more, for good.
        """
        now = time.monotonic()
        with self._condition:
            oldest = next(iter(self._pending.values()), None)
        first, last = self._failures or (now, now)
        if self._client is None and now - self._connecting > WEDGED:
            why = f"the Kafka client has been connecting for {now - self._connecting:.0f} s"
        elif oldest is not None and now - oldest.taken > WEDGED:
            why = f"the Kafka client has had no outcome for an upload for {now - oldest.taken:.0f} s"
        elif last - first > WEDGED and now - last < DELIVERY_TIMEOUT and not topic.unwritable():
            why = f"every upload has failed for {last - first:.0f} s, though all partitions can be written"
        else:
            return
        self._health.set_reason(Reason.CLIENT, why)
        self._loop.call_soon_threadsafe(self._give_up, why)
