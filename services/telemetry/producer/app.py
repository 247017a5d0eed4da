"""The producer's routes. 200 is answered when every in-sync replica holds the upload, and not before.

Handlers parse, validate and hand over; they never block. The promise of the publisher stays in the WSGI environ, and the
adapter in asgi.py sends the handler's answer when it is kept.
"""

from __future__ import annotations

import time

import bottle

from telemetry import health as healths
from telemetry.health import Health
from telemetry.metrics import ProducerMetrics
from telemetry.producer.asgi import PROMISE
from telemetry.producer.publisher import Publisher
from telemetry.record import Refused, Upload, encode, parse_form, parse_json

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
    metrics = ProducerMetrics(health.registry)
    metrics.waiting.set_function(lambda: publisher.waiting)
    served = 0

    def acknowledged(upload: Upload, begun: float, outcome: Refused | None) -> None:
        nonlocal served
        metrics.seconds.observe(time.perf_counter() - begun)
        if outcome is None:
            served += len(upload.records)
            metrics.records.inc(len(upload.records))
            metrics.uploads.labels("200", "").inc()
        else:
            metrics.uploads.labels(str(outcome.status), outcome.error).inc()

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
            metrics.uploads.labels(str(refused.status), refused.error).inc()
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
