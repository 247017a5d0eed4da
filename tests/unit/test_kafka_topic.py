"""The topic that is there is compared with the settings that are fixed when it is made."""

from __future__ import annotations

from interface.roles import module

faults = module("roles/kafka/filter_plugins/kafka_topic.py").kafka_topic_faults
TOPIC = {"partitions": {number: {"replicas": [1, 2, 3]} for number in range(6)}}


def test_a_topic_as_it_should_be_has_no_fault() -> None:
    assert faults(TOPIC, "telemetry", 6, 3) == []
    # As -e gives them
    assert faults(TOPIC, "telemetry", "6", "3") == []


def test_each_difference_names_the_setting_and_what_to_set() -> None:
    partitions, factor = faults(TOPIC, "telemetry", 12, 2)
    assert partitions.startswith("Topic telemetry has 6 partitions, kafka_topic_partitions is 12. ")
    assert partitions.endswith(" Set kafka_topic_partitions to 6.")
    assert factor.startswith(
        "Topic telemetry has factor 3, kafka_topic_replication_factor is 2. Set kafka_topic_replication_factor to 3, "
    )
