"""Alive, ready, version, metrics: the same four routes for every service.

Alive means that the process runs. Ready means that it can do its work now; while it cannot, reasons say why. What works in
part is `degraded`, and still ready.
"""

from __future__ import annotations

import json
import logging
import threading
from collections.abc import Callable
from enum import StrEnum
from socketserver import ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

import bottle
from prometheus_client import CollectorRegistry
from prometheus_client.exposition import CONTENT_TYPE_LATEST, generate_latest

from telemetry.metrics import ServiceMetrics

log = logging.getLogger(__name__)


class Reason(StrEnum):
    """Why a service is not ready, or works in part only: the key under which the cause is told and cleared."""

    START = "start"
    """It is still starting."""
    END = "end"
    """It was asked to end."""
    KAFKA = "kafka"
    """No broker can be reached, or the topic is not there."""
    CLIENT = "client"
    """The Kafka client ended in an error, or is stuck."""
    TOPIC = "topic"
    """The live topic is weaker than the promise."""
    PARTITIONS = "partitions"
    """Partitions have too few replicas in sync."""
    PUBLISH = "publish"
    """Kafka does not confirm uploads."""
    GROUP = "group"
    """The consumer group has not handed out partitions."""
    POSTGRES = "postgres"
    """Nothing can be written."""
    STOPPED = "stopped"
    """A partition must not be read on; one for each, see `of`."""
    LEADER = "leader"
    """The leader of a partition does not answer; one for each, see `of`."""
    CLOCK = "clock"
    """The database's clock and this host's are far apart."""
    UNREAD = "unread"
    """What is unread is so old that Kafka may delete it; one for each partition, see `of`."""
    MEMBERS = "members"
    """Others than consumers are members of the consumer group."""
    RETENTION = "retention"
    """Old days are not dropped."""
    DELIVERY = "delivery"
    """Uploads are not acknowledged."""
    REFUSED = "refused"
    """The uploads of a vehicle are refused; one for each, see `of`."""
    SPOOL = "spool"
    """The spool cannot be written."""
    DROPPED = "dropped"
    """The spool is at its bound."""
    FLEET = "fleet"
    """The fleet file cannot be used."""

    def of(self, what: object) -> str:
        """The key for one of several."""
        return f"{self} {what}"


class Health:
    """A service's state, told by any thread and read by the routes."""

    def __init__(self, service: str, name: str, version: str) -> None:
        self.service, self.name, self.version = service, name, version
        self.registry = CollectorRegistry()
        self.live: dict[str, str] = {}
        """SHA-256 of each live file in force, by name."""
        self._reasons: dict[str, str] = {Reason.START: "starting"}
        self._degraded: dict[str, str] = {}
        self._lock = threading.Lock()
        metrics = ServiceMetrics(self.registry)
        metrics.ready.set_function(lambda: not self._reasons)
        metrics.info.labels(service, name, version).set(1)

    def set_reason(self, key: str, text: str) -> None:
        """Not ready, because of text; key names the cause, so that it can be cleared."""
        with self._lock:
            known = self._reasons.get(key)
            self._reasons[key] = text
        if known != text:
            log.warning("not ready: %s", text)

    def clear(self, key: str) -> None:
        """The cause is gone."""
        with self._lock:
            known = self._reasons.pop(key, None)
            last = not self._reasons
        if known is not None:
            log.info("no longer: %s%s", known, "; ready" if last else "")

    def set_degraded(self, key: str, text: str | None) -> None:
        """Something works in part only; None when it is whole again."""
        with self._lock:
            if text is None:
                self._degraded.pop(key, None)
            else:
                self._degraded[key] = text

    def readiness(self) -> dict[str, Any]:
        """The body of /readyz."""
        with self._lock:
            return {
                "ready": not self._reasons,
                "reasons": sorted(self._reasons.values()),
                "degraded": sorted(self._degraded.values()),
            }


def as_json(status: int, body: Any) -> bottle.HTTPResponse:
    """An answer as JSON."""
    return bottle.HTTPResponse(json.dumps(body) + "\n", status, {"Content-Type": "application/json"})


def make_app(health: Health) -> bottle.Bottle:
    """The four routes, and JSON in place of Bottle's pages for what goes wrong."""
    app = bottle.Bottle()

    def healthz() -> bottle.HTTPResponse:
        return bottle.HTTPResponse("ok\n", 200, {"Content-Type": "text/plain"})

    def readyz() -> bottle.HTTPResponse:
        body = health.readiness()
        return as_json(200 if body["ready"] else 503, body)

    def version() -> bottle.HTTPResponse:
        body = {"service": health.service, "name": health.name, "version": health.version, "live": health.live}
        return as_json(200, body)

    def metrics() -> bottle.HTTPResponse:
        return bottle.HTTPResponse(generate_latest(health.registry), 200, {"Content-Type": CONTENT_TYPE_LATEST})

    def error(answer: bottle.HTTPError) -> str:
        bottle.response.content_type = "application/json"
        known = {
            404: ("not_found", "There is nothing here. Uploads go to POST /events."),
            405: ("method_not_allowed", "This path does not take this method."),
        }
        word, message = known.get(answer.status_code, ("internal", "An error that is ours; the log of this service names it."))
        return json.dumps({"error": word, "message": message}) + "\n"

    for path, handler in (("/healthz", healthz), ("/readyz", readyz), ("/version", version), ("/metrics", metrics)):
        app.route(path, "GET", handler)
    app.default_error_handler = error
    return app


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True
    request_queue_size = 64


class _Quiet(WSGIRequestHandler):
    timeout = 10

    def log_message(self, format: str, *args: Any) -> None:
        """Nothing: a probe a second would fill the log."""


def serve(app: Callable[..., Any], host: str, port: int) -> WSGIServer:
    """Serve a health app in a thread of its own; for services that are no HTTP servers otherwise.

    Raises OSError when the address is taken.
    """
    server = make_server(host, port, app, server_class=_Server, handler_class=_Quiet)
    threading.Thread(target=server.serve_forever, name="health", daemon=True).start()
    return server
