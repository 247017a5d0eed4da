"""One worker: Kafka to the store. The consumer group hands out partitions and does nothing else; offsets live with the rows.

One loop: poll, decode, write. Whatever goes wrong ends the same way: what was fetched is dropped, the caches are emptied, the
stored offsets are read again, and every partition is checked and sought again. A partition whose topic is not what it was
stops, says why, and is looked at again from time to time.

A Kafka client that has raised an error is not used again: after a record with a wrong checksum its next poll never returns
(kafka-python 3.0.12).
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import re
import threading
import time
import traceback
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.errors import CorruptRecordError, KafkaError

from telemetry import topic as topics
from telemetry.clients import REQUEST_TIMEOUT, client_errors, error_text
from telemetry.consumer.batch import Fingerprint, Place, Run, TopicRecord, Written, crc
from telemetry.consumer.resume import other_record, start_reason
from telemetry.consumer.store import Failed, Fenced, PartitionStop, Store, StoreError
from telemetry.health import Health, Reason
from telemetry.metrics import ConsumerMetrics
from telemetry.settings import ConsumerSettings, SettingsError

log = logging.getLogger(__name__)

STOPPED_INTERVAL = 30.0
"""Seconds after which a stopped partition is looked at again: its remedy needs no restart."""
LEADER_INTERVAL = 2.0
"""The same for a partition without a leader."""
ATTEMPTS = 3
"""Writes of one partition alone that may fail, while others succeed, before it stops."""
WAITING = "waiting for the group to hand out partitions"
BACKOFF_MAX = 5.0
IDLE_POLL, JOIN_POLL = 250, 500
"""Milliseconds of one poll while nothing is in hand, and while the group has to hand out partitions.

The client loses a join that ends between two polls, and begins another, for which all members join again (kafka-python 3.0.12,
AbstractCoordinator.join_group_async): two workers that rested between short polls took up to 37 s to come together.
"""
JOIN_TOLD = 5.0
"""Seconds that the group may take to hand out partitions before /readyz says so; all members' joining again takes about one."""
FULL_POLL = 100
"""Kafka records of one poll; a poll that brings as many has more behind it."""


@dataclass
class Assigned:
    """A partition of ours."""

    stored: int = 0
    """The offset that the store has: where the next run starts."""
    next: int = 0
    """The client's position: the first offset that is not in hand."""
    log_start: int = 0
    log_end: int = 0
    before: Fingerprint | None = None
    """What record next-1 must look like; it is read first where it is still held."""
    checked: bool = False
    due: float = 0.0
    """When it may be checked again."""
    failures: int = 0
    """Writes of this partition alone that failed in a row."""


@dataclass
class Hand:
    """What was read and is not written yet."""

    records: dict[int, list[TopicRecord]] = field(default_factory=dict)
    size: int = 0


