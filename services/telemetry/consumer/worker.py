"""One worker: Kafka to the store. The consumer group assigns partitions and does nothing else; offsets live with the rows.

One loop: poll, decode, write. Whatever goes wrong ends the same way: what was fetched is dropped, the caches are emptied, the
stored offsets are read again, and every partition is checked and sought again. A fault of one partition (its log is not what it
was, its leader does not answer, its records cannot be parsed or written) stops that one alone: it says why, and is looked at
again from time to time.

A Kafka client that has raised an error is not used again: after a record that it could not parse, its next poll never returns
(kafka-python 3.0.12). Exceptions are calls that name their partitions and leave nothing behind: offsets that were not answered in
time, and a position that the log does not have.
"""

from __future__ import annotations

import contextlib
import logging
import math
import random
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from kafka import ConsumerRebalanceListener, TopicPartition
from kafka.errors import (
    CorruptRecordError,
    KafkaConnectionError,
    KafkaError,
    KafkaTimeoutError,
    LogTruncationError,
    OffsetOutOfRangeError,
    UnsupportedCodecError,
)

from telemetry import topic as topics
from telemetry.clients import client_errors, error_text
from telemetry.consumer import resume
from telemetry.consumer.batch import Fingerprint, Place, Run, TopicRecord, Written, crc
from telemetry.consumer.resume import Stored
from telemetry.consumer.store import ClockApart, Failed, Fenced, PartitionStop, Store, StoreError, TimedOut
from telemetry.health import Health, Reason
from telemetry.metrics import ConsumerMetrics
from telemetry.settings import ConsumerSettings, SettingsError
from telemetry.wire import Unreadable

log = logging.getLogger(__name__)

STOPPED_INTERVAL = 30.0
"""Seconds after which a stopped partition is looked at again: its remedy needs no restart."""
UNPARSABLE_INTERVAL = 120.0
"""Seconds after which a record that could not be parsed is read again, unless the store is past it: that costs a client."""
LEADER_INTERVAL, LEADER_INTERVAL_MAX = 2.0, 16.0
"""The same for a partition without a leader; doubled each time that its leader does not answer, which the others have to await."""
OFFSETS_TIMEOUT = 3.0
"""Seconds that one leader may take to say where its logs begin, and where they end."""
SILENT_ASKS = 5
"""Times that no leader of any partition answers, after which the Kafka client itself is given up; about 45 s."""
CLOCK_INTERVAL = 10.0
"""Seconds after which the database's clock is compared again, if nothing was written meanwhile."""
ATTEMPTS = 3
"""Writes of one partition alone that may fail, while others succeed, before it stops."""
TURN = 2.0
"""Seconds that one partition is read alone before the next one's turn."""
WAITING = "waiting for the group to assign partitions"
BACKOFF_MAX = 5.0
WELL = 10.0
"""Seconds without a failure after which the next one is the first again."""
IDLE_POLL, JOIN_POLL = 250, 500
"""Milliseconds of one poll while the buffer is empty, and while the group has to assign partitions.

The client loses a join that ends between two polls, and begins another, for which all members join again (kafka-python 3.0.12,
AbstractCoordinator.join_group_async): two workers that rested between short polls took up to 37 s to come together.
"""
JOIN_TOLD = 5.0
"""Seconds that the group may take to assign partitions before /readyz says so; all members' joining again takes about one."""
FULL_POLL = 100
"""Kafka records of one poll; after a poll that brings as many, there are more to read."""
UNPARSABLE = (CorruptRecordError, UnsupportedCodecError)


class TopicUnknown(KafkaError):  # type: ignore[misc]  # kafka-python has no types
    """The topic could not be described. The client that asks for it is not the one that is in the group."""


@dataclass
class AssignedPartition:
    """A partition that the group has assigned to this worker."""

    stored: int = 0
    """The offset that the store has: where the next run starts."""
    next: int = 0
    """The client's position: the first offset that is not in the buffer."""
    log_end: int = 0
    """Where the log ended at the last check."""
    before: Fingerprint | None = None
    """What record next-1 must look like; it is read first where it is still held."""
    checked: bool = False
    due: float = 0.0
    """When it may be checked again."""
    failed_writes: int = 0
    """Writes of this partition alone that failed in a row."""
    unanswered: int = 0
    """Times in a row that its leader did not answer."""


