"""May a partition be read on from where the store says? Pure judgment, and the remedies that it names."""

from __future__ import annotations

import uuid
from collections.abc import Iterable
from typing import NamedTuple

from telemetry.consumer.batch import Place, Run

ACCEPT = "Only accepting its loss leads on: ansible-playbook accept_loss.yml says which offsets it takes with it"


class Stored(NamedTuple):
    """What of a partition is stored: offsets below next; timestamp is the append time of the last record, where it is known."""

    next: int
    timestamp: int | None


def oldest_unread(stored: Stored, first: tuple[int, int] | None) -> int | None:
    """When the oldest unread record was appended, in ms since 1970; None where that is not known.

    `first` is offset and append time of the first record that was appended after the last stored one, if there is any. Records
    appended in the same millisecond, as those of one request are, hide behind that.
    """
    if first is not None and first[0] == stored.next:
        return first[1]
    return stored.timestamp


def place_in(places: Iterable[Place], topic_id: uuid.UUID) -> Place | None:
    """The place in the topic of that id; None if nothing of it is stored. Others are of topics that had the same name."""
    return next((place for place in places if place.topic_id == topic_id), None)


def start_reason(topic: str, partition: int, topic_id: uuid.UUID, places: list[Place], log_start: int, log_end: int) -> str | None:
    """Why a partition must not be read from where the store says; None if it may."""
    name = f"partition {partition} of {topic}"
    here = place_in(places, topic_id)
    # Also beside a place of ours: a consumer that was paused meanwhile may write what it had read of the topic before
    if before := next((place.topic_id for place in places if place.topic_id != topic_id), None):
        ids = f"id {before} before, {topic_id} now"
        return f"{name} is not the one that was read: the topic was made again ({ids}). {way_back(partition)}"
    following = here.next if here else 0
    if log_start > following:
        return (
            f"{name} begins at offset {log_start}, but {following} is next: offsets {following} to {log_start - 1} were deleted "
            f"before they were stored. Only accepting that loss leads on: {way_on(partition, following, log_start - 1)}"
        )
    if following > log_end:
        cut = f"{name} ends at offset {log_end}, but {following} is next: the log was cut short."
        return f"{cut} {way_back(partition)}"
    return None


def other_record(topic: str, partition: int, offset: int) -> str:
    """Why a partition must not be read on after a record that is not the one that was stored."""
    return (
        f"partition {partition} of {topic}: the record at offset {offset} is not the one that was stored, the log was cut short "
        f"and written again. {way_back(partition)}"
    )


def unanswered(topic: str, partition: int, leader: int, error: str) -> str:
    """Why a partition is not read whose leader does not say what its log holds."""
    return (
        f"partition {partition} of {topic}: its leader, broker {leader}, does not answer ({error}). "
        "See whether it runs, and whether this host reaches it"
    )


def unreadable(topic: str, partition: int, first: int, last: int, reason: str) -> str:
    """Why a partition is not read on at a batch that is not what was written."""
    return (
        f"partition {partition} of {topic}: offsets {first} to {last} cannot be read: {reason}. "
        f"Another replica may have it whole: stop the broker that leads the partition. Otherwise: {ACCEPT}"
    )


def unreadable_before(topic: str, partition: int, offset: int, reason: str) -> str:
    """Why a partition is not read on after a record that cannot be compared with the one that was stored."""
    return (
        f"partition {partition} of {topic}: the record at offset {offset}, the last one that was stored, cannot be read: {reason}. "
        f"So it is not known whether the log is still the one that was stored. {way_back(partition)}"
    )


def unparsable(topic: str, partition: int, offset: int, error: str) -> str:
    """Why a partition is not read on at bytes that the client cannot parse; offset is the first that was not read."""
    return f"partition {partition} of {topic}: a record at offset {offset} or soon after cannot be parsed ({error}). {ACCEPT}"


def wrong_offset(topic: str, partition: int, offset: int, expected: int, position: int) -> str:
    """Why a partition is not read on at a record whose offset is not between the last one and the client's position."""
    return (
        f"partition {partition} of {topic}: the record at offset {expected} is read as one at offset {offset}, where the next "
        f"to be read is {position}: its bytes are misunderstood. {ACCEPT}"
    )


def unwritable(topic: str, run: Run, error: str) -> str:
    """Why a partition is not read on whose records cannot be written, while others can."""
    where = f"offset {run.start}" if len(run.records) == 1 else f"offsets {run.start} to {run.end - 1}"
    return f"partition {run.partition} of {topic}: {where} cannot be written, while others can: {error}"


def way_back(partition: int) -> str:
    """The remedy for a log that is not what was read: never forward."""
    return f"To read it again from its start, where repeats are harmless: {read_again(partition)}"


def read_again(partition: int) -> str:
    """The command for that."""
    return f"ansible-playbook accept_loss.yml -e read_again={partition}"


def way_on(partition: int, first: int, last: int) -> str:
    """The only way past offsets that cannot be read any more."""
    return f"ansible-playbook accept_loss.yml -e accept_loss={partition}:{first}-{last}"