class Worker(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """One worker. Everything but `heard` and `writing_since` belongs to the thread that calls step()."""

    def __init__(
        self,
        settings: ConsumerSettings,
        store: Store,
        connect: Callable[[], Any],
        describe: Callable[[], topics.Topic | None],
        health: Health,
        metrics: ConsumerMetrics,
        *,
        clock: Callable[[], float] = time.monotonic,
        wall: Callable[[], float] = time.time,
        sleep: Callable[[float], object] = time.sleep,
        rng: random.Random | None = None,
    ) -> None:
        self._settings, self._store, self._connect, self._describe = settings, store, connect, describe
        self._health, self._metrics = health, metrics
        self._clock, self._wall, self._sleep, self._rng = clock, wall, sleep, rng or random.Random()
        self._client: Any = None
        self._topic_id = uuid.UUID(int=0)
        self._mine: dict[int, Assigned] = {}
        self._hand = Hand()
        self._holes: set[tuple[int, int, int]] = set()
        self._unreadable: dict[int, tuple[float, str]] = {}
        self._joined = self._alone = False
        self._parted_at = 0.0
        self._committed_at, self._committed_rows = -math.inf, 0
        self._failures = 0
        self.heard: uuid.UUID | None = None
        """The topic's id as the watching thread heard it last."""
        self.writing_since: float | None = None
        """When the call of the store began that is under way."""

    # What the group says; runs inside poll(). Only notes are taken here, for the client swallows what a listener raises.

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Take partitions; none is read before it was checked."""
        for each in assigned:
            self._mine[each.partition] = Assigned()
            # A position of our own keeps the client from asking the group for one.
            self._client.seek(each, 0)
        self._drop()
        self._joined = True
        log.info("assigned: partitions %s", sorted(self._mine))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Give partitions back; what is in hand of them is read again by whoever gets them."""
        for each in revoked:
            self._forget(each.partition)
        self._drop()
        self._joined, self._parted_at = False, self._clock()

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """As revoked: the compare-and-set keeps what was written meanwhile."""
        self.on_partitions_revoked(lost)

    def _forget(self, number: int) -> None:
        if self._mine.pop(number, None) is not None:
            self._health.clear(Reason.STOPPED.of(number))
            with contextlib.suppress(KeyError):
                self._metrics.lag.remove(str(number))

    def _drop(self) -> None:
        """Forget what is in hand and what is cached, and check every partition again."""
        self._hand = Hand()
        self._store.forget()
        for number, mine in self._mine.items():
            mine.checked = False
            self._client.pause(self._partition(number))

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.topic, number)

    # The loop

    def run(self, stop: threading.Event, on_round: Callable[[], object] = lambda: None) -> None:
        """Loop until asked to stop, and say so each time round. What is in hand then is dropped: it is read again by the next."""
        try:
            while not stop.is_set():
                self.step()
                on_round()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.critical("a fault of this program: %s: %s (%s:%s)", type(error).__name__, error, where.filename, where.lineno)
        finally:
            self._close()

    def step(self) -> None:
        """Poll once, and write when it is time."""
        try:
            if self._client is None:
                self._open()
            if self.heard != self._topic_id:
                raise KafkaError(f"the topic {self._settings.topic} was made again")
            self._check()
            self._poll()
            if self._due():
                self._write()
            self._failures = 0
            self._health.clear(Reason.CLIENT)
            self._judge()
        except Fenced as error:
            self._metrics.fenced.inc()
            log.info("another worker has moved on: %s", error)
            self._wait(0.1)
        except PartitionStop as stop:
            self._stop(stop.partition, str(stop))
            self._drop()
        except (StoreError, SettingsError) as error:
            self._health.set_reason(Reason.POSTGRES, str(error))
            self._wait(BACKOFF_MAX)
        except (KafkaError, OSError) as error:
            self._health.set_reason(Reason.CLIENT, f"Kafka: {error_text(error)}")
            if isinstance(error, CorruptRecordError):
                self._note_unreadable(error)
            self._close()
            self._wait(BACKOFF_MAX)

    def _judge(self) -> None:
        """Ready when the group has spoken, and all partitions that are not stopped were checked."""
        now = self._clock()
        if not self._joined and now - self._parted_at > JOIN_TOLD:
            self._health.set_reason(Reason.GROUP, WAITING)
        if self._joined and all(mine.checked or mine.due > now for mine in self._mine.values()):
            self._health.clear(Reason.GROUP)
            self._health.clear(Reason.POSTGRES)

    def _wait(self, longest: float) -> None:
        """Drop everything, and wait a little longer each time; with jitter, for others wait for the same."""
        self._drop()
        self._failures += 1
        self._sleep(min(longest, 0.1 * 2 ** min(self._failures, 10)) * (0.5 + self._rng.random() / 2))

    def _open(self) -> None:
        self._health.set_reason(Reason.GROUP, WAITING)
        self._joined = False
        # A client that joined the group before there was a topic would not notice when one comes.
        self._ask_for_topic()
        with client_errors():
            self._client = self._connect()
            self._client.subscribe([self._settings.topic], listener=self)

    def _ask_for_topic(self) -> topics.Topic:
        with client_errors():
            topic = self._describe()
        if topic is None:
            raise KafkaError(f"topic {self._settings.topic} is not there: run site.yml")
        self._topic_id = self.heard = topic.topic_id
        return topic

    def _close(self) -> None:
        """End the Kafka client; it leaves the group, so that others have its partitions at once."""
        client, self._client = self._client, None
        for number in list(self._mine):
            self._forget(number)
        if client is not None:
            try:
                client.close(autocommit=False, timeout_ms=2000)
            except (KafkaError, OSError, RuntimeError) as error:
                log.info("closing the Kafka client: %s", error_text(error))

    def _note_unreadable(self, error: CorruptRecordError) -> None:
        """The client names the place of a record with a wrong checksum in its message only."""
        found = re.search(r"partition=(\d+)\) at offset (\d+)", str(error))
        if found:
            reason = (
                f"partition {found[1]} of {self._settings.topic}: the record at offset {found[2]} has a wrong checksum. "
                "Another replica may have it whole: stop the broker that leads the partition. "
                "Otherwise only accepting its loss leads on: ansible-playbook accept_loss.yml says which offsets it takes with it"
            )
            self._unreadable[int(found[1])] = (self._clock() + STOPPED_INTERVAL, reason)

    def _check(self) -> None:
        """The check that every start and every assignment makes, and the seek to where the store says."""
        now = self._clock()
        for number, (until, reason) in list(self._unreadable.items()):
            mine = self._mine.get(number)
            if until <= now:
                del self._unreadable[number]
            elif mine is not None and mine.due < until:
                self._stop(number, reason, until)
        waiting = [number for number, mine in self._mine.items() if not mine.checked and mine.due <= now]
        if not waiting:
            return
        with self._asking():
            places = self._store.places(self._settings.topic)
        topic = self._ask_for_topic()
        led = {each.number for each in topic.partitions if each.leader >= 0 and each.number < self._settings.partitions}
        for number in waiting:
            if number >= self._settings.partitions:
                self._stop(number, topics.added(self._settings.topic, len(topic.partitions), self._settings.partitions))
                continue
            if number not in led:
                self._stop(
                    number, f"partition {number} of {self._settings.topic} has no leader: start its brokers", now + LEADER_INTERVAL
                )
        ready = [number for number in waiting if number in led]
        partitions = [self._partition(number) for number in ready]
        timeout = int(REQUEST_TIMEOUT * 1000)
        with client_errors():
            starts = self._client.beginning_offsets(partitions, timeout_ms=timeout) if ready else {}
            ends = self._client.end_offsets(partitions, timeout_ms=timeout) if ready else {}
        for number, partition in zip(ready, partitions, strict=True):
            # A rebalance may have taken it meanwhile
            if number in self._mine:
                self._seek(number, places.get(number, []), starts[partition], ends[partition])

    def _seek(self, number: int, places: list[Place], log_start: int, log_end: int) -> None:
        """Go to where the store says, if the log is what was read."""
        here = next((place for place in places if place.topic_id == self._topic_id), None)
        self._metrics.lag.labels(str(number)).set(max(0, log_end - (here.next if here else log_start)))
        reason = start_reason(self._settings.topic, number, self._topic_id, places, log_start, log_end)
        if reason is not None:
            self._stop(number, reason)
            return
        mine, partition = self._mine[number], self._partition(number)
        mine.stored = mine.next = here.next if here else 0
        mine.before = here.before if here and here.before.crc is not None and log_start < here.next else None
        mine.log_start, mine.log_end, mine.checked = log_start, log_end, True
        self._client.seek(partition, mine.next - 1 if mine.before else mine.next)
        self._client.resume(partition)

    def _stop(self, number: int, reason: str, until: float | None = None) -> None:
        """Read no further in a partition for a while; the others go on."""
        self._health.set_reason(Reason.STOPPED.of(number), reason)
        mine = self._mine.get(number)
        if mine is not None:
            mine.due = self._clock() + STOPPED_INTERVAL if until is None else until
            mine.checked = False
            self._client.pause(self._partition(number))

    def _poll(self) -> None:
        """Take what Kafka has into the hand."""
        patience = IDLE_POLL if self._joined else JOIN_POLL
        if self._hand.records:
            patience = min(patience, int(1000 * max(0.0, self._company_wait())))
        with client_errors():
            found = self._client.poll(timeout_ms=patience, max_records=FULL_POLL)
        for number, mine in list(self._mine.items()):
            if mine.checked:
                partition = self._partition(number)
                with client_errors():
                    position = self._client.position(partition, timeout_ms=1000)
                self._take(number, mine, found.get(partition, []), position or 0)

    def _take(self, number: int, mine: Assigned, found: list[Any], position: int) -> None:
        """Take one partition's records, which end before the client's position."""
        name = f"partition {number} of {self._settings.topic}"
        if mine.before is not None:
            if not found:
                return
            first = found.pop(0)
            if first.offset != mine.next - 1 or Fingerprint(first.timestamp, crc(first.key, first.value)) != mine.before:
                raise PartitionStop(number, other_record(self._settings.topic, number, mine.next - 1))
            mine.before = None
        expected = mine.next
        for record in found:
            if record.offset != expected and (number, expected, record.offset) not in self._holes:
                # Offsets without records are of transactions; a second reading tells them from a record that was passed over.
                self._holes.add((number, expected, record.offset))
                log.warning("%s: nothing between offsets %d and %d; reading again", name, expected, record.offset)
                self._drop()
                return
            expected = record.offset + 1
        mine.next = max(expected, position)
        if found or mine.next >= mine.log_end:
            self._health.clear(Reason.STOPPED.of(number))
        if not found:
            return
        hand = self._hand
        hand.records.setdefault(number, []).extend(
            TopicRecord(number, each.offset, each.timestamp, each.key, each.value, tuple(each.headers)) for each in found
        )
        # An upload's rows are not counted before it is decoded: a record has over 100 bytes.
        hand.size += sum(1 + len(each.value or b"") // 128 for each in found)

    def _due(self) -> bool:
        """Write at once when idle; soon after rows were written wait for company, but not for long."""
        if not self._hand.records:
            return False
        return self._hand.size >= self._settings.batch_rows or self._company_wait() <= 0

    def _company_wait(self) -> float:
        """Seconds until what is in hand is written, full or not."""
        if self._committed_rows <= 1:
            return 0.0
        return self._committed_at + self._settings.batch_wait_ms / 1000 - self._clock()

    def _write(self) -> None:
        """Write what is in hand: all in one transaction, or each partition in its own while one of them is in doubt."""
        hand, self._hand = self._hand, Hand()
        runs = [
            Run(number, self._mine[number].stored, self._mine[number].next, tuple(records))
            for number, records in sorted(hand.records.items())
        ]
        for batch in [[run] for run in runs] if self._alone else [runs]:
            begun = self._clock()
            try:
                with self._asking():
                    written = self._store.write(self._topic_id, self._settings.topic, batch)
            except Failed as error:
                self._alone = True
                if len(batch) > 1:
                    raise
                mine = self._mine[batch[0].partition]
                mine.failures += 1
                if mine.failures < ATTEMPTS:
                    raise
                raise PartitionStop(batch[0].partition, f"partition {batch[0].partition} cannot be written: {error}") from error
            for run in batch:
                mine = self._mine[run.partition]
                mine.stored, mine.failures = run.end, 0
            self._tell(batch, written, begun)
        self._alone = any(mine.failures for mine in self._mine.values())

    @contextlib.contextmanager
    def _asking(self) -> Iterator[None]:
        """Around every call of the store, so that one that hangs is seen."""
        self.writing_since = self._clock()
        try:
            yield
        finally:
            self.writing_since = None
        self._health.clear(Reason.POSTGRES)

    def _tell(self, batch: list[Run], written: Written, begun: float) -> None:
        """Metrics and alarms of one transaction."""
        self._committed_at, self._committed_rows = self._clock(), written.rows
        metrics = self._metrics
        metrics.batch_seconds.observe(self._committed_at - begun)
        wall = self._wall()
        for run in batch:
            for record in run.records:
                metrics.age_seconds.observe(max(0.0, wall - record.timestamp / 1000))
            end = self._client.highwater(self._partition(run.partition))
            metrics.lag.labels(str(run.partition)).set(max(0, (end or 0) - run.end))
        for counter, count in (
            (metrics.rows, written.rows),
            (metrics.repeats, written.repeats),
            (metrics.conflicts, written.conflicts),
            (metrics.clock_faults, written.clock_faults),
            (metrics.dead, written.dead_letters),
            (metrics.guarded, written.guarded),
            (metrics.gaps.labels("undeclared"), written.gaps_undeclared),
            (metrics.gaps.labels("declared"), written.gaps_declared),
        ):
            counter.inc(count)
        if written.conflicts or written.gaps_undeclared or written.dead_letters or written.guarded:
            log.error(
                "alarm: %d conflicts, %d undeclared gaps, %d dead letters, %d guarded rows in partitions %s",
                written.conflicts,
                written.gaps_undeclared,
                written.dead_letters,
                written.guarded,
                [run.partition for run in batch],
            )
