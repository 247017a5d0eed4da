"""Kafka clients that leave nothing behind when they cannot be made.

A client's constructor starts a thread and then waits for Kafka; if Kafka does not answer it raises, and thread and sockets stay
(kafka-python 3.0.12). Over a long outage they would use up all that a process may have.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

from kafka.errors import KafkaError
from kafka.net.compat import KafkaNetClient


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


@contextlib.contextmanager
def client_errors() -> Iterator[None]:
    """Around calls of the Kafka client, which also ends in errors of its own making while its brokers are gone."""
    try:
        yield
    except KafkaError:
        raise
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        raise KafkaError(f"{type(error).__name__}: {error}") from error
