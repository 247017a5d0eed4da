"""Kafka clients: what all are made with, and how they leave nothing behind when they cannot be made.

A client's constructor starts a thread and then waits for Kafka; if Kafka does not answer it raises, and thread and sockets stay
(kafka-python 3.0.12). Over a long outage they would use up all that a process may have.

What a consumer fetches is read by wire.py in place of the library.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from kafka import KafkaAdminClient
from kafka.consumer.fetcher import Fetcher
from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient

from telemetry.settings import KafkaSettings, SettingsError
from telemetry.wire import read_batches

Fetcher.PartitionRecords._unpack_records = read_batches

REQUEST_TIMEOUT = 5.0
"""Seconds that a broker may take to answer, where nothing else is said."""
OURS = {
    "acks", "allow_auto_create_topics", "auto_offset_reset", "batch_size", "bootstrap_servers", "bootstrap_timeout_ms",
    "client_id", "delivery_timeout_ms", "enable_auto_commit", "enable_idempotence", "fetch_max_bytes", "fetch_max_wait_ms",
    "group_id", "heartbeat_interval_ms", "isolation_level", "kafka_client", "key_deserializer", "key_serializer",
    "max_block_ms", "max_partition_fetch_bytes", "max_poll_interval_ms", "max_poll_records", "max_request_size",
    "metadata_max_age_ms", "metrics_enabled", "reconnect_backoff_max_ms", "request_timeout_ms", "retry_backoff_ms",
    "session_timeout_ms", "value_deserializer", "value_serializer",
}  # fmt: skip
"""Names of a client's options that the promise and its nested waits rest on; kafka_client may not have them."""


def options(settings: KafkaSettings, client_id: str, request_timeout: float = REQUEST_TIMEOUT) -> dict[str, Any]:
    """What every client of ours is made with; request_timeout in seconds. Raises SettingsError for a name that is ours."""
    if repeated := OURS & settings.kafka_client.keys():
        names = ", ".join(sorted(repeated))
        raise SettingsError(f"KAFKA_CLIENT may not have {names}: the services set that themselves. Take it out of kafka_client")
    timeout_ms = int(request_timeout * 1000)
    return {
        "bootstrap_servers": list(settings.bootstrap_servers),
        "client_id": client_id,
        "request_timeout_ms": timeout_ms,
        "bootstrap_timeout_ms": timeout_ms,
        **settings.kafka_client,
    }


def make_client(kind: Callable[..., Any], **configuration: Any) -> Any:
    """A client of the kind (KafkaConsumer, KafkaProducer, KafkaAdminClient). Raises KafkaError or OSError while Kafka is away."""
    made: list[Any] = []

    def remember(**options: Any) -> Any:
        made.append(KafkaNetClient(**options))
        return made[-1]

    try:
        return kind(**configuration, kafka_client=remember)
    except (KafkaError, OSError):
        for client in made:
            client.close()
        raise


def connect_admin(settings: KafkaSettings, client_id: str, request_timeout: float = REQUEST_TIMEOUT) -> Any:
    """The client that asks about the topic. Raises KafkaError or OSError while Kafka is away."""
    return make_client(KafkaAdminClient, reconnect_backoff_max_ms=1000, **options(settings, client_id, request_timeout))


@contextlib.contextmanager
def client_errors() -> Iterator[None]:
    """Around calls of the Kafka client, which also ends in errors of its own making while its brokers are gone."""
    try:
        yield
    except KafkaError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise KafkaError(f"{type(error).__name__}: {error}") from error


def error_text(error: Exception) -> str:
    """What an error of a client says, without its class's prefix."""
    return str(error.args[0]) if error.args else type(error).__name__
