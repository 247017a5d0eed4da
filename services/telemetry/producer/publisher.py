"""Group commit into Kafka: an upload is handed over, and its promise is kept when every in-sync replica has it.

One thread commits. It takes all that is waiting, sends it, waits for Kafka's answers, and tells the event loop of all of them in
one wake-up. Under load it lets a window pass first, so that more uploads share a request: a request is what costs. When idle
there is no window.

The client's idempotence is off: with it one refused record, or one retried batch that expires, leaves a client that fails or never
answers again. Exactly once does not come from it, but from (vin, epoch, seq) in the store.

Waits nest: metadata 2 s < request 4 s < delivery 8 s < the producer's answer 9 s, counted from the moment it was taken.
"""

from __future__ import annotations

import asyncio
import logging
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, Protocol

from kafka import KafkaAdminClient, KafkaProducer
from kafka.errors import KafkaError, MessageSizeTooLargeError, RecordListTooLargeError

from telemetry import clients
from telemetry import topic as topics
from telemetry.health import Health, Reason, type_and_place
from telemetry.producer.outcomes import Outcomes, Room
from telemetry.record import KAFKA_HEADERS, MAX_BODY, Refused
from telemetry.settings import ProducerSettings, SettingsError
from telemetry.topic import MIN_MESSAGE_BYTES
from telemetry.watchdog import Watchdog

log = logging.getLogger(__name__)

METADATA_TIMEOUT, REQUEST_TIMEOUT, DELIVERY_TIMEOUT, ANSWER_TIMEOUT = 2.0, 4.0, 8.0, 9.0
"""Seconds. The last begins when an upload is taken and bounds its answer, whatever the others add up to."""
METADATA_AGE = 5.0
"""Seconds after which the client asks for the topic's partitions and leaders, so that a new partition is known soon."""
UPLOAD_OVERHEAD, BYTES_PER_BYTE = 20 * 1024, 3
"""Memory that an upload which waits takes beside its bytes, and each of them (tests/benchmark/producer_memory.py measures it)."""
UNCONFIRMED = "Kafka did not confirm the upload in time; it may or may not be stored. Send it again."
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


def outcome_of(error: BaseException | None, topic: str) -> Refused | None:
    """The answer to an upload, by what Kafka's client says of it."""
    if error is None:
        return None
    if isinstance(error, (MessageSizeTooLargeError, RecordListTooLargeError)):
        return unavailable(
            f"Kafka refuses an upload of this size: topic {topic} needs max.message.bytes={MIN_MESSAGE_BYTES} or more."
        )
    return unavailable(UNCONFIRMED)


class Publisher(Protocol):
    """Takes uploads and makes them durable."""

    def publish(self, key: bytes, value: bytes) -> asyncio.Future[Refused | None]:
        """Hand over one upload; called in the event loop, never blocks.

        The future becomes None when every in-sync replica holds the upload, and a Refused (503) when it may not, at the latest
        ANSWER_TIMEOUT later. Raises Refused at once when nothing can be taken.
        """

    def note_refused(self) -> None:
        """An upload was refused before it came here, because too many are under way: /readyz tells it."""

    def drain(self) -> None:
        """Take no further uploads; those that were taken are finished."""

    @property
    def waiting(self) -> int:
        """Uploads taken whose memory is still needed."""


class _Item:
    """One upload on its way."""

    __slots__ = ("future", "key", "outcome", "partition", "size", "taken", "value")

    def __init__(self, key: bytes, value: bytes, size: int, taken: float, future: asyncio.Future[Refused | None]) -> None:
        self.key, self.value, self.size, self.taken, self.future = key, value, size, taken, future
        self.partition = -1
        self.outcome: Refused | None = None


