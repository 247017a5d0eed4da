"""The consumer's process: the worker's loop, and the threads beside it.

One thread asks how Kafka is and breaks off a write that hangs, one drops old days. The main thread ends the process when the loop
or the first of them does not come round any more.
"""

from __future__ import annotations

import logging
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

from kafka import KafkaConsumer
from kafka.errors import KafkaError

from telemetry import health as healths
from telemetry import topic as topics
from telemetry.clients import client_errors, error_text, make_client, options
from telemetry.consumer.store import PostgresStore, StoreError
from telemetry.consumer.worker import FULL_POLL, WAITING, Worker
from telemetry.health import Health, Reason
from telemetry.metrics import ConsumerMetrics
from telemetry.settings import ConsumerSettings, SettingsError
from telemetry.watchdog import Watchdog

log = logging.getLogger(__name__)

WATCH_INTERVAL = 3.0
"""Seconds between looks at Kafka and at a write that takes long."""
SLOW_WRITE, HUNG_WRITE = 5.0, 30.0
"""Seconds after which a write is told in /readyz, and is broken off."""
LOOP_LIMIT, WATCH_LIMIT = 75.0, 40.0
"""Seconds that one step may take, a write that hangs and a check's requests included; and one look at Kafka."""
WATCHDOG_INTERVAL = 0.2
STOP_TIMEOUT = 4.0
"""Seconds that the batch under way has after SIGTERM, before it is abandoned."""
RETAIN_INTERVAL = 3600.0


def connect(settings: ConsumerSettings) -> Any:
    """The Kafka client. It commits nothing, and resets nothing by itself. Raises KafkaError while Kafka is away."""
    return make_client(
        KafkaConsumer,
        # No static membership: this client takes a static member that comes back as leader for one that has to assign
        # (it does not know skip_assignment), and such a worker ended up outside its group without noticing.
        group_id=settings.group,
        enable_auto_commit=False,
        auto_offset_reset="none",
        allow_auto_create_topics=False,
        session_timeout_ms=settings.session_timeout_ms,
        heartbeat_interval_ms=settings.session_timeout_ms // 4,
        max_poll_records=FULL_POLL,
        fetch_max_wait_ms=200,
        # A consumer that is far behind must not run out of memory: what each of three brokers may send at once
        fetch_max_bytes=8 * 1024 * 1024,
        max_partition_fetch_bytes=2 * 1024 * 1024,
        max_poll_interval_ms=60_000,
        reconnect_backoff_max_ms=1000,
        metadata_max_age_ms=5_000,
        metrics_enabled=False,
        **options(settings, f"consumer-{settings.name}"),
    )


def retain_forever(settings: ConsumerSettings, health: Health, stop: threading.Event) -> None:
    """Drop what is older than the retention, now and every hour."""
    store = PostgresStore(settings.postgres_arguments, settings.topic_retention_ms)
    while not stop.is_set():
        try:
            retained = store.retain()
            for name in retained.dropped:
                log.info("retention: dropped %s", name)
            health.set_degraded(Reason.RETENTION, retained.held or None)
        except (StoreError, SettingsError) as error:
            health.set_degraded(Reason.RETENTION, f"days older than the retention are not dropped: {error}")
        store.close()
        stop.wait(RETAIN_INTERVAL)


def watch(
    worker: Worker,
    store: PostgresStore,
    describe: Callable[[], topics.Topic | None],
    settings: ConsumerSettings,
    health: Health,
) -> None:
    """One look from outside the loop: how is Kafka, and does Postgres answer."""
    try:
        with client_errors():
            topic = describe()
    except (KafkaError, OSError) as error:
        servers = ",".join(settings.bootstrap_servers)
        health.set_reason(Reason.KAFKA, f"Kafka cannot be reached at {servers}: {error_text(error)}")
    else:
        if topic is None:
            health.set_reason(Reason.KAFKA, f"topic {settings.topic} is not there: run site.yml")
        else:
            health.clear(Reason.KAFKA)
            worker.heard = topic.topic_id
    since = worker.writing_since
    if since is not None and time.monotonic() - since > SLOW_WRITE:
        health.set_reason(Reason.POSTGRES, "Postgres does not answer")
        if time.monotonic() - since > HUNG_WRITE:
            store.break_off()


def run(settings: ConsumerSettings) -> int:
    """Consume until SIGTERM or SIGINT; the process's exit status."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: asked.append(signum))
    settings.postgres_arguments()
    health = Health("consumer", settings.name, settings.version)
    try:
        healths.serve(healths.make_app(health), *settings.listen)
    except OSError as error:
        log.error("%s:%d cannot be listened on: %s", *settings.listen, error.strerror)
        return 1
    stop = threading.Event()
    store = PostgresStore(settings.postgres_arguments, settings.topic_retention_ms)
    describe, metrics = topics.describer(settings, f"consumer-{settings.name}-admin"), ConsumerMetrics(health.registry)
    worker = Worker(settings, store, lambda: connect(settings), describe, health, metrics, sleep=stop.wait)
    health.set_reason(Reason.GROUP, WAITING)
    health.clear(Reason.START)

    def watch_forever() -> None:
        describe = topics.describer(settings, f"consumer-{settings.name}-admin")
        while not stop.is_set():
            watch(worker, store, describe, settings, health)
            watch_watchdog.feed()
            stop.wait(WATCH_INTERVAL)

    # The loop has a thread of its own: a call that hangs in Postgres' library would keep a signal from being heard.
    loop = threading.Thread(target=lambda: worker.run(stop, loop_watchdog.feed), name="consume", daemon=True)
    watcher = threading.Thread(target=watch_forever, name="watch", daemon=True)
    retention = threading.Thread(target=retain_forever, args=(settings, health, stop), name="retention", daemon=True)
    loop_watchdog, watch_watchdog = Watchdog(loop, LOOP_LIMIT), Watchdog(watcher, WATCH_LIMIT)
    for thread in (loop, watcher, retention):
        thread.start()
    while loop.is_alive() and not asked:
        loop.join(WATCHDOG_INTERVAL)
        if why := loop_watchdog.check(WATCHDOG_INTERVAL) or watch_watchdog.check(WATCHDOG_INTERVAL):
            log.critical("%s: ending, to be started anew", why)
            break
    stop.set()
    loop.join(STOP_TIMEOUT)
    if loop.is_alive():
        log.warning("the batch under way is abandoned; it is read again by the next")
        store.break_off()
        loop.join(STOP_TIMEOUT / 2)
    else:
        store.close()
    return 0 if asked else 1
