"""Every metric of every service: its name, what it means, its labels, and whether it is an alarm.

An alarm says what is wrong and what to look at; docs/operations.md lists them all, and a test compares.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram


@dataclass(frozen=True)
class Metric:
    """One metric. alarm: when it is one, and what then to do; empty when it is not."""

    kind: Callable[..., Any]
    name: str
    help: str
    labels: tuple[str, ...] = ()
    alarm: str = ""

    @property
    def exposed(self) -> str:
        """The name as /metrics shows it."""
        return f"{self.name}_total" if self.kind is Counter else self.name


def counter(name: str, help: str, *labels: str, alarm: str = "") -> Any:
    """Declare a counter: what has happened since the start."""
    return Metric(Counter, name, help, labels, alarm)


def gauge(name: str, help: str, *labels: str, alarm: str = "") -> Any:
    """Declare a gauge: how much there is now."""
    return Metric(Gauge, name, help, labels, alarm)


def histogram(name: str, help: str, *labels: str, alarm: str = "") -> Any:
    """Declare a histogram of seconds."""
    return Metric(Histogram, name, help, labels, alarm)


class Metrics:
    """The metrics of one service; each is declared in the class, and made in the registry for the object."""

    def __init__(self, registry: CollectorRegistry) -> None:
        for attribute, metric in self.declared():
            setattr(self, attribute, metric.kind(metric.name, metric.help, metric.labels, registry=registry))

    @classmethod
    def declared(cls) -> Iterator[tuple[str, Metric]]:
        """Attribute and metric, in the order of their declaration."""
        return ((attribute, metric) for attribute, metric in vars(cls).items() if isinstance(metric, Metric))


class ServiceMetrics(Metrics):
    """Of every service."""

    ready: Gauge = gauge("telemetry_ready", "1 when the service can do its work.", alarm="is 0: `/readyz` says why")
    info: Gauge = gauge("telemetry_info", "Version of the service.", "service", "name", "version")


class ProducerMetrics(Metrics):
    """Of a producer."""

    uploads: Counter = counter("telemetry_uploads", "Uploads by the answer given.", "status", "error")
    records: Counter = counter("telemetry_records", "Records acknowledged.")
    seconds: Histogram = histogram("telemetry_upload_seconds", "From the body's arrival to its answer.")
    waiting: Gauge = gauge("telemetry_uploads_waiting", "Uploads that wait for Kafka.")


class ConsumerMetrics(Metrics):
    """Of a consumer."""

    rows: Counter = counter("telemetry_rows", "Rows inserted.")
    repeats: Counter = counter("telemetry_repeats", "Records that came again, unchanged.")
    conflicts: Counter = counter(
        "telemetry_conflicts",
        "Records that came again with other values.",
        alarm="grows: an identity came again with other values; table `conflict` has them",
    )
    clock_faults: Counter = counter(
        "telemetry_clock_faults",
        "Kafka records whose append time was not believed.",
        alarm="grows: a broker's clock was far off when it appended; the rows have the database's time in `received_at`",
    )
    gaps: Counter = counter(
        "telemetry_gaps",
        "Gaps opened, by state.",
        "state",
        alarm='with `state="undeclared"` grows: records were lost before Kafka; table `gap` says whose',
    )
    open_gaps: Gauge = gauge(
        "telemetry_open_gaps",
        "Gaps that are open, as Postgres estimated it last.",
        alarm="grows without end: a vehicle declares or loses records all the time; table `gap` says which",
    )
    dead: Counter = counter(
        "telemetry_dead_letters",
        "Kafka records that are not an upload.",
        alarm="grows: bytes in the topic are not an upload; table `dead_letter` has them",
    )
    guarded: Counter = counter(
        "telemetry_guarded",
        "Rows that only the guard index refused.",
        alarm="grows: the guard index refused what progress did not know",
    )
    fenced: Counter = counter("telemetry_fenced", "Batches that another worker had written.")
    lag: Gauge = gauge(
        "telemetry_lag", "Kafka records behind.", "partition", alarm="grows: the consumer does not keep up, or Postgres is away"
    )
    oldest_unread: Gauge = gauge(
        "telemetry_oldest_unread_seconds",
        "Age of the oldest unread Kafka record.",
        "partition",
        alarm="is above half of `kafka_topic_retention_hours`: Kafka will delete what was acknowledged and is not stored",
    )
    foreign_partitions: Gauge = gauge(
        "telemetry_foreign_partitions",
        "Partitions that the consumer group has assigned to others than consumers.",
        alarm="is above 0: another application uses the consumers' group, and what it reads is not stored",
    )
    batch_seconds: Histogram = histogram("telemetry_batch_seconds", "One transaction.")
    age_seconds: Histogram = histogram("telemetry_age_seconds", "From Kafka's append to the commit.")
    log_ahead: Gauge = gauge(
        "telemetry_log_ahead_seconds",
        "How far ahead of this host's clock the first record is that Kafka holds with an append time of a day ahead or more.",
        "partition",
        alarm="is above 0: a broker's clock was ahead; Kafka keeps that record and all after it until then; `delete_stored.yml`",
    )
    log_start_age: Gauge = gauge(
        "telemetry_log_start_age_seconds",
        "Age of the first record that Kafka holds, by its append time.",
        "partition",
        alarm="is above `kafka_topic_retention_hours` by more than 8 days: Kafka does not delete; `delete_stored.yml`",
    )
    broker_disk: Gauge = gauge(
        "telemetry_broker_disk_used_ratio",
        "Used part of the disk that holds a broker's data.",
        "broker",
        alarm="is above 0.8: a broker's disk fills up; give it room, or lower `kafka_topic_retention_hours`",
    )


class VehicleMetrics(Metrics):
    """Of a host's vehicles."""

    made: Counter = counter("telemetry_records_made", "Records made.")
    acknowledged: Counter = counter("telemetry_records_acknowledged", "Records acknowledged.")
    rejected: Counter = counter("telemetry_records_rejected", "Records set aside as gaps.")
    set_aside: Gauge = gauge(
        "telemetry_records_set_aside",
        "Records that are set aside in the spool.",
        alarm="is not 0: records were rejected and are kept; `put_back.yml` says why",
    )
    dropped: Counter = counter(
        "telemetry_records_dropped",
        "Records given up at the spool's bound.",
        alarm="grows: a spool is at its bound; the oldest records go, as declared gaps",
    )
    answers: Counter = counter("telemetry_upload_answers", "Uploads by the answer received; 0 is no answer.", "status")
    retries: Counter = counter("telemetry_upload_retries", "Uploads that have to be sent again.")
    vehicles: Gauge = gauge("telemetry_vehicles", "Vehicles of this host.", "state")
    spooled: Gauge = gauge("telemetry_spool_records", "Records and gaps not yet acknowledged.")
    oldest: Gauge = gauge(
        "telemetry_spool_oldest_seconds", "Age of the oldest unsent record.", alarm="grows: uploads are not acknowledged"
    )


SERVICES: dict[str, type[Metrics]] = {"producer": ProducerMetrics, "consumer": ConsumerMetrics, "vehicle": VehicleMetrics}
"""Each service's own metrics; all have ServiceMetrics too."""
