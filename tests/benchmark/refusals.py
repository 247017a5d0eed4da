"""What the dearest refused body costs beside a good one of its size: `python -m benchmark.refusals`.

The dearest is searched for in this process: each kind of fault in many sizes, then at random. The worst of each kind is sent to
a real producer, beside a good upload of its size that a broker acknowledges, and what counts is the CPU time of that process.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import logging
import os
import random
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from telemetry.health import Health
from telemetry.producer.app import make_app
from telemetry.producer.asgi import Adapter
from telemetry.producer.publisher import FakePublisher
from telemetry.record import MAX_BODY

from benchmark.producer_memory import PRODUCER_PORT, producing, upload

VIN = "1M8GDM9AXKP042788"
VALUES = '"timestamp":1.5,"position_x":1,"position_y":2,"position_z":3,"speed":4'
ESCAPE = '"' + "\\u0041" * 6 + '"'
JSON_TYPE, FORM_TYPE = "application/json", "application/x-www-form-urlencoded"

Body = Callable[[int, int], str]
"""A body of so many items, each with so much of its fault."""


def _envelope(records: str, gaps: str = "", make: str = '"Ford"') -> str:
    return f'{{"vin":"{VIN}","epoch":5,"make":{make},"model":"F","records":[{records}],"gaps":[{gaps}]}}'


def _records(one: Callable[[int], str]) -> Body:
    """Records whose fields are what `one` makes."""
    return lambda items, much: _envelope(",".join(f'{{"seq":{seq},{one(much)}}}' for seq in range(1, items + 1)))


def _gaps(last: str) -> Body:
    def body(items: int, much: int) -> str:
        gaps = [f'{{"from_seq":{seq},"to_seq":{seq},"reason":"{"x" * min(much, 90)}"}}' for seq in range(2, items + 1)]
        return _envelope(f'{{"seq":1,{VALUES}}}', ",".join([*gaps, last]))

    return body


KINDS: dict[str, Body] = {
    "records of nothing": lambda items, much: _envelope(",".join(["{}"] * items)),
    "records of a seq": lambda items, much: _envelope(",".join(f'{{"seq":{seq}}}' for seq in range(1, items + 1))),
    "a record that lacks its last field": _records(lambda much: VALUES.rpartition(",")[0]),
    "unknown fields": _records(lambda much: ",".join(f'"u{n}":1' for n in range(much + 1))),
    "unknown fields behind the known": _records(lambda much: VALUES + "," + ",".join(f'"u{n}":1' for n in range(much + 1))),
    "unknown fields with escapes": _records(lambda much: ",".join(f'"\\u00e9{n}\\n":{ESCAPE}' for n in range(much + 1))),
    "long names": _records(lambda much: f'"{"n" * much}":1'),
    "1e400": _records(lambda much: VALUES.replace("1.5", "1e400")),
    "1e400 at the end": _records(lambda much: VALUES.replace(":4", ":1e400")),
    "long digits": _records(lambda much: VALUES.replace(":4", ":" + "7" * (much + 400))),
    "numbers as text": _records(lambda much: VALUES.replace(":4", ':"' + "4" * much + '"')),
    "text with escapes": _records(lambda much: VALUES.replace(":4", ':"' + "\\u0041" * much + '"')),
    "nested arrays": _records(lambda much: VALUES.replace(":4", ":" + "[" * (much + 1) + "]" * (much + 1))),
    "nested objects": _records(lambda much: VALUES.replace(":4", ":" + '{"a":' * (much + 1) + "1" + "}" * (much + 1))),
    "a bad make": lambda items, much: _envelope(
        ",".join(f'{{"seq":{seq},{VALUES}}}' for seq in range(1, items + 1)), make='"' + "x" * (much + 21) + '"'
    ),
    "a bad make of short records": lambda items, much: _envelope(
        ",".join(f'{{"seq":{seq}}}' for seq in range(1, items + 1)), make='"' + "\\u0041" * (much + 21) + '"'
    ),
    "a seq of long digits": lambda items, much: _envelope(",".join(f'{{"seq":{"1" * (much + 1)}}}' for _ in range(items))),
    "an uncovered seq at the end": lambda items, much: _envelope(
        ",".join(f'{{"seq":{seq},{VALUES}}}' for seq in [*range(1, items + 1), items + 2])
    ),
    "gaps, and one that is faulty": _gaps('{"from_seq":1}'),
    "gaps, and one without a reason": _gaps('{"from_seq":9,"to_seq":9,"reason":""}'),
    "gaps, and one twice": _gaps('{"from_seq":2,"to_seq":2,"reason":"x"}'),
    "gaps of nothing": lambda items, much: _envelope("", ",".join(["{}"] * items)),
    "numbers for records": lambda items, much: _envelope(",".join(["1"] * items * (much + 1))),
    "unknown fields of the upload": lambda items, much: "{" + ",".join(f'"f{n}":{"1" * (much + 1)}' for n in range(items)) + "}",
    "deep arrays": lambda items, much: "[" * (items * (much + 1)),
    "deep objects": lambda items, much: '{"a":' * (items * (much + 1)),
    "a long text": lambda items, much: '"' + "\\u0041" * (items * (much + 1)) + '"',
    "a long number": lambda items, much: "1" * (items * (much + 1)),
    "cut off": lambda items, much: _envelope(",".join(f'{{"seq":{seq},{VALUES}}}' for seq in range(1, items + 1)))[:-1],
    "not UTF-8 at the end": lambda items, much: _records(lambda much: VALUES)(items, much)[:-1] + '"\udc80"',
}
FORMS: dict[str, Body] = {
    "a form of escapes": lambda items, much: "make=" + "%41" * (items * (much + 1)),
    "a form of fields": lambda items, much: "&".join(f"a{n}=1" for n in range(items * (much + 1))),
    "a form of long digits": lambda items, much: (
        f"timestamp={'1' * items * (much + 1)}&vin={VIN}&make=F&model=F&position=1&position=2&position=3&speed=4"
    ),
}


class Worst(NamedTuple):
    """A body that is dear to refuse."""

    ratio: float
    words: str
    body: bytes
    content_type: str


class Costs:
    """Measures requests."""

    def __init__(self, repeats: int) -> None:
        self._repeats = repeats
        health = Health("producer", "benchmark", "0")
        publisher = FakePublisher(health, queue_uploads=10, queue_bytes=2**40)
        self._published = publisher.published
        self._adapter = Adapter(make_app(publisher, health), publisher.note_refused)
        self._runner = asyncio.Runner()

    def close(self) -> None:
        """End the event loop."""
        self._runner.close()

    def measure(self, body: bytes, kind: str) -> tuple[int, float, int]:
        """Status, microseconds of CPU and bytes of the answer; the least of some tries."""
        return self._runner.run(self._measure(body, kind))

    async def _measure(self, body: bytes, kind: str) -> tuple[int, float, int]:
        best, sent = float("inf"), []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body}

        async def send(message: dict[str, Any]) -> None:
            sent.append(message)

        scope = {"type": "http", "method": "POST", "path": "/events", "headers": [(b"content-type", kind.encode())]}
        for _ in range(self._repeats):
            sent.clear()
            self._published.clear()
            begun = time.thread_time()
            await self._adapter(scope, receive, send)
            best = min(best, time.thread_time() - begun)
        return sent[0]["status"], best * 1e6, len(sent[1]["body"])


def good(size: int) -> bytes:
    """An upload of this size: up to 1,000 records, then up to 1,000 gaps."""
    body = upload(0, records := min(1000, max(1, size // 138)))
    if records < 1000 or size < len(body) + 100:
        return body
    reason = "x" * 90
    gaps = [
        f'{{"from_seq":{seq},"to_seq":{seq},"reason":"{reason}"}}'
        for seq in range(records + 1, records + 1 + min(1000, (size - len(body)) // 130))
    ]
    return body.replace(b'"gaps":[]', f'"gaps":[{",".join(gaps)}]'.encode())


async def cpu(host: str, process: int, body: bytes, kind: str, requests: int) -> tuple[int, float]:
    """Status, and microseconds of the producer's CPU time for one of so many requests, sixteen at a time."""
    statuses: Counter[int] = Counter()

    async def send(count: int) -> None:
        reader, writer = await asyncio.open_connection(host, PRODUCER_PORT)
        head = f"POST /events HTTP/1.1\r\nHost: x\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n".encode()
        for _ in range(count):
            writer.write(head + body)
            lines = (await reader.readuntil(b"\r\n\r\n")).decode().lower().split("\r\n")
            await reader.readexactly(next(int(line.split(":")[1]) for line in lines if line.startswith("content-length:")))
            statuses[int(lines[0].split()[1])] += 1
        writer.close()

    before = used(process)
    await asyncio.gather(*(send(requests // 16) for _ in range(16)))
    [status] = statuses
    return status, (used(process) - before) * 1e6 / sum(statuses.values())


def used(process: int) -> float:
    """Seconds of CPU time that a process has had."""
    fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def compare(host: str, worst: Sequence[Worst], requests: int) -> list[tuple[float, str]]:
    """Ratio and words for each, the dearest first."""
    found = []
    async with producing(host, False, {}) as process:
        await cpu(host, process.pid, good(6840), JSON_TYPE, requests)
        for each in worst:
            status, cost = await cpu(host, process.pid, each.body, each.content_type, requests)
            fair = good(len(each.body))
            acknowledged, good_cost = await cpu(host, process.pid, fair, JSON_TYPE, requests)
            assert (acknowledged, status in (400, 422)) == (200, True)
            words = f"{each.words}: {len(each.body)} bytes, {status}, {cost:.0f} us; good, {len(fair)} bytes, {good_cost:.0f} us"
            found.append((cost / good_cost, words))
    return sorted(found, reverse=True)


def bodies(rng: random.Random, seconds: float) -> Iterator[tuple[str, int, int, bytes, str]]:
    """Kind, items, how much of the fault, body, content type: first a grid, then at random."""
    grid = [(items, much) for items in (1, 10, 100, 300, 1000, 5000, 80_000) for much in (0, 3, 10, 30, 100, 1000, 100_000)]
    every = KINDS | FORMS
    end = time.monotonic() + seconds

    def endless() -> Iterator[tuple[str, int, int]]:
        yield from ((kind, items, much) for kind in every for items, much in grid)
        while time.monotonic() < end:
            yield rng.choice(list(every)), int(10 ** rng.uniform(0, 4.5)), int(10 ** rng.uniform(0, 3)) - 1

    for kind, items, much in endless():
        # What is far too large need not be made
        if items * max(1, much // 4) > MAX_BODY:
            continue
        body = every[kind](items, much).encode("utf-8", "surrogateescape")
        if len(body) <= MAX_BODY:
            yield kind, items, much, body, FORM_TYPE if kind in FORMS else JSON_TYPE


def search(seconds: float, repeats: int, seed: int = 0) -> tuple[list[Worst], int]:
    """The dearest of each kind for its bytes, the dearest first; and the bytes of the largest answer."""
    logging.disable(logging.CRITICAL)
    costs = Costs(repeats)
    worst: dict[str, Worst] = {}
    largest = 0
    for kind, items, much, body, content_type in bodies(random.Random(seed), seconds):
        status, cost, answer = costs.measure(body, content_type)
        if status == 200:
            continue
        largest = max(largest, answer)
        # 200 us for an upload, and 1 us for each 400 bytes of it
        ratio = cost / (200 + len(body) / 400)
        if kind not in worst or ratio > worst[kind].ratio:
            worst[kind] = Worst(ratio, f"{kind}, {items} x {much}", body, content_type)
    costs.close()
    logging.disable(logging.NOTSET)
    return sorted(worst.values(), key=lambda each: -each.ratio), largest


def main(arguments: Sequence[str]) -> int:
    """Print the dearest; 1 if one costs more than 5 times a good one, or an answer is larger than 128 KiB."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--host", default="127.0.0.1", help="a loopback address with ports 15001 and 19092 free")
    parser.add_argument("--seconds", type=float, default=20, help="of the search at random")
    parser.add_argument("--repeats", type=int, default=5, help="of each request in the search; the quickest counts")
    parser.add_argument("--requests", type=int, default=480, help="to the real producer, of each body")
    parser.add_argument("--most", type=int, default=12, help="bodies that are sent to the real producer")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args(arguments)
    found, largest = search(chosen.seconds, chosen.repeats, chosen.seed)
    compared = asyncio.run(compare(chosen.host, found[: chosen.most], chosen.requests))
    for ratio, words in compared:
        print(f"{ratio:5.2f}  {words}")
    print(json.dumps({"dearest": round(compared[0][0], 2), "largest_answer": largest}))
    return int(compared[0][0] > 5 or largest > 128 * 1024)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
