"""The consumer: Kafka to Postgres. The consumer group hands out partitions and does nothing else; offsets live with the rows.

One loop: poll, decode, write. Whatever goes wrong ends the same way: what was fetched is dropped, the caches are emptied, the
stored offsets are read again, and every partition is checked and sought anew. A partition whose topic is not what it was stops,
says why, and is looked at again from time to time.
"""

from __future__ import annotations

import contextlib
import logging
import random
import signal
import threading
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

from kafka import ConsumerRebalanceListener, KafkaAdminClient, KafkaConsumer, TopicPartition
from kafka.errors import KafkaError
from prometheus_client import Counter, Gauge, Histogram

from telemetry import health as healths
from telemetry import topic as topics
from telemetry.health import Health
from telemetry.settings import ConsumerSettings, SettingsError
from telemetry.store import (
    Fenced,
    Fingerprint,
    PartitionStop,
    Place,
    PostgresStore,
    Run,
    Store,
    StoreError,
    TopicRecord,
    Unavailable,
    crc,
)

log = logging.getLogger(__name__)

REQUEST_TIMEOUT = 5.0
CHECK_INTERVAL = 5.0
"""Seconds between looks at Kafka: is it there, and how far behind are we."""
STOPPED_INTERVAL = 30.0
"""Seconds after which a stopped partition is looked at again: its remedy needs no restart."""
RETAIN_INTERVAL = 3600.0
BACKOFF_MAX = 5.0
IDLE_POLL = 250
"""Milliseconds of one poll while nothing is in hand."""
FULL_POLL = 100
"""Kafka records of one poll; a poll that brings as many has more behind it."""


def start_reason(partition: int, topic: str, topic_id: uuid.UUID, places: list[Place], log_start: int, log_end: int) -> str | None:
    """Why a partition must not be read from where the store says; None if it may."""
    here = next((place for place in places if place.topic_id == topic_id), None)
    others = [place for place in places if place.topic_id != topic_id]
    back = "To read it from its start (repeats are harmless), remove the partition's row from stream_offset."
    if here is None and others:
        return (
            f"partition {partition} of {topic} belongs to another topic of that name now: it was made again "
            f"(id {others[0].topic_id} before, {topic_id} now). {back}"
        )
    following = here.next if here else 0
    if log_start > following:
        return (
            f"partition {partition} of {topic} begins at offset {log_start}, but {following} is next: records "
            f"{following}..{log_start - 1} were deleted before they were stored. Accept the loss by name to go on."
        )
    if following > log_end:
        return f"partition {partition} of {topic} ends at offset {log_end}, but {following} is next: the log was cut short. {back}"
    return None


@dataclass
class Assigned:
    """A partition of ours."""

    next: int = 0
    """Offset of the first Kafka record that is not in hand."""
    before: Fingerprint | None = None
    """What record next-1 must look like; it is read first where it is still held."""
    checked: bool = False
    stopped_at: float | None = None


@dataclass
class Hand:
    """What was read and is not written yet."""

    starts: dict[int, int] = field(default_factory=dict)
    ends: dict[int, int] = field(default_factory=dict)
    records: dict[int, list[TopicRecord]] = field(default_factory=dict)
    size: int = 0
    since: float = 0.0

    def runs(self) -> list[Run]:
        """One run a partition."""
        return [Run(number, self.starts[number], self.ends[number], tuple(self.records[number])) for number in sorted(self.starts)]


class Metrics:
    """What /metrics tells of a consumer."""

    def __init__(self, health: Health) -> None:
        registry = health.registry
        self.rows = Counter("telemetry_rows", "Rows inserted.", registry=registry)
        self.repeats = Counter("telemetry_repeats", "Records that came again, unchanged.", registry=registry)
        self.conflicts = Counter("telemetry_conflicts", "Records that came again with other values: an alarm.", registry=registry)
        self.expired = Counter("telemetry_expired", "Records older than their retention.", registry=registry)
        self.gaps = Counter("telemetry_gaps", "Gaps opened; an undeclared one is an alarm.", ["state"], registry=registry)
        self.dead = Counter("telemetry_dead_letters", "Kafka records that are no upload: an alarm.", registry=registry)
        self.guarded = Counter("telemetry_guarded", "Rows that only the guard index refused: an alarm.", registry=registry)
        self.fenced = Counter("telemetry_fenced", "Batches that another worker had written.", registry=registry)
        self.lag = Gauge("telemetry_lag", "Kafka records behind.", ["partition"], registry=registry)
        self.batch_seconds = Histogram("telemetry_batch_seconds", "One transaction.", registry=registry)
        self.age_seconds = Histogram("telemetry_age_seconds", "From Kafka's append to the commit.", registry=registry)