class _Taker:
    """What every publisher does in the event loop: it takes what there is room for, and answers each in time."""

    def __init__(self, health: Health, queue_uploads: int, queue_bytes: int) -> None:
        self._queue_uploads, self._queue_bytes = queue_uploads, queue_bytes
        self._pending: dict[_Item, None] = {}
        """Taken, and held by the client or us; the oldest first."""
        self._bytes = 0
        self._unanswered: deque[_Item] = deque()
        """Of those, from the first on that nobody has answered."""
        self._expiry: asyncio.TimerHandle | None = None
        self._oldest: float | None = None
        """When the oldest of what is pending was taken; other threads read it."""
        self._room = Room(health)
        self._refused_size = 0
        self._following = False
        self._draining = False

    @property
    def waiting(self) -> int:
        """See Publisher."""
        return len(self._pending)

    def drain(self) -> None:
        """See Publisher."""
        self._draining = True

    def publish(self, key: bytes, value: bytes) -> asyncio.Future[Refused | None]:
        """See Publisher."""
        if self._draining:
            raise unavailable("This producer is shutting down. Send it again.")
        if obstacle := self._obstacle():
            raise unavailable(obstacle)
        now, size = time.monotonic(), UPLOAD_OVERHEAD + BYTES_PER_BYTE * len(value)
        if self._full(size):
            self.note_refused(size)
            raise unavailable("Too many uploads are waiting for Kafka. Send it again.")
        self._room.took()
        loop = asyncio.get_running_loop()
        item = _Item(key, value, size, now, loop.create_future())
        if self._oldest is None:
            self._oldest = now
        self._pending[item] = None
        self._bytes += size
        self._unanswered.append(item)
        if self._expiry is None:
            self._expiry = loop.call_later(ANSWER_TIMEOUT, self._expire)
        self._hand_over(item)
        return item.future

    def note_refused(self, size: int = 0) -> None:
        """See Publisher. `size`: the memory that it would have taken."""
        self._refused_size = size
        self._room.refused(time.monotonic())
        if not self._following:
            self._following = True
            self._follow()

    def _obstacle(self) -> str:
        """Why nothing can be taken whatever room there is; empty if it can."""
        return ""

    def _hand_over(self, item: _Item) -> None:
        """Send it on."""
        raise NotImplementedError

    def _full(self, size: int) -> bool:
        return len(self._pending) >= self._queue_uploads or self._bytes + size > self._queue_bytes

    def _follow(self) -> None:
        """Look once a second whether there is room again, until there is nothing to tell."""
        self._following = self._room.judge(time.monotonic(), self._full(self._refused_size))
        if self._following:
            asyncio.get_running_loop().call_later(1.0, self._follow)

    def _expire(self) -> None:
        """Answer what nobody has answered in time."""
        now = time.monotonic()
        while self._unanswered and (self._unanswered[0].future.done() or now - self._unanswered[0].taken >= ANSWER_TIMEOUT):
            item = self._unanswered.popleft()
            if not item.future.done():
                item.future.set_result(Refused(503, "timeout", UNCONFIRMED))
        self._expiry = None
        if self._unanswered:
            delay = max(0.001, self._unanswered[0].taken + ANSWER_TIMEOUT - now)
            self._expiry = asyncio.get_running_loop().call_later(delay, self._expire)

    def _settle(self, items: Iterable[_Item]) -> None:
        """Keep promises, and let go of the uploads. One that nobody waits for any more is answered already."""
        for item in items:
            if not item.future.done():
                item.future.set_result(item.outcome)
            del self._pending[item]
            self._bytes -= item.size
        while self._unanswered and self._unanswered[0].future.done():
            self._unanswered.popleft()
        first = next(iter(self._pending), None)
        self._oldest = first.taken if first else None


class FakePublisher(_Taker):
    """A publisher in memory. It holds what it takes, unless `answer` gives a Kafka client's error, or `silent` no answer at all."""

    def __init__(self, health: Health, queue_uploads: int = 1000, queue_bytes: int = 2**30) -> None:
        super().__init__(health, queue_uploads, queue_bytes)
        self.published: list[tuple[bytes, bytes]] = []
        self.answer: Callable[[bytes], BaseException | None] = lambda value: None
        self.silent = False

    def _hand_over(self, item: _Item) -> None:
        if self.silent:
            return
        error = self.answer(item.value)
        if error is None:
            self.published.append((item.key, item.value))
        item.outcome = outcome_of(error, "telemetry")
        self._settle([item])


