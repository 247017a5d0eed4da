"""The vehicles' process: their host, and the connections to nginx."""

from __future__ import annotations

import asyncio
import logging
import signal

import aiohttp
import uvloop

from telemetry import health as healths
from telemetry.health import Health
from telemetry.metrics import VehicleMetrics
from telemetry.settings import VehicleSettings
from telemetry.vehicle.host import Host
from telemetry.vehicle.spool import Bound, Spool, SpoolError, SpoolThread
from telemetry.vehicle.vehicle import POST_TIMEOUT, Answer, Post, Tools

log = logging.getLogger(__name__)

CONNECT_TIMEOUT = 5.0
LONGEST_RETRY_AFTER = 60.0
"""Seconds that an answer may ask to wait; more is taken as this."""
CONNECTIONS = 100
"""At most this many in all, shared evenly by the nginx hosts: one that hangs does not take them from the others."""
MAX_ANSWER = 1_048_576
WATCHDOG_INTERVAL = 1.0


def make_session(urls: tuple[str, ...]) -> aiohttp.ClientSession:
    """Connections that are kept and bounded. No cookie is kept and nothing is unpacked: answers are a line of JSON."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(
            limit=CONNECTIONS, limit_per_host=max(1, CONNECTIONS // len(urls)), keepalive_timeout=60, ttl_dns_cache=10
        ),
        timeout=aiohttp.ClientTimeout(total=POST_TIMEOUT, sock_connect=CONNECT_TIMEOUT),
        headers={"Content-Type": "application/json", "Accept-Encoding": "identity"},
        cookie_jar=aiohttp.DummyCookieJar(),
        auto_decompress=False,
    )


def make_post(session: aiohttp.ClientSession) -> Post:
    """Posting by aiohttp."""

    async def post(url: str, body: bytes) -> Answer:
        try:
            async with session.post(url, data=body, allow_redirects=False) as response:
                content = bytearray()
                async for chunk in response.content.iter_any():
                    content += chunk
                    if len(content) > MAX_ANSWER:
                        break
                after = response.headers.get("Retry-After", "0")
                return Answer(response.status, bytes(content), min(LONGEST_RETRY_AFTER, float(after)) if after.isdecimal() else 0.0)
        except (aiohttp.ClientError, TimeoutError, OSError) as error:
            log.debug("POST %s: %s", url, error)
            return Answer(0)

    return post


async def watch(spool: SpoolThread) -> None:
    """Watch the spool's thread, for ever. Raises SpoolError when it has ended or hangs: the process ends, to be started again."""
    while True:
        await asyncio.sleep(WATCHDOG_INTERVAL)
        spool.check(WATCHDOG_INTERVAL)


async def drive(settings: VehicleSettings) -> int:
    """Run this host's vehicles until SIGTERM or SIGINT."""
    loop = asyncio.get_running_loop()
    health = Health("vehicle", settings.name, settings.version)
    asked = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    bound = Bound(settings.spool_max_bytes, settings.spool_max_hours)
    try:
        spool = SpoolThread(Spool(settings.spool_dir, settings.counter_dir, bound=bound))
    except SpoolError as error:
        log.error("%s", error)
        return 1
    status = 1
    try:
        async with make_session(settings.urls) as session, asyncio.TaskGroup() as group:
            # A vehicle's task that fails ends the group, and with it the process: no vehicle stands still unnoticed.
            host = Host(
                Tools(settings, spool, make_post(session), health, VehicleMetrics(health.registry), spawn=group.create_task)
            )
            app = healths.make_app(health)
            app.route("/fleet", "GET", lambda: healths.as_json(200, host.state()))
            try:
                healths.serve(app, *settings.listen)
            except OSError as error:
                log.error("%s:%d cannot be listened on: %s", *settings.listen, error.strerror)
            else:
                await host.measure_once()
                watches = [group.create_task(each) for each in (host.watch(), host.measure(), watch(spool))]
                await asked.wait()
                for task in watches:
                    task.cancel()
                await host.end()
                status = 0
    except* Exception as errors:
        log.error("cannot go on: %s", "; ".join(map(repr, errors.exceptions)))
    try:
        await spool.close()
    except SpoolError as error:
        log.error("%s", error)
        status = 1
    return status


def run(settings: VehicleSettings) -> int:
    """Drive; the process's exit status."""
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(drive(settings))
