"""The producer: HTTP to Kafka. 200 is answered when every in-sync replica holds the upload, and not before.

Handlers parse, validate and hand over; they never block. The promise of the publisher stays in the WSGI environ, and the
adapter in asgi.py sends the handler's answer when it is kept.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import time

import bottle
import uvloop
from prometheus_client import Counter, Gauge, Histogram

from telemetry import health as healths
from telemetry.asgi import PROMISE, Adapter, make_server
from telemetry.health import Health
from telemetry.publisher import KafkaPublisher, Publisher
from telemetry.record import Refused, Upload, encode, parse_form, parse_json
from telemetry.settings import ProducerSettings

log = logging.getLogger(__name__)

DRAIN_TIMEOUT = 12.0
"""Seconds that accepted uploads may take after SIGTERM; longer than any answer."""
FEEL_INTERVAL = 1.0
"""Seconds between two looks at whether the publisher's watch is alive."""
RETRY_AFTER = "1"
PARSERS = {"application/json": parse_json, "application/x-www-form-urlencoded": parse_form}


def refusal(refused: Refused) -> bottle.HTTPResponse:
    """A refusal as an answer."""
    answer = healths.as_json(refused.status, refused.body())
    if refused.status == 503:
        answer.set_header("Retry-After", RETRY_AFTER)
    return answer


def make_app(publisher: Publisher, health: Health) -> bottle.Bottle:
    """The producer's routes beside those of health.py."""
    app = healths.make_app(health)
    uploads = Counter("telemetry_uploads", "Uploads by answer.", ["status", "error"], registry=health.registry)
    records = Counter("telemetry_records", "Records acknowledged.", registry=health.registry)
    seconds = Histogram("telemetry_upload_seconds", "From the body's arrival to its answer.", registry=health.registry)
    Gauge("telemetry_uploads_waiting", "Uploads that wait for Kafka.", registry=health.registry).set_function(
        lambda: publisher.waiting
    )
    served = 0

    def acknowledged(upload: Upload, begun: float, outcome: Refused | None) -> None:
        nonlocal served
        seconds.observe(time.perf_counter() - begun)
        if outcome is None:
            served += len(upload.records)
            records.inc(len(upload.records))
            uploads.labels("200", "").inc()
        else:
            uploads.labels(str(outcome.status), outcome.error).inc()

    def post() -> bottle.HTTPResponse:
        begun = time.perf_counter()
        kind = bottle.request.content_type.partition(";")[0].strip().lower()
        try:
            parse = PARSERS.get(kind)
            if parse is None:
                raise Refused(415, "unsupported_type", f"Send one of {', '.join(PARSERS)} as Content-Type.")
            body = bottle.request.environ["wsgi.input"].read()
            upload = parse(body)
            # A form becomes an upload; the body of a JSON upload is one already and travels as it came.
            value = body if parse is parse_json else encode(upload)
            promise = publisher.publish(upload.vin.encode(), value)
        except Refused as refused:
            uploads.labels(str(refused.status), refused.error).inc()
            return refusal(refused)
        promise.add_done_callback(lambda future: None if future.cancelled() else acknowledged(upload, begun, future.result()))
        bottle.request.environ[PROMISE] = promise
        return healths.as_json(
            200, {"vin": upload.vin, "epoch": upload.epoch, "acked_through": upload.last_seq, "records": len(upload.records)}
        )

    def get() -> bottle.HTTPResponse:
        text = f"Welcome to Tachograph. POST your records here.\nEvents served: {served}\n"
        return bottle.HTTPResponse(text, 200, {"Content-Type": "text/plain; charset=utf-8"})

    app.route("/events", "POST", post)
    app.route("/events", "GET", get)
    return app


async def serve(settings: ProducerSettings) -> int:
    """Serve until SIGTERM or SIGINT, then finish what was accepted."""
    loop = asyncio.get_running_loop()
    health = Health("producer", settings.name, settings.version)
    wedged: asyncio.Future[str] = loop.create_future()

    def give_up(why: str) -> None:
        if not wedged.done():
            wedged.set_result(why)

    publisher = KafkaPublisher(settings, health, give_up=give_up)
    server = make_server(Adapter(make_app(publisher, health)), *settings.listen)

    async def feel_pulse() -> None:
        while not wedged.done():
            await asyncio.sleep(FEEL_INTERVAL)
            if why := publisher.pulse.feel(FEEL_INTERVAL):
                give_up(why)

    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    publisher.start()
    serving = asyncio.create_task(server.serve())
    waiting = asyncio.create_task(asked.wait())
    feeling = asyncio.create_task(feel_pulse())
    await asyncio.wait({serving, waiting, wedged}, return_when=asyncio.FIRST_COMPLETED)
    feeling.cancel()
    if wedged.done():
        # What it holds cannot be finished: its senders get no answer, and send it again.
        log.critical("%s: ending, to be started anew", wedged.result())
        waiting.cancel()
        return 1
    if serving.done():
        log.error("the HTTP server ended by itself: is %s:%d taken?", *settings.listen)
        waiting.cancel()
        return 1
    log.info("asked to end: %d uploads are being finished", publisher.waiting)
    health.set_reason("end", "shutting down")
    publisher.drain()
    deadline = loop.time() + DRAIN_TIMEOUT
    while publisher.waiting and loop.time() < deadline:
        await asyncio.sleep(0.02)
    # Answers that were just given are on their way through the event loop and the socket.
    await asyncio.sleep(0.2)
    server.stop()  # type: ignore[no-untyped-call]  # granian's embedded server has no types
    await asyncio.wait({serving}, timeout=5)
    publisher.close()
    return 0


def run(settings: ProducerSettings) -> int:
    """Serve; the process's exit status."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(serve(settings))
