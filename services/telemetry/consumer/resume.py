"""May a partition be read on from where the store says? Pure judgment, and the remedies that it names."""

from __future__ import annotations

import uuid

from telemetry.consumer.batch import Place


def start_reason(topic: str, partition: int, topic_id: uuid.UUID, places: list[Place], log_start: int, log_end: int) -> str | None:
    """Why a partition must not be read from where the store says; None if it may."""
    name = f"partition {partition} of {topic}"
    here = next((place for place in places if place.topic_id == topic_id), None)
    if here is None and places:
        return (
            f"{name} is not the one that was read: the topic was made again (id {places[0].topic_id} before, {topic_id} now). "
            f"{way_back(partition)}"
        )
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
        f"and written anew. {way_back(partition)}"
    )


def way_back(partition: int) -> str:
    """The remedy for a log that is not what was read: never forward."""
    return f"To read it again from its start, where repeats are harmless: {read_again(partition)}"


def read_again(partition: int) -> str:
    """The command for that."""
    return f"ansible-playbook accept_loss.yml -e read_again={partition}"


def way_on(partition: int, first: int, last: int) -> str:
    """The only way past offsets that cannot be read any more."""
    return f"ansible-playbook accept_loss.yml -e accept_loss={partition}:{first}-{last}"
