"""One frozen dataclass a service, read from the environment; everything that is wrong is named at once.

A field's metadata holds the variable's name and how its text becomes a value. Secrets never stand in the environment: a
variable, or an argument whose name ends in `_file`, names the file that holds one.
"""

from __future__ import annotations

import json
import math
import os
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, Self

from telemetry import __version__
from telemetry.record import MAX_NAME


class SettingsError(Exception):
    """Settings that cannot be used; the text names each variable, its value and the remedy, a line each."""


def _required(value: str) -> str:
    if not value:
        raise ValueError("must not be empty")
    return value


def _name(least: int) -> Callable[[str], str]:
    """Make or model, as records hold them; `least`: characters that it has at least."""

    def parse(value: str) -> str:
        # A byte that is not UTF-8 comes from the environment as a lone surrogate
        if not least <= len(value) <= MAX_NAME or "\0" in value or any("\ud800" <= character <= "\udfff" for character in value):
            raise ValueError(f"must be text of {least} to {MAX_NAME} characters: records with another one are refused")
        return value

    return parse


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


SECRET = re.compile("password|passphrase|secret|token|dsn", re.IGNORECASE)
"""Names of arguments that hold a secret."""
FILE = "_file"
"""What the name of an argument ends in that names the file of a secret."""
SET_BY_US = {
    "acks", "allow_auto_create_topics", "auto_offset_reset", "batch_size", "bootstrap_servers", "bootstrap_timeout_ms", "client_id",
    "delivery_timeout_ms", "enable_auto_commit", "enable_idempotence", "fetch_max_bytes", "fetch_max_wait_ms", "group_id",
    "heartbeat_interval_ms", "isolation_level", "kafka_client", "key_deserializer", "key_serializer", "max_block_ms",
    "max_partition_fetch_bytes", "max_poll_interval_ms", "max_poll_records", "max_request_size", "metadata_max_age_ms",
    "metrics_enabled", "reconnect_backoff_max_ms", "request_timeout_ms", "retry_backoff_ms", "session_timeout_ms",
    "value_deserializer", "value_serializer",
}  # fmt: skip
"""Arguments of Kafka clients that the promise rests on."""


def _arguments(value: str) -> dict[str, Any]:
    """Further arguments of a library. No text of theirs is repeated: it may be a secret in the wrong place."""
    try:
        found = dict(json.loads(value).items())
    except (ValueError, AttributeError):
        raise ValueError("must be a JSON object") from None
    secrets = sorted(name for name in found if SECRET.search(name) and not name.endswith(FILE))
    if secrets:
        remedy = ", ".join(name + FILE for name in secrets)
        raise ValueError(f"must not hold a secret ({', '.join(secrets)}): name the file that does ({remedy})")
    return found


def _kafka_arguments(value: str) -> dict[str, Any]:
    found = _arguments(value)
    ours = sorted(SET_BY_US & found.keys())
    if ours:
        raise ValueError(f"must not hold what the services set themselves ({', '.join(ours)}): leave it out")
    return found