class Consumer(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """One worker."""

    def __init__(
        self,
        settings: ConsumerSettings,
        store: Store,
        client: Any,
        describe: Callable[[], topics.Topic | None],
        health: Health,
        metrics: Metrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._settings, self._store, self._client, self._describe = settings, store, client, describe
        self._health, self._metrics = health, metrics
        self._clock, self._wall, self._sleep, self._rng = clock, wall, sleep, rng or random.Random()
        self._topic_id = uuid.UUID(int=0)
        self._mine: dict[int, Assigned] = {}
        self._hand = Hand()
        self._committed_at, self._committed_rows = -1e9, 0
        self._looked_at = -1e9
        self._failures = 0
        client.subscribe([settings.topic], listener=self)

    # What the group says; runs inside poll(). Only notes are taken here, for the client swallows what a listener raises.

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Take partitions; none is read before it was checked."""
        for each in assigned:
            self._mine[each.partition] = Assigned()
            # A position of our own keeps the client from asking the group for one.
            self._client.seek(each, 0)
            self._client.pause(each)
        self._drop()
        self._health.clear("group")
        log.info("assigned: partitions %s", sorted(self._mine))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Give partitions back; what is in hand of them is read again by whoever gets them."""
        for each in revoked:
            self._mine.pop(each.partition, None)
            self._health.clear(f"stopped {each.partition}")
            with contextlib.suppress(KeyError):
                self._metrics.lag.remove(str(each.partition))
        self._drop()

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """As revoked: the compare-and-set keeps what was written meanwhile."""
        self.on_partitions_revoked(lost)

    def _drop(self) -> None:
        """Forget what is in hand and what is cached, and check every partition again."""
        self._hand = Hand()
        self._store.forget()
        for number, mine in self._mine.items():
            if mine.stopped_at is None:
                mine.checked = False
                self._client.pause(self._partition(number))

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.topic, number)

    # The loop

    def run(self, stop: threading.Event) -> None:
        """Loop until asked to stop. What is in hand then is dropped: it is read again by the next."""
        while not stop.is_set():
            self.step()

    def step(self) -> None:
        """Poll once, and write when it is time."""
        try:
            self._look()
            self._check_unchecked()
            self._poll()
            if self._due():
                self._write()
            self._failures = 0
        except Fenced as error:
            self._metrics.fenced.inc()
            log.info("another worker has moved on: %s", error)
            self._drop()
        except PartitionStop as stop:
            self._stop(stop.partition, str(stop))
            self._drop()
        except Unavailable as error:
            self._wait("postgres", str(error))
        except (KafkaError, ValueError, OSError, AttributeError) as error:
            # The client also ends in errors of its own making while its brokers are gone.
            self._wait("kafka", f"Kafka: {error or type(error).__name__}")

    def _wait(self, key: str, reason: str) -> None:
        """Say why, drop everything, and wait a little longer each time."""
        self._health.set_reason(key, reason)
        self._drop()
        self._failures += 1
        self._sleep(min(BACKOFF_MAX, 0.1 * 2 ** min(self._failures, 10)) * (0.5 + self._rng.random() / 2))

    def _look(self) -> None:
        """Now and then: is Kafka there, how far behind are we, is a stopped partition mended."""
        now = self._clock()
        if now - self._looked_at < CHECK_INTERVAL:
            return
        self._looked_at = now
        numbers = sorted(self._mine) or [0]
        ends = self._client.end_offsets([self._partition(number) for number in numbers], timeout_ms=int(REQUEST_TIMEOUT * 1000))
        self._health.clear("kafka")
        for number, mine in self._mine.items():
            end = ends.get(self._partition(number))
            if end is not None and mine.checked:
                self._metrics.lag.labels(str(number)).set(max(0, end - mine.next))
            if mine.stopped_at is not None and now - mine.stopped_at > STOPPED_INTERVAL:
                mine.stopped_at = None

    def _check_unchecked(self) -> None:
        """The check that every start and every assignment makes, and the seek to where the store says."""
        waiting = [number for number, mine in self._mine.items() if not mine.checked and mine.stopped_at is None]
        if not waiting:
            return
        places = self._store.places(self._settings.topic)
        self._health.clear("postgres")
        topic = self._describe()
        if topic is None:
            raise KafkaError(f"topic {self._settings.topic} is not there: run site.yml")
        self._topic_id = topic.topic_id
        partitions = [self._partition(number) for number in waiting]
        timeout = int(REQUEST_TIMEOUT * 1000)
        starts = self._client.beginning_offsets(partitions, timeout_ms=timeout)
        ends = self._client.end_offsets(partitions, timeout_ms=timeout)
        for number, partition in zip(waiting, partitions, strict=True):
            mine, known = self._mine[number], places.get(number, [])
            reason = start_reason(number, self._settings.topic, self._topic_id, known, starts[partition], ends[partition])
            if reason is not None:
                self._stop(number, reason)
                continue
            here = next((place for place in known if place.topic_id == self._topic_id), None)
            mine.next, mine.before = (here.next, here.before) if here else (0, None)
            if mine.before is not None and (mine.before.crc is None or starts[partition] >= mine.next):
                mine.before = None
            self._client.seek(partition, mine.next - 1 if mine.before else mine.next)
            self._client.resume(partition)
            mine.checked = True
            self._health.clear(f"stopped {number}")

    def _stop(self, number: int, reason: str) -> None:
        """Read no further in a partition; the others go on."""
        log.error("stopped: %s", reason)
        self._health.set_reason(f"stopped {number}", reason)
        mine = self._mine.get(number)
        if mine is not None:
            mine.stopped_at, mine.checked = self._clock(), False
            self._client.pause(self._partition(number))

    def _poll(self) -> None:
        """Take what Kafka has into the hand."""
        patience = IDLE_POLL
        if self._hand.starts:
            waited = 1000 * (self._clock() - self._hand.since)
            patience = int(max(0.0, min(IDLE_POLL, self._settings.batch_wait_ms - waited)))
        for partition, found in self._client.poll(timeout_ms=patience, max_records=FULL_POLL).items():
            mine = self._mine.get(partition.partition)
            if mine is not None and mine.checked:
                self._take(partition.partition, mine, found)

    def _take(self, number: int, mine: Assigned, found: list[Any]) -> None:
        if mine.before is not None:
            first = found.pop(0)
            seen = Fingerprint(first.timestamp, crc(first.key, first.value))
            if first.offset != mine.next - 1 or seen != mine.before:
                raise PartitionStop(
                    number,
                    f"partition {number} of {self._settings.topic}: the record at offset {mine.next - 1} is not the one that was "
                    "stored; the log was cut short and written anew. To read it from its start (repeats are harmless), "
                    "remove the partition's row from stream_offset.",
                )
            mine.before = None
        if not found:
            return
        hand = self._hand
        expected = mine.next
        for record in found:
            if record.offset != expected:
                raise PartitionStop(
                    number,
                    f"partition {number} of {self._settings.topic}: offset {expected} is missing, {record.offset} came. "
                    "Accept the loss by name to go on.",
                )
            expected += 1
        if not hand.starts:
            hand.since = self._clock()
        hand.starts.setdefault(number, mine.next)
        hand.ends[number] = mine.next = expected
        hand.records.setdefault(number, []).extend(
            TopicRecord(number, each.offset, each.timestamp, each.key, each.value, tuple(each.headers)) for each in found
        )
        # An upload's rows are not counted before it is decoded: a record has over 100 bytes.
        hand.size += sum(1 + len(each.value or b"") // 128 for each in found)

    def _due(self) -> bool:
        """Write at once when idle; under load wait for company, but not for long."""
        if not self._hand.starts:
            return False
        if self._hand.size >= self._settings.batch_rows:
            return True
        wait = self._settings.batch_wait_ms / 1000
        now = self._clock()
        busy = now - self._committed_at < wait and self._committed_rows > 1
        return not busy or now - self._hand.since >= wait

    def _write(self) -> None:
        hand, begun = self._hand, self._clock()
        written = self._store.write(self._topic_id, self._settings.topic, hand.runs())
        self._hand = Hand()
        self._health.clear("postgres")
        self._committed_at, self._committed_rows = self._clock(), written.rows
        metrics = self._metrics
        metrics.batch_seconds.observe(self._committed_at - begun)
        wall = self._wall()
        for found in hand.records.values():
            metrics.age_seconds.observe(max(0.0, wall - found[0].timestamp / 1000))
        for counter, count in (
            (metrics.rows, written.rows),
            (metrics.repeats, written.repeats),
            (metrics.conflicts, written.conflicts),
            (metrics.expired, written.expired),
            (metrics.dead, written.dead_letters),
            (metrics.guarded, written.guarded),
            (metrics.gaps.labels("undeclared"), written.gaps_undeclared),
            (metrics.gaps.labels("declared"), written.gaps_declared),
        ):
            counter.inc(count)
        if written.conflicts or written.gaps_undeclared or written.dead_letters or written.guarded:
            log.error(
                "alarm: %d conflicts, %d undeclared gaps, %d dead letters, %d guarded rows in partitions %s",
                written.conflicts, written.gaps_undeclared, written.dead_letters, written.guarded, sorted(hand.starts),
            )  # fmt: skip


def make_client(settings: ConsumerSettings) -> Any:
    """The Kafka client. It commits nothing, and resets nothing by itself. Raises KafkaError while Kafka is away."""
    return KafkaConsumer(
        bootstrap_servers=list(settings.bootstrap_servers),
        client_id=f"consumer-{settings.name}",
        group_id=settings.group,
        group_instance_id=settings.name,
        enable_auto_commit=False,
        auto_offset_reset="none",
        allow_auto_create_topics=False,
        session_timeout_ms=settings.session_timeout_ms,
        heartbeat_interval_ms=settings.session_timeout_ms // 4,
        max_poll_records=FULL_POLL,
        fetch_max_wait_ms=200,
        max_partition_fetch_bytes=4 * 1024 * 1024,
        request_timeout_ms=int(REQUEST_TIMEOUT * 1000),
        bootstrap_timeout_ms=5000,
        reconnect_backoff_max_ms=1000,
        metadata_max_age_ms=30_000,
        metrics_enabled=False,
        **settings.kafka_client,
    )


def make_admin(settings: ConsumerSettings) -> KafkaAdminClient:
    """The client that asks for the topic's id."""
    return KafkaAdminClient(
        bootstrap_servers=list(settings.bootstrap_servers),
        client_id=f"consumer-{settings.name}-admin",
        request_timeout_ms=int(REQUEST_TIMEOUT * 1000),
        **settings.kafka_client,
    )


def describer(settings: ConsumerSettings) -> Callable[[], topics.Topic | None]:
    """A function that describes the topic, by a client of its own that is made anew after any error."""
    admin: list[KafkaAdminClient] = []

    def describe() -> topics.Topic | None:
        if not admin:
            admin.append(make_admin(settings))
        try:
            return topics.describe(admin[0], settings.topic, {})
        except Exception:
            admin.pop().close()
            raise

    return describe


def retain_forever(settings: ConsumerSettings, health: Health, stop: threading.Event) -> None:
    """Drop what is older than the retention, now and every hour."""
    store = PostgresStore(settings.postgres_arguments, settings.retention_days)
    while not stop.is_set():
        try:
            for name in store.retain():
                log.info("retention: dropped %s", name)
            health.set_degraded("retention", None)
        except (StoreError, SettingsError) as error:
            health.set_degraded("retention", f"days older than the retention are not dropped: {error}")
        store.close()
        stop.wait(RETAIN_INTERVAL)


def connect(settings: ConsumerSettings, health: Health, stop: threading.Event) -> Any:
    """The Kafka client, as soon as Kafka is there; None when asked to stop before."""
    while not stop.is_set():
        try:
            return make_client(settings)
        except (KafkaError, OSError) as error:
            health.set_reason("kafka", f"Kafka cannot be reached at {','.join(settings.bootstrap_servers)}: {error}")
            stop.wait(2.0)
    return None


def run(settings: ConsumerSettings) -> int:
    """Consume until SIGTERM or SIGINT; the process's exit status."""
    stop = threading.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: stop.set())
    settings.postgres_arguments()
    health = Health("consumer", settings.name, settings.version)
    health.set_reason("group", "waiting for the group to hand out partitions")
    metrics = Metrics(health)
    try:
        healths.serve(healths.make_app(health), *settings.listen)
    except OSError as error:
        log.error("%s:%d cannot be listened on: %s", *settings.listen, error.strerror)
        return 1
    client = connect(settings, health, stop)
    if client is None:
        return 0
    health.clear("kafka")
    health.clear("start")
    threading.Thread(target=retain_forever, args=(settings, health, stop), name="retention", daemon=True).start()
    store = PostgresStore(settings.postgres_arguments, settings.retention_days)
    try:
        Consumer(settings, store, client, describer(settings), health, metrics).run(stop)
    finally:
        store.close()
        # Static membership: who comes back under the same name gets its partitions without a rebalance.
        client.close(autocommit=False, timeout_ms=3000)
    return 0
