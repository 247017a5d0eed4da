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

from telemetry.settings import KafkaSettings
from telemetry.wire import read_batches

Fetcher.PartitionRecords._unpack_records = read_batches
_fetched_records = Fetcher.fetched_records


def _fetched_records_with_parked(fetcher: Any, *arguments: Any, **named: Any) -> Any:
    """What was fetched, also of partitions that were paused meanwhile.

    What had been fetched of a paused partition is parked, and taken up when nothing else is in line. The client takes what is in
    line and read to its end for something (kafka-python 3.0.12, Fetcher.fetched_records): such a partition was never read again.
    """
    fetcher._next_partition_records = fetcher._next_partition_records or None
    return _fetched_records(fetcher, *arguments, **named)


Fetcher.fetched_records = _fetched_records_with_parked

REQUEST_TIMEOUT = 5.0
"""Seconds that a broker may take to answer, where nothing else is said."""


def options(settings: KafkaSettings, client_id: str, request_timeout: float = REQUEST_TIMEOUT) -> dict[str, Any]:
    """What every client of ours is made with; request_timeout in seconds."""
    timeout_ms = int(request_timeout * 1000)
    return {
        "bootstrap_servers": list(settings.bootstrap_servers),
        "client_id": client_id,
        "request_timeout_ms": timeout_ms,
        "bootstrap_timeout_ms": timeout_ms,
        **settings.kafka_arguments(),
    }


def make_client(kind: Callable[..., Any], **configuration: Any) -> Any:
    """A client of the kind (KafkaConsumer, KafkaProducer, KafkaAdminClient). Raises KafkaError or OSError while Kafka is away."""
    made: list[Any] = []

    def remember(**options: Any) -> Any:
        # A broker that takes connections and says nothing would hold up a call for 10 s, whatever its own timeout is.
        made.append(KafkaNetClient(**options, socket_connection_setup_timeout_ms=options["request_timeout_ms"]))
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
