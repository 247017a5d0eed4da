"""The consumer's process: the worker's loop, and the threads beside it.

One thread watches Kafka, one drops old days. The main thread watches the calls of the store, and ends the process when one of the
threads has ended, or when the loop or the watch does not come round any more.
"""

from __future__ import annotations

import logging
import signal
import threading
import traceback
from collections.abc import Callable, Iterable
from typing import Any

from kafka import KafkaConsumer

from telemetry import health as healths
from telemetry import topic as topics
from telemetry.clients import make_client, options
from telemetry.consumer.store import PostgresStore, StoreError
from telemetry.consumer.watch import CLIENT_ID, KafkaView, Watch
from telemetry.consumer.worker import FULL_POLL, Worker
from telemetry.health import Health, Reason
from telemetry.metrics import ConsumerMetrics
from telemetry.settings import ConsumerSettings, SettingsError
from telemetry.watchdog import Watchdog

log = logging.getLogger(__name__)

WATCH_INTERVAL = 3.0
"""Seconds between looks at Kafka."""
LOOP_LIMIT, WATCH_LIMIT = 75.0, 40.0
"""Seconds that may pass between two calls of the store, one that hangs included; and that one look at Kafka may take."""
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
        **options(settings, f"{CLIENT_ID}{settings.name}"),
    )


def retain(store: PostgresStore, health: Health, metrics: ConsumerMetrics) -> None:
    """Drop what is older than the retention. What holds it up is told as degraded."""
    try:
        retained = store.retain()
        for name in retained.dropped:
            log.info("retention: dropped %s", name)
        health.set_degraded(Reason.RETENTION, retained.held or None)
        metrics.open_gaps.set(retained.open_gaps)
    except (StoreError, SettingsError) as error:
        health.set_degraded(Reason.RETENTION, f"days older than the retention are not dropped: {error}")
    store.close()


def make_thread(name: str, target: Callable[[], object]) -> threading.Thread:
    """A thread in which what was not foreseen is one line in the log. It ends then, and the main thread sees that."""

    def guarded() -> None:
        try:
            target()
        except Exception as error:
            where = traceback.extract_tb(error.__traceback__)[-1]
            log.critical("a fault of this program: %s: %s (%s:%s)", type(error).__name__, error, where.filename, where.lineno)

    return threading.Thread(target=guarded, name=name, daemon=True)


def why_to_end(threads: Iterable[threading.Thread], watchdogs: Iterable[Watchdog], seconds: float) -> str:
    """Why the process must end, to be started again; empty while all is well. To be called every so many seconds."""
    reasons = [f"the thread '{each.name}' has ended" for each in threads if not each.is_alive()]
    reasons += [why for each in watchdogs if (why := each.check(seconds))]
    return "; ".join(reasons)


def finish(loop: threading.Thread, store: PostgresStore) -> None:
    """Wait for the batch under way, but not for long: the next worker reads it again."""
    loop.join(STOP_TIMEOUT)
    if loop.is_alive():
        log.warning("the batch under way is abandoned; the next worker reads it again")
        store.break_off()
        loop.join(STOP_TIMEOUT / 2)
    else:
        store.close()


def run(settings: ConsumerSettings) -> int:
    """Consume until SIGTERM or SIGINT; the process's exit status. Raises SettingsError where a secret's file cannot be read."""
    asked: list[int] = []
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda signum, _: asked.append(signum))
    settings.postgres_arguments()
    settings.kafka_arguments()
    health = Health("consumer", settings.name, settings.version)
    try:
        healths.serve(healths.make_app(health), *settings.listen)
    except OSError as error:
        log.error("%s:%d cannot be listened on: %s", *settings.listen, error.strerror)
        return 1
    stop = threading.Event()
    store, old_days = (PostgresStore(settings.postgres_arguments, settings.topic_retention_ms) for _ in range(2))
    describe, metrics = topics.describer(settings, f"{CLIENT_ID}{settings.name}-topic"), ConsumerMetrics(health.registry)
    worker = Worker(settings, store, lambda: connect(settings), describe, health, metrics, sleep=stop.wait)
    watch = Watch(settings, worker, store.break_off, KafkaView(settings), health, metrics)
    health.clear(Reason.START)

    def every(seconds: float, do: Callable[[], object]) -> None:
        while not stop.is_set():
            do()
            stop.wait(seconds)

    def look() -> None:
        watch.look()
        watch_watchdog.feed()

    # The loop has a thread of its own: a call that hangs in Postgres' library would keep a signal from being heard.
    loop = make_thread("consume", lambda: worker.run(stop, loop_watchdog.feed))
    watcher = make_thread("watch", lambda: every(WATCH_INTERVAL, look))
    retention = make_thread("retention", lambda: every(RETAIN_INTERVAL, lambda: retain(old_days, health, metrics)))
    survey = make_thread("survey", lambda: every(topics.SURVEY_INTERVAL, lambda: topics.look_at_brokers(settings, metrics)))
    threads = (loop, watcher, retention, survey)
    loop_watchdog, watch_watchdog = watchdogs = (Watchdog(loop, LOOP_LIMIT), Watchdog(watcher, WATCH_LIMIT))
    for thread in threads:
        thread.start()
    while not asked:
        loop.join(WATCHDOG_INTERVAL)
        watch.look_at_store()
        if not asked and (why := why_to_end(threads, watchdogs, WATCHDOG_INTERVAL)):
            log.critical("%s: ending, to be started again", why)
            break
    stop.set()
    finish(loop, store)
    return 0 if asked else 1
