"""Filter that compares the live topic with the settings that are fixed when it is made."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kafka_topic_faults(topic: Mapping[str, Any], name: str, partitions: int | str, factor: int | str) -> list[str]:
    """Why the topic is not the one of the settings, with the remedies.

    topic: as kafka_topics describes it; partitions, factor: of the settings.
    """
    faults = []
    there = len(topic["partitions"])
    if there != int(partitions):
        faults.append(
            f"Topic {name} has {there} partitions, kafka_topic_partitions is {partitions}. The number is fixed when the topic is "
            f"made, because a vehicle's records stay in one partition. Set kafka_topic_partitions to {there}."
        )
    copies = len(next(iter(topic["partitions"].values()))["replicas"])
    if copies != int(factor):
        faults.append(
            f"Topic {name} has factor {copies}, kafka_topic_replication_factor is {factor}. Set kafka_topic_replication_factor "
            f"to {copies}, or move the replicas with kafka-reassign-partitions first."
        )
    return faults


class FilterModule:
    """What Ansible loads."""

    def filters(self) -> dict[str, Any]:
        """Name to function."""
        return {"kafka_topic_faults": kafka_topic_faults}