def _with_secrets(variable: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments in which each secret stands in place of its file's name. Raises SettingsError."""
    found: dict[str, Any] = {}
    for name, value in arguments.items():
        if SECRET.search(name) and name.endswith(FILE):
            found[name.removesuffix(FILE)] = _secret(f"{variable}: {name}", str(value))
        else:
            found[name] = value
    return found


def _secret(what: str, path: str) -> str:
    """What a file holds. It is read each time, so that it may change. Raises SettingsError."""
    try:
        return Path(path).read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        why = error.strerror if isinstance(error, OSError) else "it is not text"
        raise SettingsError(f"{what}={path!r} cannot be read: {why}") from None


def _variable(name: str, parse: Callable[[str], Any], default: str | None = None, shown: bool = True) -> Any:
    """A field read from a variable; without a default the variable must be there. shown: whether an error repeats its text."""
    return field(metadata={"variable": name, "parse": parse, "default": default, "shown": shown})


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
                problems.append(f"{variable}={text!r} {error}" if each.metadata["shown"] else f"{variable} {error}")
        if problems:
            raise SettingsError("\n".join(problems))
        return cls(**values)

    @classmethod
    def variables(cls) -> list[str]:
        """The names of all variables that this service reads."""
        return [each.metadata["variable"] for each in fields(cls)]

    def describe(self) -> str:
        """All values in one line, for the log. Secrets are in files, whose names alone are among them."""
        return " ".join(f"{each.metadata['variable']}={getattr(self, each.name)!r}" for each in fields(self))


@dataclass(frozen=True, kw_only=True)
class KafkaSettings(Settings):
    """What speaks with Kafka."""

    bootstrap_servers: tuple[str, ...] = _variable("KAFKA_BOOTSTRAP_SERVERS", _addresses)
    kafka_client: dict[str, Any] = _variable("KAFKA_CLIENT", _kafka_arguments, "{}", shown=False)
    topic: str = _variable("KAFKA_TOPIC", _required)
    partitions: int = _variable("KAFKA_TOPIC_PARTITIONS", _integer(1, 100_000))
    replication_factor: int = _variable("KAFKA_TOPIC_REPLICATION_FACTOR", _integer(1, 100))
    min_insync_replicas: int = _variable("KAFKA_TOPIC_MIN_INSYNC_REPLICAS", _integer(1, 100))
    topic_retention_ms: int = _variable("KAFKA_TOPIC_RETENTION_MS", _integer(1, 2**62))

    def kafka_arguments(self) -> dict[str, Any]:
        """Further arguments of a Kafka client. Raises SettingsError where a secret's file cannot be read."""
        return _with_secrets("KAFKA_CLIENT", self.kafka_client)


@dataclass(frozen=True, kw_only=True)
class ProducerSettings(KafkaSettings):
    """The producer's."""

    commit_window_ms: float = _variable("PRODUCER_COMMIT_WINDOW_MS", _number(0, 1000), "10")
    queue_uploads: int = _variable("PRODUCER_QUEUE_UPLOADS", _integer(1, 10_000_000), "3000")
    queue_bytes: int = _variable("PRODUCER_QUEUE_BYTES", _integer(2**20, 2**40), "104857600")


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
    postgres_client: dict[str, Any] = _variable("POSTGRES_CLIENT", _arguments, "{}", shown=False)

    def postgres_arguments(self) -> dict[str, Any]:
        """Arguments of psycopg2.connect. Raises SettingsError where a secret's file cannot be read."""
        return {
            "host": self.postgres_host,
            "port": self.postgres_port,
            "dbname": self.postgres_database,
            "user": self.postgres_user,
            "password": _secret("POSTGRES_PASSWORD_FILE", self.postgres_password_file),
            "connect_timeout": 5,
            "application_name": f"consumer {self.name}",
            # A host that vanished without a word is noticed in seconds, not after the kernel's quarter of an hour.
            "keepalives_idle": 5,
            "keepalives_interval": 2,
            "keepalives_count": 3,
            "tcp_user_timeout": 15_000,
            **_with_secrets("POSTGRES_CLIENT", self.postgres_client),
        }


@dataclass(frozen=True, kw_only=True)
class VehicleSettings(Settings):
    """The vehicles' of one host."""

    urls: tuple[str, ...] = _variable("VEHICLE_URLS", _urls)
    fleet_file: str = _variable("VEHICLE_FLEET_FILE", _required)
    fleet_seed: str = _variable("VEHICLE_FLEET_SEED", _required)
    spool_dir: str = _variable("VEHICLE_SPOOL_DIR", _required)
    counter_dir: str = _variable("VEHICLE_COUNTER_DIR", _required)
    make: str = _variable("VEHICLE_MAKE", _name(1), "Ford")
    model: str = _variable("VEHICLE_MODEL", _name(0), "")
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
