"""One frozen dataclass a service, read from the environment; everything that is wrong is named at once.

A field's metadata holds the variable's name and how its text becomes a value. Secrets never stand in the environment: a
variable names the file that holds one.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from telemetry import __version__


class SettingsError(Exception):
    """Settings that cannot be used; the text names each variable, its value and the remedy, a line each."""


def _text(value: str) -> str:
    return value


def _required(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return value


def _integer(low: int, high: int) -> Callable[[str], int]:
    def parse(value: str) -> int:
        number = int(value) if value.lstrip("-").isdecimal() else None
        if number is None or not low <= number <= high:
            raise ValueError(f"must be an integer from {low} to {high}")
        return number

    return parse


def _number(low: float, high: float) -> Callable[[str], float]:
    def parse(value: str) -> float:
        try:
            number = float(value)
        except ValueError:
            number = math.nan
        if not low <= number <= high:
            raise ValueError(f"must be a number from {low:g} to {high:g}")
        return number

    return parse


def _boolean(value: str) -> bool:
    if value not in ("true", "false"):
        raise ValueError("must be true or false")
    return value == "true"


def _address(value: str) -> tuple[str, int]:
    host, _, port = value.rpartition(":")
    if not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise ValueError("must be address:port")
    return host.strip("[]"), int(port)


def _addresses(value: str) -> tuple[str, ...]:
    parts = tuple(part.strip() for part in value.split(","))
    for part in parts:
        _address(part)
    return parts


def _urls(value: str) -> tuple[str, ...]:
    parts = tuple(part.strip().rstrip("/") for part in value.split(","))
    if not all(part.startswith(("http://", "https://")) for part in parts):
        raise ValueError("must be URLs (http://address:port), joined by commas")
    return parts


def _object(value: str) -> dict[str, Any]:
    try:
        return dict(json.loads(value).items())
    except (ValueError, AttributeError):
        raise ValueError("must be a JSON object") from None


def _variable(name: str, parse: Callable[[str], Any], default: str | None = None) -> Any:
    """A field read from a variable; without a default the variable must be there."""
    return field(metadata={"variable": name, "parse": parse, "default": default})


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What every service has."""

    name: str = _variable("TELEMETRY_NAME", _required)
    listen: tuple[str, int] = _variable("TELEMETRY_LISTEN", _address)
    version: str = _variable("TELEMETRY_VERSION", _required, __version__)

    @classmethod
    def load(cls, environment: Mapping[str, str] = os.environ) -> Self:
        """Read all fields; raise SettingsError naming everything that is wrong."""
        values, problems = {}, []
        for each in fields(cls):
            variable, default = each.metadata["variable"], each.metadata["default"]
            text = environment.get(variable, default)
            if text is None:
                problems.append(f"{variable} is missing: set it")
                continue
            try:
                values[each.name] = each.metadata["parse"](text)
            except ValueError as error:
                problems.append(f"{variable}={text!r} {error}")
        if problems:
            raise SettingsError("\n".join(problems))
        return cls(**values)

    @classmethod
    def variables(cls) -> list[str]:
        """The names of all variables that this service reads."""
        return [each.metadata["variable"] for each in fields(cls)]

    def describe(self) -> str:
        """All values in one line, for the log; secrets are in files and not among them."""
        return " ".join(f"{each.metadata['variable']}={getattr(self, each.name)!r}" for each in fields(self))


@dataclass(frozen=True, kw_only=True)
class KafkaSettings(Settings):
    """What speaks with Kafka."""

    bootstrap_servers: tuple[str, ...] = _variable("KAFKA_BOOTSTRAP_SERVERS", _addresses)
    kafka_client: dict[str, Any] = _variable("KAFKA_CLIENT", _object, "{}")
    topic: str = _variable("KAFKA_TOPIC", _required)
    partitions: int = _variable("KAFKA_TOPIC_PARTITIONS", _integer(1, 100_000))
    replication_factor: int = _variable("KAFKA_TOPIC_REPLICATION_FACTOR", _integer(1, 100))
    min_insync_replicas: int = _variable("KAFKA_TOPIC_MIN_INSYNC_REPLICAS", _integer(1, 100))
    topic_retention_ms: int = _variable("KAFKA_TOPIC_RETENTION_MS", _integer(1, 2**62))