make_producer = partial(clients.make_client, KafkaProducer)


class KafkaPublisher(_Taker):
    """The publisher that speaks with Kafka. Start it inside the running event loop."""

    def __init__(
        self,
        settings: ProducerSettings,
        health: Health,
        make_client: Callable[..., Any] = make_producer,
        give_up: Callable[[str], object] = lambda why: None,
    ) -> None:
        """`give_up` is called, in the event loop, when the client must not be used any longer: end the process."""
        super().__init__(health, settings.queue_uploads, settings.queue_bytes)
        self._settings, self._health, self._make_client, self._give_up = settings, health, make_client, give_up
        self._loop = asyncio.get_running_loop()
        self._condition = threading.Condition()
        """The committing thread waits for it, and no other: an upload wakes one."""
        self._ending = threading.Condition()
        self._queue: deque[_Item] = deque()
        self._answered: deque[_Item] = deque()
        self._unconfirmed: Counter[int] = Counter()
        """Uploads that were sent and have no outcome, by partition; the committing thread's."""
        self._outcomes = Outcomes(health, DELIVERY_TIMEOUT)
        self._client: Any = None
        self._connecting = time.monotonic()
        """When the try to connect began that is under way."""
        self._partitions = 0
        self._weak = ""
        """What about the live topic is weaker than the promise."""
        self._suspect = False
        """Kafka refused what a sound topic takes: look at its settings at once."""
        self._ended = False
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

    def _obstacle(self) -> str:
        if self._client is None or not self._partitions:
            return "Kafka cannot be reached. Send it again."
        return f"The topic is weaker than the promise: {self._weak}." if self._weak else ""

    def _hand_over(self, item: _Item) -> None:
        with self._condition:
            self._queue.append(item)
            self._condition.notify()

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
            metadata_max_age_ms=int(METADATA_AGE * 1000),
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
            except (KafkaError, OSError, SettingsError) as error:
                self._health.set_reason(Reason.KAFKA, self._unreachable(error))
            except Exception as error:
                # Arguments that the client does not know, or does not take, raise errors of any kind
                text = f"the Kafka client cannot be made, see kafka_client: {type_and_place(error)}"
                self._health.set_reason(Reason.CLIENT, text)
            else:
                self._health.clear(Reason.CLIENT)
                break
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
        # Partitions that owe an answer, or failed, keep nobody else waiting
        slow = self._outcomes.failing | {number for number, count in self._unconfirmed.items() if count}
        self._send(batch)
        awaited = {item for item in batch if item.partition not in slow}
        deadline = time.monotonic() + STRAGGLER_GRACE
        told: list[_Item] = []
        with self._condition:
            while True:
                while self._answered:
                    told.append(self._answered.popleft())
                    awaited.discard(told[-1])
                left = deadline - time.monotonic()
                if not awaited or left <= 0:
                    break
                self._condition.wait(left)
        if told:
            self._unconfirmed.subtract(item.partition for item in told)
            self._loop.call_soon_threadsafe(self._settle, told)
        return len(batch) > 1

    def _send(self, batch: Sequence[_Item]) -> None:
        """Hand uploads to the client; whatever it raises, each has an outcome then or later."""
        for position, item in enumerate(batch):
            item.partition = topics.partition_of(item.key, self._partitions)
            self._unconfirmed[item.partition] += 1
            if item.future.done():
                # Its sender was told that it may or may not be stored, and sends it again
                self._resolve(item)
                continue
            try:
                future = self._client.send(
                    self._settings.topic, value=item.value, key=item.key, headers=KAFKA_HEADERS, partition=item.partition
                )
            except (MessageSizeTooLargeError, RecordListTooLargeError) as error:
                self._done(item, error)
            except KafkaError as error:
                # Without metadata the next would wait as long and fail the same way
                self._done(item, error)
                for rest in batch[position + 1 :]:
                    rest.partition = item.partition
                    self._unconfirmed[item.partition] += 1
                    self._done(rest, error)
                return
            except Exception as error:
                # An error of the client's own making, as when its metadata is older than a partition: this thread must live on
                log.error("the Kafka client does not take an upload: %s", type_and_place(error))
                self._done(item, error)
            else:
                # The client has a copy
                item.value = b""
                future.add_both(lambda result, item=item: self._done(item, result))

    def _done(self, item: _Item, result: Any) -> None:
        """Kafka's answer for one upload; runs in the client's thread, or at once in ours."""
        error = result if isinstance(result, BaseException) else None
        if error is None:
            self._outcomes.succeeded(item.partition, time.monotonic())
        else:
            self._outcomes.failed(item.partition, type(error).__name__, time.monotonic())
            if isinstance(error, (MessageSizeTooLargeError, RecordListTooLargeError)):
                self._suspect = True
        item.outcome = outcome_of(error, self._settings.topic)
        self._resolve(item)

    def _resolve(self, item: _Item) -> None:
        with self._condition:
            self._answered.append(item)
            self._condition.notify()

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
                due = self._suspect or time.monotonic() - checked >= TOPIC_CHECK_INTERVAL
                topic = topics.describe(admin, self._settings.topic, None if due else config)
                if due or topic is None:
                    self._suspect = False
                    if self._check(topic):
                        checked = time.monotonic()
                if topic is not None:
                    config = topic.config
                    # Partitions that were added by hand would part a vehicle's records
                    self._partitions = min(len(topic.partitions), self._settings.partitions)
                    self._look_at(topic)
                    self._look_at_client(topic)
                if self._client is not None:
                    self._health.clear(Reason.KAFKA)
            except (KafkaError, OSError, SettingsError, AttributeError, ValueError) as error:
                # A client whose brokers are all gone also ends in errors of its own making; a new one is made.
                self._health.set_reason(Reason.KAFKA, self._unreachable(error))
                if admin is not None:
                    self._close(admin)
                    admin = None
            with self._ending:
                self._ending.wait_for(lambda: self._ended, PARTITION_CHECK_INTERVAL)
        if admin is not None:
            self._close(admin)

    def _check(self, topic: topics.Topic | None) -> bool:
        """Compare the live topic with the promise; whether it is sound."""
        settings = self._settings
        wanted = (settings.replication_factor, settings.min_insync_replicas, settings.topic_retention_ms)
        problems = topics.faults(topic, settings.topic, settings.partitions, *wanted)
        if topic is not None:
            self._weak = "; ".join(topics.weaknesses(topic, settings.topic, *wanted))
        if problems:
            self._health.set_reason(Reason.TOPIC, "; ".join(problems))
        else:
            self._health.clear(Reason.TOPIC)
        return not problems

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
        self._outcomes.forget(unwritable, time.monotonic())

    def _look_at_client(self, topic: topics.Topic) -> None:
        """Give the client up when it is broken while Kafka is well; only called when another client has just heard from Kafka.

        Seen with other settings of this client: after an expired batch no future resolves any more, for good.
        """
        now = time.monotonic()
        oldest = self._oldest
        first, last = self._outcomes.failures or (now, now)
        if self._client is None and now - self._connecting > WEDGED:
            why = f"the Kafka client has been connecting for {now - self._connecting:.0f} s"
        elif oldest is not None and now - oldest > WEDGED:
            why = f"the Kafka client has had no outcome for an upload for {now - oldest:.0f} s"
        elif last - first > WEDGED and now - last < DELIVERY_TIMEOUT and not topic.unwritable():
            why = f"every upload has failed for {last - first:.0f} s, though all partitions can be written"
        else:
            return
        self._health.set_reason(Reason.CLIENT, why)
        self._loop.call_soon_threadsafe(self._give_up, why)
