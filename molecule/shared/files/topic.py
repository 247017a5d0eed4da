"""Talks to Kafka as any client does.

write BOOTSTRAP TOPIC       puts uploads, a line each on standard input, into the topic as producers do, and awaits Kafka's answers
read BOOTSTRAP TOPIC VIN    prints the uploads of a vehicle, a line each
in_sync BOOTSTRAP TOPIC     succeeds when every replica of every partition is in sync
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable

from kafka import KafkaAdminClient, KafkaConsumer, KafkaProducer, TopicPartition

HEADERS = [("v", b"1")]
# Milliseconds after which a broker that was killed is given up; by itself the client waits 30,000
PATIENCE = {"request_timeout_ms": 2000}


def write(bootstrap: str, topic: str) -> None:
    """Answered by every replica in sync."""
    producer = KafkaProducer(bootstrap_servers=bootstrap, **PATIENCE, acks="all", enable_idempotence=False)
    uploads = sys.stdin.read().strip().splitlines()
    sent = [producer.send(topic, key=json.loads(each)["vin"].encode(), value=each.encode(), headers=HEADERS) for each in uploads]
    for each in sent:
        each.get(timeout=10)


def read(bootstrap: str, topic: str, vin: str) -> None:
    """From the beginning to what is the end now."""
    consumer = KafkaConsumer(bootstrap_servers=bootstrap, **PATIENCE)
    places = [TopicPartition(topic, number) for number in consumer.partitions_for_topic(topic) or ()]
    consumer.assign(places)
    consumer.seek_to_beginning()
    ends = consumer.end_offsets(places)
    while any(consumer.position(place) < end for place, end in ends.items()):
        for records in consumer.poll(1000).values():
            for record in records:
                if record.key == vin.encode() and record.headers == HEADERS:
                    print(record.value.decode())


def in_sync(bootstrap: str, topic: str) -> None:
    """Names the partitions that are not."""
    [found] = KafkaAdminClient(bootstrap_servers=bootstrap, **PATIENCE).describe_topics([topic])
    behind = [each["partition_index"] for each in found["partitions"] if len(each["isr_nodes"]) < len(each["replica_nodes"])]
    if behind or not found["partitions"]:
        sys.exit(f"not in sync: {behind}")


COMMANDS: dict[str, Callable[..., None]] = {"write": write, "read": read, "in_sync": in_sync}

if __name__ == "__main__":
    COMMANDS[sys.argv[1]](*sys.argv[2:])