@dataclass(frozen=True, kw_only=True)
class ProducerSettings(KafkaSettings):
    """The producer's."""

    commit_window_ms: float = _variable("PRODUCER_COMMIT_WINDOW_MS", _number(0, 1000), "10")
    queue_uploads: int = _variable("PRODUCER_QUEUE_UPLOADS", _integer(1, 10_000_000), "10000")
    queue_bytes: int = _variable("PRODUCER_QUEUE_BYTES", _integer(1, 2**40), "67108864")


@dataclass(frozen=True, kw_only=True)
class ConsumerSettings(KafkaSettings):
    """The consumer's."""

    group: str = _variable("CONSUMER_GROUP", _required, "telemetry")
    session_timeout_ms: int = _variable("CONSUMER_SESSION_TIMEOUT_MS", _integer(6000, 300_000), "10000")
    batch_rows: int = _variable("CONSUMER_BATCH_ROWS", _integer(1, 1_000_000), "5000")
    batch_wait_ms: int = _variable("CONSUMER_BATCH_WAIT_MS", _integer(0, 60_000), "200")
    postgres_host: str = _variable("POSTGRES_HOST", _required)
    postgres_port: int = _variable("POSTGRES_PORT", _integer(1, 65535), "5432")
    postgres_database: str = _variable("POSTGRES_DATABASE", _required, "av_telemetry")
    postgres_user: str = _variable("POSTGRES_USER", _required, "telemetry_writer")
    postgres_password_file: str = _variable("POSTGRES_PASSWORD_FILE", _required)
    postgres_client: dict[str, Any] = _variable("POSTGRES_CLIENT", _object, "{}")

    def postgres_arguments(self) -> dict[str, Any]:
        """Arguments of psycopg2.connect. The password is read from its file each time, so that it may change."""
        try:
            password = Path(self.postgres_password_file).read_text().strip()
        except OSError as error:
            raise SettingsError(
                f"POSTGRES_PASSWORD_FILE={self.postgres_password_file!r} cannot be read: {error.strerror}"
            ) from None
        return {
            "host": self.postgres_host,
            "port": self.postgres_port,
            "dbname": self.postgres_database,
            "user": self.postgres_user,
            "password": password,
            "connect_timeout": 5,
            "application_name": f"consumer {self.name}",
            # A host that vanished without a word is noticed in seconds, not after the kernel's quarter of an hour.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
            **self.postgres_client,
        }


@dataclass(frozen=True, kw_only=True)
class VehicleSettings(Settings):
    """The vehicles' of one host."""

    urls: tuple[str, ...] = _variable("VEHICLE_URLS", _urls)
    fleet_file: str = _variable("VEHICLE_FLEET_FILE", _required)
    fleet_seed: str = _variable("VEHICLE_FLEET_SEED", _required)
    spool_dir: str = _variable("VEHICLE_SPOOL_DIR", _required)
    counter_dir: str = _variable("VEHICLE_COUNTER_DIR", _required)
    make: str = _variable("VEHICLE_MAKE", _required, "Ford")
    model: str = _variable("VEHICLE_MODEL", _text, "")
    report_delay: float = _variable("VEHICLE_REPORT_DELAY", _number(0.001, 86_400), "3")
    velocity_x: float = _variable("VEHICLE_VELOCITY_X", _number(-5000, 5000), "2")
    velocity_y: float = _variable("VEHICLE_VELOCITY_Y", _number(-5000, 5000), "4")
    velocity_z: float = _variable("VEHICLE_VELOCITY_Z", _number(-5000, 5000), "100")
    auto_start: bool = _variable("VEHICLE_AUTO_START", _boolean, "true")
    upload_records: int = _variable("VEHICLE_UPLOAD_RECORDS", _integer(1, 1000), "50")
    upload_wait: float = _variable("VEHICLE_UPLOAD_WAIT", _number(0, 86_400), "0")
    drain_timeout: float = _variable("VEHICLE_DRAIN_TIMEOUT", _number(0, 86_400), "60")
    spool_max_bytes: int = _variable("VEHICLE_SPOOL_MAX_BYTES", _integer(2**20, 2**40), str(2**30))
    spool_max_hours: float = _variable("VEHICLE_SPOOL_MAX_HOURS", _number(0.001, 87_600), "168")
    retry_max: float = _variable("VEHICLE_RETRY_MAX", _number(0.1, 3600), "30")
