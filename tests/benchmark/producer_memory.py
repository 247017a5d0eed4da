"""What a producer at its queue's bound takes of memory, while its broker hangs: `python -m benchmark.producer_memory`.

A real producer, a broker that answers everything but produce requests, and more uploads than the queue takes, each of which is sent
again when it was answered. Prints the resident memory beside the container's limit.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import resource
import sys
from collections import Counter
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from telemetry.record import Record, Upload, encode
from telemetry.topic import MIN_MESSAGE_BYTES

from benchmark.broker import Broker

ROOT = Path(__file__).parents[2]
TOPIC, PARTITIONS = "telemetry", 6
PAUSE = 3.0
"""Seconds between an answer and the next upload."""
BROKER_PORT, PRODUCER_PORT = 19092, 15001
CONFIG = {
    "min.insync.replicas": "2",
    "unclean.leader.election.enable": "false",
    "cleanup.policy": "delete",
    "message.timestamp.type": "LogAppendTime",
    "retention.ms": "604800000",
    "retention.bytes": "-1",
    "compression.type": "uncompressed",
    "max.message.bytes": str(MIN_MESSAGE_BYTES),
}


@dataclass
class Figures:
    """What was seen; memory in MiB."""

    idle: float = 0.0
    peak: float = 0.0
    limit: float = 0.0
    most_waiting: int = 0
    answers: Counter[int] = field(default_factory=Counter)
    ready: Any = None
    """/readyz while the queue was full."""


def defaults() -> dict[str, Any]:
    """The role's."""
    found: dict[str, Any] = yaml.safe_load((ROOT / "roles/producer/defaults/main.yml").read_text())
    return found


def upload(number: int, records: int) -> bytes:
    """An upload whose numbers have as many digits as real ones."""
    values = (12345.678901, -2345.678901, 345.678901, 33.123456)
    every = tuple(Record(seq, 1.7e9 + seq * 3.123457, *values) for seq in range(1, records + 1))
    return encode(Upload(f"1M8GDM9AXKP{number % 10**6:06}", 1_700_000_000_000_000, "Ford", "F-150", every))


async def ask(host: str, path: str) -> tuple[int, str]:
    """Status and body of a GET."""
    reader, writer = await asyncio.open_connection(host, PRODUCER_PORT)
    writer.write(f"GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n".encode())
    head, _, body = (await reader.read()).decode().partition("\r\n\r\n")
    writer.close()
    return int(head.split()[1]), body


async def post_forever(host: str, number: int, body: bytes, answers: Counter[int]) -> None:
    """One sender: an upload, its answer, the next; a while later if it was refused at once."""
    reader, writer = await asyncio.open_connection(host, PRODUCER_PORT)
    head = f"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n".encode()
    while True:
        writer.write(head + body)
        lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
        length = next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:"))
        await reader.readexactly(length)
        answers[int(lines[0].split()[1])] += 1
        await asyncio.sleep(PAUSE)


def memory(process: int, name: str) -> float:
    """MiB of a process: VmRSS is what it takes now, VmHWM the most that it took."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith(f"{name}:"))


@contextlib.asynccontextmanager
async def producing(host: str, silent: bool, environment: Mapping[str, str]) -> AsyncIterator[asyncio.subprocess.Process]:
    """A real producer that is ready, with these variables beside its role's defaults, and its broker."""
    settings = defaults()
    server = await Broker(host, BROKER_PORT, TOPIC, PARTITIONS, CONFIG, silent).start()
    variables = {
        "TELEMETRY_NAME": "node1",
        "TELEMETRY_LISTEN": f"{host}:{PRODUCER_PORT}",
        "KAFKA_BOOTSTRAP_SERVERS": f"{host}:{BROKER_PORT}",
        "KAFKA_TOPIC": TOPIC,
        "KAFKA_TOPIC_PARTITIONS": str(PARTITIONS),
        "KAFKA_TOPIC_REPLICATION_FACTOR": "3",
        "KAFKA_TOPIC_MIN_INSYNC_REPLICAS": "2",
        "KAFKA_TOPIC_RETENTION_MS": CONFIG["retention.ms"],
        "PRODUCER_QUEUE_UPLOADS": str(settings["producer_queue_uploads"]),
        "PRODUCER_QUEUE_BYTES": str(settings["producer_queue_bytes"]),
        "PYTHONPATH": str(ROOT / "services"),
    }
    arguments = [sys.executable, "-m", "telemetry", "producer"]
    process = await asyncio.create_subprocess_exec(*arguments, env={**os.environ, **variables, **environment})
    try:
        async with asyncio.timeout(30):
            while True:
                with contextlib.suppress(OSError):
                    if (await ask(host, "/readyz"))[0] == 200:
                        break
                await asyncio.sleep(0.2)
        yield process
        assert process.returncode is None
    finally:
        if process.returncode is None:
            process.kill()
        await process.wait()
        server.close()


async def measure(host: str, records: int, senders: int, seconds: float, environment: Mapping[str, str]) -> Figures:
    """Run a producer whose broker hangs, and as many senders."""
    figures = Figures(limit=float(defaults()["producer_memory"].removesuffix("m")))
    async with producing(host, True, environment) as process:
        figures.idle = memory(process.pid, "VmRSS")
        tasks = [
            asyncio.create_task(post_forever(host, number, upload(number, records), figures.answers)) for number in range(senders)
        ]
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            await asyncio.sleep(0.5)
            _, text = await ask(host, "/metrics")
            waiting = next(line.split()[1] for line in text.splitlines() if line.startswith("telemetry_uploads_waiting "))
            figures.most_waiting = max(figures.most_waiting, int(float(waiting)))
            ready = json.loads((await ask(host, "/readyz"))[1])
            if figures.ready is None or any("too many wait" in each for each in ready["degraded"] + ready["reasons"]):
                figures.ready = ready
        figures.peak = memory(process.pid, "VmHWM")
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    return figures


def main(arguments: Sequence[str]) -> int:
    """Measure uploads of 50 and of 1,000; 1 if either takes 90 % of the limit or more."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address with ports 15001 and 19092 free")
    parser.add_argument("--seconds", type=float, default=15)
    parser.add_argument("--senders", type=int, default=3000)
    parser.add_argument("--records", type=int, nargs="+", default=[50, 1000], help="in an upload, one run after the other")
    parser.add_argument("--queue-uploads", default="", help="in place of the role's default")
    parser.add_argument("--queue-bytes", default="", help="in place of the role's default")
    chosen = parser.parse_args(arguments)
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(65536, hard), hard))
    environment = {}
    if chosen.queue_uploads:
        environment["PRODUCER_QUEUE_UPLOADS"] = chosen.queue_uploads
    if chosen.queue_bytes:
        environment["PRODUCER_QUEUE_BYTES"] = chosen.queue_bytes
    worst = 0.0
    for records in chosen.records:
        found = asyncio.run(measure(chosen.host, records, chosen.senders, chosen.seconds, environment))
        share = found.peak / found.limit
        worst = max(worst, share)
        size, ready = len(upload(0, records)), found.ready
        print(f"uploads of {records} ({size} bytes): {found.peak:.0f} MiB at most, {share:.0%} of {found.limit:.0f} MiB")
        print(f"  {found.idle:.0f} MiB idle, {found.most_waiting} waited at most, answers {dict(found.answers)}, /readyz {ready}")
    return int(worst >= 0.9)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