class Stop(NamedTuple):
    """Why a partition is not read on."""

    reason: str
    until: float
    """When it is looked at again."""
    past: int
    """Where the reason ends: it is gone when everything below this offset is stored."""
    stored: int
    """What was stored then; an operator who leads back makes it less."""
    alone_at: float = math.inf
    """When the partition is read again although nothing has changed, and alone: the client would not say that it is this one."""


@dataclass
class Buffer:
    """Kafka records that were read and are not written yet, by partition."""

    records: dict[int, list[TopicRecord]] = field(default_factory=dict)
    rows: int = 0
    """About how many rows they hold."""

    @property
    def count(self) -> int:
        """Kafka records."""
        return sum(map(len, self.records.values()))


class BatchLimit:
    """How many Kafka records a batch may have: no limit, until a batch takes too long; then half as many, down to one.

    It is doubled again after every few batches that succeed.
    """

    GROW_AFTER = 3

    def __init__(self) -> None:
        self.records = math.inf
        self._successes = 0

    def halve(self, count: int) -> None:
        """A batch of so many took too long."""
        self.records, self._successes = max(1, min(self.records, count) // 2), 0

    def grow(self, most: int) -> None:
        """A batch succeeded. A limit above `most` is lifted."""
        self._successes += 1
        if self.records < math.inf and self._successes % self.GROW_AFTER == 0:
            self.records *= 2
            if self.records > most:
                self.records = math.inf


class Suspects:
    """Partitions one of which holds a record that the client cannot parse, and does not name: they are read one at a time.

    The others have a turn too, together, so that nobody waits for a suspect with a long way to its end.
    """

    def __init__(self) -> None:
        self.numbers: set[int] = set()
        self._turn: set[int] = set()
        self._until = 0.0

    def turn(self, assigned: set[int], now: float) -> set[int]:
        """Which of the assigned partitions may be read now: all, when none is suspected."""
        if not self.numbers & assigned:
            self._turn = assigned
            return assigned
        turns = [{each} for each in sorted(self.numbers & assigned)]
        if others := assigned - self.numbers:
            turns.append(others)
        if self._turn not in turns or now >= self._until:
            following = turns.index(self._turn) + 1 if self._turn in turns else 0
            self._turn, self._until = turns[following % len(turns)], now + TURN
        return self._turn


class Worker(ConsumerRebalanceListener):  # type: ignore[misc]  # kafka-python has no types
    """One worker. Only what has no underscore in its name may be used by other threads than the one that calls step()."""

    def __init__(  # noqa: PLR0913  # clocks, sleep and randomness are arguments
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
        self._on_progress: Callable[[], object] = lambda: None
        self._client: Any = None
        self._topic_id = uuid.UUID(int=0)
        self._partitions: dict[int, AssignedPartition] = {}
        self._stops: dict[int, Stop] = {}
        self._suspects = Suspects()
        self._readable: set[int] = set()
        self._buffer, self._limit = Buffer(), BatchLimit()
        self._offsets_without_records: set[tuple[int, int, int]] = set()
        self._joined = self._separately = False
        self._store_in_doubt = True
        self._revoked_at = self._joined_at = self._clock()
        self._clock_due = self._failed_at = -math.inf
        self._committed_at, self._committed_rows = -math.inf, 0
        self._failures = 0
        self.live_topic_id: uuid.UUID | None = None
        """The topic's id as the watching thread heard it last."""
        self.store_call_since: float | None = None
        """When the call of the store began that is under way."""
        self.stored: dict[int, Stored] = {}
        """What of each assigned partition is stored."""
        health.set_reason(Reason.GROUP, WAITING)

    # What the group says; runs inside poll(). Only notes are taken here, for the client swallows what a listener raises.

    def on_partitions_assigned(self, assigned: Iterable[TopicPartition]) -> None:
        """Take partitions; none is read before it was checked."""
        for each in assigned:
            self._partitions[each.partition] = AssignedPartition()
            stop = self._stops.get(each.partition)
            if stop is not None and stop.alone_at < math.inf:
                # Whoever had it may only be away to replace its client, because of that very record.
                until = self._clock() + STOPPED_INTERVAL
                self._stops[each.partition] = stop._replace(until=until, alone_at=max(stop.alone_at, until))
            # A position of our own keeps the client from asking the group for one.
            self._client.seek(each, 0)
        self._readable = self._suspects.turn(set(self._partitions), self._clock())
        self._reset()
        self._joined, self._joined_at = True, self._clock()
        log.info("assigned: partitions %s", sorted(self._partitions))

    def on_partitions_revoked(self, revoked: Iterable[TopicPartition]) -> None:
        """Give partitions back; what the buffer has of them is read again by whoever gets them."""
        for each in revoked:
            self._release(each.partition)
        self._reset()
        self._joined, self._revoked_at = False, self._clock()

    def on_partitions_lost(self, lost: Iterable[TopicPartition]) -> None:
        """As revoked: the compare-and-set keeps what was written meanwhile."""
        self.on_partitions_revoked(lost)

    def _release(self, number: int) -> None:
        """A partition is not ours. Why it stopped is kept until it is known who has it: it may well come back."""
        if self._partitions.pop(number, None) is not None:
            self.stored.pop(number, None)
            self._health.clear(Reason.LEADER.of(number))
            with contextlib.suppress(KeyError):
                self._metrics.lag.remove(str(number))

    def _reset(self) -> None:
        """Drop the buffer and all caches, and check every partition again."""
        self._buffer = Buffer()
        self._store.forget()
        for number, state in self._partitions.items():
            state.checked = False
            self._client.pause(self._partition(number))

    def _partition(self, number: int) -> TopicPartition:
        return TopicPartition(self._settings.topic, number)

    # The loop

    def run(self, stop: threading.Event, on_progress: Callable[[], object] = lambda: None) -> None:
        """Loop until asked to stop, and say so at each step and each call of the store.

        What the buffer has then is dropped: it is read again by the next worker.
        """
        self._on_progress = on_progress
        try:
            while not stop.is_set():
                self.step()
                on_progress()
        finally:
            self._close()

    def step(self) -> None:
        """Poll once, and write when it is time."""
        try:
            self._round()
        except Fenced as error:
            self._metrics.fenced.inc()
            log.info("another worker has moved on: %s", error)
            self._wait(0.1)
        except PartitionStop as stop:
            self._stop(stop.partition, str(stop))
            self._reset()
        except ClockApart as error:
            # Others, whose clocks are right, have the partitions meanwhile.
            self._health.set_reason(Reason.CLOCK, str(error))
            self._clock_due = -math.inf
            self._leave()
            self._wait(BACKOFF_MAX)
        except (StoreError, SettingsError) as error:
            self.doubt_store(str(error))
            self._wait(BACKOFF_MAX)
        except (OffsetOutOfRangeError, LogTruncationError) as error:
            # The check says which partition's log is not what was read.
            log.info("a log does not have the position that was read to: %s", error_text(error))
            self._wait(BACKOFF_MAX)
        except UNPARSABLE as error:
            self._note_unparsable(error)
            self._close()
            self._wait(BACKOFF_MAX)
        except TopicUnknown as error:
            # The first time, one broker that is silent may have been asked by chance.
            if self._failing():
                self._health.set_reason(Reason.CLIENT, f"Kafka: {error_text(error)}")
            self._wait(BACKOFF_MAX)
        except (KafkaError, OSError) as error:
            self._health.set_reason(Reason.CLIENT, f"Kafka: {error_text(error)}")
            self._leave()
            self._wait(BACKOFF_MAX)

    def _round(self) -> None:
        self._check_clock()
        if self._client is None:
            self._open()
        if self.live_topic_id != self._topic_id:
            raise KafkaError(f"the topic {self._settings.topic} was made again")
        self._look_at_unparsable()
        self._take_turns()
        self._check()
        self._poll()
        if self._due():
            self._write()
        elif self._store_in_doubt and not self._buffer.records:
            self._probe()
        self._health.clear(Reason.CLIENT)
        self._update_readiness()

    def _update_readiness(self) -> None:
        """Ready when the group has spoken, all partitions that are not stopped were checked, and the store has committed."""
        now = self._clock()
        if not self._joined and now - self._revoked_at > JOIN_TOLD:
            self._health.set_reason(Reason.GROUP, WAITING)
        waiting = any(self._may_be_checked(number, state, now) for number, state in self._partitions.items())
        # The first assignment is empty, and soon followed by another (kafka-python 3.0.12); later it means that others have all.
        settled = self._joined and now - self._joined_at > JOIN_TOLD
        if self._joined and (self._partitions or settled) and not waiting and not self._store_in_doubt:
            self._health.clear(Reason.GROUP)
        if settled:
            self._suspects.numbers &= self._partitions.keys()
            self._tell_of_own_stops()

    def _failing(self) -> bool:
        """Whether the last failure was only just now."""
        return self._clock() - self._failed_at < WELL

    def _wait(self, longest: float) -> None:
        """Drop everything, and wait a little longer each time; with jitter, for others wait for the same."""
        self._reset()
        now = self._clock()
        self._failures = self._failures + 1 if self._failing() else 1
        wait = min(longest, 0.1 * 2 ** min(self._failures, 10)) * (0.5 + self._rng.random() / 2)
        self._failed_at = now + wait
        self._sleep(wait)

    def _open(self) -> None:
        self._revoked_at = self._clock()
        # A client that joined the group before there was a topic would not notice when one comes.
        self._ask_for_topic()
        with client_errors():
            self._client = self._connect()
            self._client.subscribe([self._settings.topic], listener=self)

    def _ask_for_topic(self) -> topics.Topic:
        try:
            with client_errors():
                topic = self._describe()
        except (KafkaError, OSError) as error:
            raise TopicUnknown(error_text(error)) from error
        if topic is None:
            raise KafkaError(topics.missing(self._settings.topic))
        self._topic_id = self.live_topic_id = topic.topic_id
        return topic

    def _leave(self) -> None:
        """Leave the group, and say so at once."""
        self._health.set_reason(Reason.GROUP, WAITING)
        self._close()

    def _close(self) -> None:
        """End the Kafka client; it leaves the group, so that others have its partitions at once."""
        client, self._client = self._client, None
        self._joined, self._revoked_at = False, self._clock()
        for number in list(self._partitions):
            self._release(number)
        if client is not None:
            try:
                client.close(autocommit=False, timeout_ms=2000)
            except (KafkaError, OSError, RuntimeError) as error:
                log.info("closing the Kafka client: %s", error_text(error))

    # The store's state

    def doubt_store(self, text: str) -> None:
        """Not ready, until the store commits a batch or a probe."""
        self._store_in_doubt = True
        self._health.set_reason(Reason.POSTGRES, text)

    def _trust_store(self) -> None:
        """The store has just committed."""
        self._store_in_doubt = False
        self._health.clear(Reason.POSTGRES)

    def _probe(self) -> None:
        with self._store_call():
            self._store.probe()
        self._trust_store()

    def _check_clock(self) -> None:
        """Compare the clocks before the group is joined, and from time to time while nothing is written."""
        if self._clock() < self._clock_due:
            return
        with self._store_call():
            self._store.check_clock()
        self._clock_due = self._clock() + CLOCK_INTERVAL
        self._health.clear(Reason.CLOCK)

    @contextlib.contextmanager
    def _store_call(self) -> Iterator[None]:
        """Around every call of the store, so that one that hangs is seen."""
        self._on_progress()
        self.store_call_since = self._clock()
        try:
            yield
        finally:
            self.store_call_since = None
            self._on_progress()

    # Stopped partitions

    def _stop(self, number: int, reason: str, past: int = 0, alone_after: float = math.inf) -> None:
        """Read no further in a partition for a while; the others go on. The reason stays until it was read past."""
        self._health.set_reason(Reason.STOPPED.of(number), reason)
        now = self._clock()
        stored = self._partitions[number].stored if number in self._partitions else 0
        self._stops[number] = Stop(reason, now + STOPPED_INTERVAL, past, stored, now + alone_after)
        self._suspend(number)

    def _tell_of_own_stops(self) -> None:
        """Reasons are those of assigned partitions. Others may come back, and what cannot be parsed is remembered for then."""
        for number, stop in list(self._stops.items()):
            if number in self._partitions:
                self._health.set_reason(Reason.STOPPED.of(number), stop.reason)
            elif stop.alone_at < math.inf:
                self._health.clear(Reason.STOPPED.of(number))
            else:
                self._end_stop(number)

    def _end_stop(self, number: int) -> None:
        if self._stops.pop(number, None) is not None:
            self._health.clear(Reason.STOPPED.of(number))

    def _stop_unanswered(self, number: int, reason: str, interval: float) -> None:
        """Ask for a partition's offsets again after a while; the others go on."""
        self._health.set_reason(Reason.LEADER.of(number), reason)
        if (state := self._partitions.get(number)) is not None:
            state.due = self._clock() + interval
        self._suspend(number)

    def _suspend(self, number: int) -> None:
        if (state := self._partitions.get(number)) is not None:
            state.checked = False
            self._client.pause(self._partition(number))

    def _note_unparsable(self, error: KafkaError) -> None:
        """Where the error does not name a partition, as one that a broker answers, they are read one at a time."""
        topic = self._settings.topic
        if isinstance(error, Unreadable):
            state = self._partitions.get(error.partition)
            if state is not None and error.last < state.stored:
                text = resume.unreadable_before(topic, error.partition, error.last, error.reason)
                self._stop(error.partition, text, state.stored + 1, UNPARSABLE_INTERVAL)
            else:
                text = resume.unreadable(topic, error.partition, error.first, error.last, error.reason)
                self._stop(error.partition, text, error.last + 1, UNPARSABLE_INTERVAL)
        elif len(self._readable) == 1:
            (number,) = self._readable
            offset = self._partitions[number].next
            self._stop(number, resume.unparsable(topic, number, offset, error_text(error)), offset + 1, UNPARSABLE_INTERVAL)
            self._suspects.numbers.discard(number)
        else:
            self._suspects.numbers |= self._readable
            log.warning("a record cannot be parsed (%s): partitions are read one at a time", error_text(error))

    def _look_at_unparsable(self) -> None:
        """Has an operator accepted the loss of a record that cannot be parsed? Otherwise its partition is seldom read again.

        A poll that ends in the error costs the client, and all members of the group what they have read.
        """
        now = self._clock()
        due = [number for number, stop in self._stops.items() if number in self._partitions and stop.until <= now]
        unparsable = [number for number in due if self._stops[number].alone_at < math.inf and number not in self._suspects.numbers]
        if not unparsable:
            return
        with self._store_call():
            places = self._store.places(self._settings.topic)
        for number in unparsable:
            stop = self._stops[number]
            passed = any(
                place.topic_id != self._topic_id or place.next >= stop.past or place.next < stop.stored
                for place in places.get(number, [])
            )
            if passed or stop.alone_at <= now:
                self._suspects.numbers.add(number)
            else:
                self._stops[number] = stop._replace(until=now + STOPPED_INTERVAL)

    def _take_turns(self) -> None:
        """While partitions are suspected, one is read at a time; one that was read to its end is no longer suspected."""
        if not self._joined:
            return
        now, suspects = self._clock(), self._suspects
        for number, state in self._partitions.items():
            if state.checked and state.before is None and state.next >= state.log_end:
                suspects.numbers.discard(number)
        if self._buffer.records:
            return
        readable = self._suspects.turn(set(self._partitions), now)
        text = f"partitions of {self._settings.topic} are read one at a time: one of them holds a record that cannot be parsed"
        self._health.set_degraded(Reason.STOPPED, text if readable != self._partitions.keys() else None)
        if readable != self._readable:
            self._readable = readable
            self._reset()

    # The check that every start and every assignment makes

    def _may_be_checked(self, number: int, state: AssignedPartition, now: float) -> bool:
        stop = self._stops.get(number)
        return not state.checked and state.due <= now and (stop is None or stop.until <= now) and number in self._readable

    def _check(self) -> None:
        """Compare the logs with what is stored, and seek to where the store says."""
        now = self._clock()
        waiting = [number for number, state in self._partitions.items() if self._may_be_checked(number, state, now)]
        if not waiting and self.stored.keys() >= self._partitions.keys():
            return
        with self._store_call():
            places = self._store.places(self._settings.topic)
        topic = self._ask_for_topic()
        leaders = {each.number: each.leader for each in topic.partitions}
        led: dict[int, list[int]] = {}
        for number in self._partitions:
            self._note_stored(number, places.get(number, []))
        for number in waiting:
            if number >= self._settings.partitions:
                settings = self._settings
                self._stop(number, topics.wrong_partition_count(settings.topic, len(topic.partitions), settings.partitions))
            elif leaders.get(number, -1) < 0:
                text = f"partition {number} of {self._settings.topic} has no leader: start its brokers"
                self._stop_unanswered(number, text, LEADER_INTERVAL)
            else:
                led.setdefault(leaders[number], []).append(number)
        for leader, numbers in sorted(led.items()):
            self._check_led(leader, numbers, places)
        asked = [state for number, state in self._partitions.items() if number not in self._stops]
        if asked and all(state.unanswered >= SILENT_ASKS for state in asked):
            raise KafkaError("no leader of any partition answers")

    def _note_stored(self, number: int, places: list[Place]) -> None:
        here = resume.place_in(places, self._topic_id)
        self.stored[number] = Stored(here.next, here.before.timestamp) if here else Stored(0, None)

    def _check_led(self, leader: int, numbers: list[int], places: dict[int, list[Place]]) -> None:
        """Check the partitions of one leader.

        One call for several leaders would fail as a whole when one of them does not answer, and only after its whole timeout
        (kafka-python 3.0.12, Fetcher._send_list_offsets_requests).
        """
        partitions = [self._partition(number) for number in numbers]
        timeout = int(OFFSETS_TIMEOUT * 1000)
        try:
            with client_errors():
                starts = self._client.beginning_offsets(partitions, timeout_ms=timeout)
                ends = self._client.end_offsets(partitions, timeout_ms=timeout)
        except (KafkaTimeoutError, KafkaConnectionError) as error:
            for number in numbers:
                if (state := self._partitions.get(number)) is not None:
                    interval = min(LEADER_INTERVAL_MAX, LEADER_INTERVAL * 2**state.unanswered)
                    state.unanswered += 1
                    text = resume.unanswered(self._settings.topic, number, leader, error_text(error))
                    self._stop_unanswered(number, text, interval)
            return
        for number, partition in zip(numbers, partitions, strict=True):
            # A rebalance may have taken it meanwhile
            if number in self._partitions:
                self._health.clear(Reason.LEADER.of(number))
                self._partitions[number].unanswered = 0
                self._seek(number, places.get(number, []), starts[partition], ends[partition])

    def _seek(self, number: int, places: list[Place], log_start: int, log_end: int) -> None:
        """Go to where the store says, if the log is what was read."""
        reason = resume.start_reason(self._settings.topic, number, self._topic_id, places, log_start, log_end)
        if reason is not None:
            self._stop(number, reason)
            return
        here = resume.place_in(places, self._topic_id)
        state, partition = self._partitions[number], self._partition(number)
        state.stored = state.next = here.next if here else 0
        state.before = here.before if here and here.before.crc is not None and log_start < here.next else None
        state.log_end, state.checked = log_end, True
        self._metrics.lag.labels(str(number)).set(max(0, log_end - state.stored))
        self._client.seek(partition, state.next - 1 if state.before else state.next)
        self._client.resume(partition)

    # Reading

    def _poll(self) -> None:
        """Move what Kafka has into the buffer."""
        patience = IDLE_POLL if self._joined else JOIN_POLL
        if self._buffer.records:
            patience = min(patience, int(1000 * max(0.0, self._company_wait())))
        most = int(max(1, min(FULL_POLL, self._limit.records - self._buffer.count)))
        try:
            with client_errors():
                polled = self._client.poll(timeout_ms=patience, max_records=most)
        except UNPARSABLE:
            self._write_the_rest()
            raise
        for number, state in list(self._partitions.items()):
            if state.checked:
                partition = self._partition(number)
                with client_errors():
                    # With a timeout it would wait for the leaders of all partitions, where they have changed.
                    position = self._client.position(partition, timeout_ms=0)
                self._fill_buffer(number, state, polled.get(partition, []), state.next if position is None else position)

    def _write_the_rest(self) -> None:
        """Write what was read before a record that cannot be parsed, or it would be read again and again.

        If that fails, its error goes up instead of the client's, and the client, which never answers again, has to go here.
        """
        if not self._buffer.records:
            return
        try:
            self._write()
        except Exception:
            self._close()
            raise

    def _fill_buffer(self, number: int, state: AssignedPartition, messages: list[Any], position: int) -> None:
        """Take one partition's records, which end before the client's position."""
        topic = self._settings.topic
        if state.before is not None:
            if not messages:
                return
            first = messages.pop(0)
            if first.offset != state.next - 1 or Fingerprint(first.timestamp, crc(first.key, first.value)) != state.before:
                raise PartitionStop(number, resume.other_record(topic, number, state.next - 1))
            state.before = None
        expected = state.next
        for index, message in enumerate(messages):
            if not expected <= message.offset < position:
                self._stop(number, resume.wrong_offset(topic, number, message.offset, expected, position), expected + 1)
                messages, position = messages[:index], expected
                break
            step = (number, expected, message.offset)
            if message.offset != expected and step not in self._offsets_without_records:
                # Offsets without records are of transactions; a second reading tells them from a record that was passed over.
                self._offsets_without_records.add(step)
                log.warning(
                    "partition %d of %s: nothing between offsets %d and %d; reading again", number, topic, expected, message.offset
                )
                self._reset()
                return
            expected = message.offset + 1
        state.next = max(expected, position)
        if not messages:
            if state.checked and state.stored >= state.log_end:
                self._end_stop(number)
            return
        self._buffer.records.setdefault(number, []).extend(
            TopicRecord(number, each.offset, each.timestamp, each.key, each.value, tuple(each.headers)) for each in messages
        )
        # An upload's rows are not counted before it is decoded: a record has over 100 bytes.
        self._buffer.rows += sum(1 + len(each.value or b"") // 128 for each in messages)

    # Writing

    def _due(self) -> bool:
        """Write at once when idle; soon after rows were written wait for company, but not for long."""
        buffer = self._buffer
        if not buffer.records:
            return False
        full = buffer.rows >= self._settings.batch_rows or buffer.count >= self._limit.records
        return full or self._company_wait() <= 0

    def _company_wait(self) -> float:
        """Seconds until the buffer is written, full or not."""
        if self._committed_rows <= 1:
            return 0.0
        return self._committed_at + self._settings.batch_wait_ms / 1000 - self._clock()

    def _write(self) -> None:
        """Write the buffer: all in one transaction, or each partition in its own while one of them is in doubt."""
        buffer, self._buffer = self._buffer, Buffer()
        runs = [
            Run(number, self._partitions[number].stored, self._partitions[number].next, tuple(records))
            for number, records in sorted(buffer.records.items())
        ]
        for batch in [[run] for run in runs] if self._separately else [runs]:
            try:
                self._commit(batch)
            except (TimedOut, Failed) as error:
                self._refused(batch, error)
                return
        self._separately = any(state.failed_writes for state in self._partitions.values())

    def _commit(self, batch: list[Run]) -> None:
        begun = self._clock()
        with self._store_call():
            written = self._store.write(self._topic_id, self._settings.topic, batch)
        self._committed_at, self._committed_rows = self._clock(), written.rows
        self._clock_due = self._committed_at + CLOCK_INTERVAL
        self._trust_store()
        self._limit.grow(self._settings.batch_rows)
        for run in batch:
            state = self._partitions[run.partition]
            state.stored, state.failed_writes = run.end, 0
            self.stored[run.partition] = Stored(run.end, run.records[-1].timestamp)
            stop = self._stops.get(run.partition)
            if stop is not None and run.end >= stop.past:
                self._end_stop(run.partition)
        ended = {run.partition: run.end for run in batch}
        self._offsets_without_records = {each for each in self._offsets_without_records if each[2] > ended.get(each[0], -1)}
        self._count(batch, written, begun)

    def _refused(self, batch: list[Run], error: TimedOut | Failed) -> None:
        """A batch was not written, or nobody knows. A smaller one, or that of one partition alone, may tell whose fault it is.

        Raises the error while it may be the database's; PartitionStop when it is the partition's.
        """
        self._separately = True
        if isinstance(error, TimedOut):
            self._limit.halve(sum(len(run.records) for run in batch))
        if len(batch) > 1:
            raise error
        self._probe()
        run, state = batch[0], self._partitions[batch[0].partition]
        if isinstance(error, Failed) or len(run.records) == 1:
            state.failed_writes += 1
        self._reset()
        state.due = self._clock() + min(BACKOFF_MAX, 0.1 * 2**state.failed_writes)
        if state.failed_writes >= ATTEMPTS:
            self._stop(run.partition, resume.unwritable(self._settings.topic, run, str(error)), run.end)

    def _count(self, batch: list[Run], written: Written, begun: float) -> None:
        """Metrics and alarms of one transaction."""
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
        if written.conflicts or written.gaps_undeclared or written.dead_letters or written.guarded or written.clock_faults:
            log.error(
                "alarm: %d conflicts, %d undeclared gaps, %d dead letters, %d guarded rows, %d append times not believed "
                "in partitions %s",
                written.conflicts,
                written.gaps_undeclared,
                written.dead_letters,
                written.guarded,
                written.clock_faults,
                [run.partition for run in batch],
            )
