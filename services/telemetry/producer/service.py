"""The producer's process: serve until asked to end, then finish what was accepted."""

from __future__ import annotations

import asyncio
import logging
import os
import signal

import uvloop

from telemetry.health import Health, Reason
from telemetry.producer.app import make_app
from telemetry.producer.asgi import Adapter, make_server
from telemetry.producer.publisher import KafkaPublisher
from telemetry.settings import ProducerSettings

log = logging.getLogger(__name__)

DRAIN_TIMEOUT = 12.0
"""Seconds that accepted uploads may take after SIGTERM; longer than any answer."""
WATCHDOG_INTERVAL = 1.0
"""Seconds between two looks at whether the publisher's watch is alive."""


async def serve(settings: ProducerSettings) -> int:
    """Serve until SIGTERM or SIGINT, then finish what was accepted."""
    loop = asyncio.get_running_loop()
    health = Health("producer", settings.name, settings.version)
    wedged: asyncio.Future[str] = loop.create_future()

    def give_up(why: str) -> None:
        if not wedged.done():
            wedged.set_result(why)

    publisher = KafkaPublisher(settings, health, give_up=give_up)
    server = make_server(Adapter(make_app(publisher, health), publisher.note_refused), *settings.listen, settings.queue_uploads)

    async def check_watchdog() -> None:
        while not wedged.done():
            await asyncio.sleep(WATCHDOG_INTERVAL)
            if why := publisher.watchdog.check(WATCHDOG_INTERVAL):
                give_up(why)

    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    publisher.start()
    serving = asyncio.create_task(server.serve())
    waiting = asyncio.create_task(asked.wait())
    checking = asyncio.create_task(check_watchdog())
    await asyncio.wait({serving, waiting, wedged}, return_when=asyncio.FIRST_COMPLETED)
    checking.cancel()
    if wedged.done():
        # What it holds cannot be finished: its senders get no answer, and send it again.
        log.critical("%s: ending, to be started again", wedged.result())
        waiting.cancel()
        return 1
    if serving.done():
        log.error("the HTTP server ended by itself: is %s:%d taken?", *settings.listen)
        waiting.cancel()
        return 1
    log.info("asked to end: %d uploads are being finished", publisher.waiting)
    health.set_reason(Reason.END, "shutting down")
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
        status = runner.run(serve(settings))
    if status:
        # Whatever the client still does, or says of it at the end, does not matter any more
        logging.shutdown()
        os._exit(status)
    return status
