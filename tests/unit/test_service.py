"""The consumer's process: what ends it, and what its threads tell."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from kafka.errors import KafkaConnectionError
from telemetry.clients import make_client
from telemetry.consumer import service, watch, worker
from telemetry.consumer.store import Retained, Unavailable
from telemetry.health import Health
from telemetry.metrics import ConsumerMetrics
from telemetry.settings import ConsumerSettings, SettingsError
from telemetry.topic import Topic


class Store:
    """A store with nothing in it."""

    def __init__(self, *_: Any) -> None:
        pass

    def check_clock(self) -> None:
        """They agree."""

    def forget(self) -> None:
        """Nothing is cached."""

    def break_off(self) -> None:
        """Nothing is under way."""

    def close(self) -> None:
        """Nothing is open."""

    def retain(self) -> Retained:
        return Retained([], "")


def settings(tmp_path: Path, **more: str) -> ConsumerSettings:
    """Of a consumer whose password is there."""
    (tmp_path / "password").write_text("x")
    return ConsumerSettings.load(
        {
            "TELEMETRY_NAME": "c1", "TELEMETRY_LISTEN": "127.0.0.1:1", "POSTGRES_HOST": "127.0.0.1",
            "POSTGRES_PASSWORD_FILE": str(tmp_path / "password"), "KAFKA_BOOTSTRAP_SERVERS": "127.0.0.1:1", "KAFKA_TOPIC": "t",
            "KAFKA_TOPIC_PARTITIONS": "2", "KAFKA_TOPIC_REPLICATION_FACTOR": "1", "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "1",
            "KAFKA_TOPIC_RETENTION_MS": "604800000", **more,
        }
    )  # fmt: skip


def test_a_secret_that_cannot_be_read_is_named_at_the_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.consumer.service.signal.signal", lambda number, handler: None)
    without = settings(tmp_path, KAFKA_CLIENT='{"sasl_plain_password_file": "/nowhere"}')
    with pytest.raises(SettingsError, match=r"KAFKA_CLIENT: sasl_plain_password_file='/nowhere' cannot be read"):
        service.run(without)


def run_until_it_ends(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> list[int]:
    """Run the process with other collaborators; its exit status, if it ended."""
    consumer = settings(tmp_path)
    monkeypatch.setattr("telemetry.consumer.service.signal.signal", lambda number, handler: None)
    monkeypatch.setattr("telemetry.consumer.service.healths.serve", lambda app, host, port: None)
    monkeypatch.setattr(service, "LOOP_LIMIT", 1.0)
    monkeypatch.setattr(service, "WATCH_LIMIT", 1.0)
    monkeypatch.setattr(service, "WATCHDOG_INTERVAL", 0.05)
    monkeypatch.setattr(service, "WATCH_INTERVAL", 0.1)
    monkeypatch.setattr(service, "STOP_TIMEOUT", 0.1)
    monkeypatch.setattr(worker, "BACKOFF_MAX", 0.1)
    monkeypatch.setattr(service, "PostgresStore", changes.pop("store", Store))
    for name, value in changes.items():
        monkeypatch.setattr(service, name, value)
    status: list[int] = []
    process = threading.Thread(target=lambda: status.append(service.run(consumer)), daemon=True)
    process.start()
    process.join(20)
    return status


def away(*_: Any) -> Topic | None:
    raise KafkaConnectionError("nobody there")


def topics(describe: Callable[[], Topic | None]) -> SimpleNamespace:
    return SimpleNamespace(
        describer=lambda settings, client_id: describe, look_at_brokers=lambda settings, metrics: None, SURVEY_INTERVAL=60.0
    )


@pytest.mark.parametrize("loop", ["consume", "watch"])
def test_a_client_that_never_returns_ends_the_process(
    loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    over = threading.Event()

    def never_returns() -> Topic | None:
        if threading.current_thread().name == loop:
            over.wait()
        return away()

    status = run_until_it_ends(
        tmp_path,
        monkeypatch,
        topics=topics(never_returns),
        KafkaView=lambda settings: SimpleNamespace(describe=never_returns),
    )
    over.set()
    assert status == [1]
    assert f"the loop '{loop}' has not come round for 1 s; it is in" in caplog.text


@pytest.mark.parametrize("thread", ["consume", "watch", "retention"])
def test_a_thread_that_ends_ends_the_process_with_one_line(
    thread: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def broken(*_: Any) -> Any:
        if threading.current_thread().name == thread:
            raise ZeroDivisionError("nobody foresaw this")
        return away()

    class Broken(Store):
        def retain(self) -> Retained:
            return broken() if thread == "retention" else Retained([], "")

    status = run_until_it_ends(
        tmp_path,
        monkeypatch,
        topics=topics(broken),
        KafkaView=lambda settings: SimpleNamespace(describe=broken),
        store=Broken,
    )
    assert status == [1]
    assert "a fault of this program: ZeroDivisionError: nobody foresaw this" in caplog.text
    assert f"the thread '{thread}' has ended: ending, to be started again" in caplog.text
    assert "Traceback" not in capsys.readouterr().err


def test_retention_that_is_held_back_is_degraded() -> None:
    health, answers = Health("consumer", "c1", "0"), iter([Retained(["diag_1"], "held: a clock", 7), Retained([], "", 5), None])
    metrics = ConsumerMetrics(health.registry)

    class Held(Store):
        def retain(self) -> Retained:
            if (answer := next(answers)) is None:
                raise Unavailable("Postgres: gone")
            return answer

    store: Any = Held()
    degraded = []
    for _ in range(3):
        service.retain(store, health, metrics)
        degraded.append(health.readiness()["degraded"])
    assert health.registry.get_sample_value("telemetry_open_gaps") == 5
    assert degraded == [["held: a clock"], [], ["days older than the retention are not dropped: Postgres: gone"]]


def test_a_call_of_the_store_that_hangs_is_broken_off_by_the_main_thread(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    cut = threading.Event()

    class Hanging(Store):
        def check_clock(self) -> None:
            if not cut.wait(10):
                raise AssertionError("nobody broke it off")
            raise ZeroDivisionError("broken off")

        def break_off(self) -> None:
            cut.set()

    monkeypatch.setattr(watch, "SLOW_CALL", 0.1)
    monkeypatch.setattr(watch, "HUNG_CALL", 0.2)
    status = run_until_it_ends(
        tmp_path,
        monkeypatch,
        topics=topics(away),
        KafkaView=lambda settings: SimpleNamespace(describe=away),
        store=Hanging,
    )
    assert status == [1]
    assert "not ready: Postgres does not answer" in caplog.text
    assert "ZeroDivisionError: broken off" in caplog.text


def test_a_connection_is_made_within_the_timeout_of_a_request() -> None:
    made = make_client(lambda kafka_client, **options: kafka_client(**options), request_timeout_ms=3000)
    assert made._manager.config["socket_connection_setup_timeout_ms"] == 3000
    made.close()
