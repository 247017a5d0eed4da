"""The producer's routes. 200 is answered when every in-sync replica holds the upload, and not before.

Handlers parse, validate and hand over; they never block. The promise of the publisher stays in the WSGI environ, and the
adapter in asgi.py sends the handler's answer when it is kept. Meanwhile only numbers wait here: the publisher has the upload.
"""

from __future__ import annotations

import asyncio
import time
from functools import partial

import bottle

from telemetry import health as healths
from telemetry.health import Health
from telemetry.metrics import ProducerMetrics
from telemetry.producer.asgi import PROMISE
from telemetry.producer.publisher import Publisher
from telemetry.record import Refused, encode, parse_form, parse_json

PARSERS = {"application/json": parse_json, "application/x-www-form-urlencoded": parse_form}


def make_app(publisher: Publisher, health: Health) -> bottle.Bottle:
    """The producer's routes beside those of health.py."""
    app = healths.make_app(health)
    metrics = ProducerMetrics(health.registry)
    metrics.waiting.set_function(lambda: publisher.waiting)

    def answered(begun: float, records: int, promise: asyncio.Future[Refused | None]) -> None:
        if promise.cancelled():
            return
        metrics.seconds.observe(time.perf_counter() - begun)
        refused = promise.result()
        if refused is None:
            metrics.records.inc(records)
            metrics.uploads.labels("200", "").inc()
        else:
            metrics.uploads.labels(str(refused.status), refused.error).inc()

    def post() -> bottle.HTTPResponse:
        begun = time.perf_counter()
        request = bottle.request.environ
        kind = request.get("CONTENT_TYPE", "").partition(";")[0].strip().lower()
        try:
            if request.get("HTTP_CONTENT_ENCODING", "identity").strip().lower() not in ("", "identity"):
                raise Refused(415, "unsupported_encoding", "Send the body as it is, without a Content-Encoding.")
            parse = PARSERS.get(kind)
            if parse is None:
                raise Refused(415, "unsupported_type", f"Send one of {', '.join(PARSERS)} as Content-Type.")
            body = request["wsgi.input"].read()
            upload = parse(body)
            # A form becomes an upload; the body of a JSON upload is one already and travels as it came.
            value = body if parse is parse_json else encode(upload)
            promise = publisher.publish(upload.vin.encode(), value)
        except Refused as refused:
            metrics.uploads.labels(str(refused.status), refused.error).inc()
            return bottle.HTTPResponse(refused.encoded(), refused.status, refused.headers)
        promise.add_done_callback(partial(answered, begun, len(upload.records)))
        request[PROMISE] = promise
        return healths.as_json(
            200, {"vin": upload.vin, "epoch": upload.epoch, "acked_through": upload.last_seq, "records": len(upload.records)}
        )

    def get() -> bottle.HTTPResponse:
        served = int(health.registry.get_sample_value("telemetry_records_total") or 0)
        text = f"Welcome to Tachograph. POST your records here.\nEvents served: {served}\n"
        return bottle.HTTPResponse(text, 200, {"Content-Type": "text/plain; charset=utf-8"})

    app.route("/events", "POST", post)
    app.route("/events", "GET", get)
    return app
