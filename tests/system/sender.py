"""A sender of uploads that keeps a ledger outside the system under test: what it made, and what was acknowledged."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import requests
from system.deployment import NGINX, NODES, Database, wait_for

SENDERS = 6
URLS = [NGINX, f"http://{NODES['node1']}:8080", f"http://{NODES['node2']}:8080"]


def new_vin() -> str:
    """A VIN nobody else has."""
    return f"T{uuid.uuid4().hex.upper()[:16]}"


def reading(seq: int, speed: float = 1.0) -> dict[str, Any]:
    """A record with values that tell its seq."""
    return {"seq": seq, "timestamp": 1.7e9 + seq / 8, "position_x": seq, "position_y": -seq / 3, "position_z": 0.1, "speed": speed}


def upload(vin: str, seqs: range | list[int], epoch: int = 1, **more: Any) -> dict[str, Any]:
    """An upload of some seqs."""
    return {"vin": vin, "epoch": epoch, "make": "Ford", "model": "F-150", "records": [reading(seq) for seq in seqs]} | more


def post(document: Any, url: str = NGINX) -> requests.Response:
    """POST an upload as JSON."""
    return requests.post(f"{url}/events", json=document, timeout=30)


class Sender(threading.Thread):
    """One vehicle: one upload in flight, sent again until it is acknowledged."""

    def __init__(self, stop: threading.Event) -> None:
        super().__init__(daemon=True)
        self.vin, self.epoch = new_vin(), random.randrange(1, 2**53)
        self.acknowledged = 0
        self.uploads = 0
        self.seconds: list[float] = []
        """How long each try took until its answer."""
        self._finish = stop

    def run(self) -> None:
        """Send until told to stop; the last upload is brought to its end."""
        urls = itertools.cycle(URLS)
        url = next(urls)
        while not self._finish.is_set():
            size = random.randrange(1, 8)
            document = upload(self.vin, range(self.acknowledged + 1, self.acknowledged + 1 + size), self.epoch)
            while True:
                begun = time.monotonic()
                try:
                    answer = post(document, url)
                    self.seconds.append(time.monotonic() - begun)
                    if answer.status_code == 200 and answer.json()["acked_through"] == self.acknowledged + size:
                        break
                except requests.RequestException:
                    self.seconds.append(time.monotonic() - begun)
                    url = next(urls)
                time.sleep(0.2)
            self.uploads += 1
            self.acknowledged += size
            time.sleep(0.02)


@contextmanager
def driving() -> Iterator[list[Sender]]:
    """Senders that send while something happens, and are brought to their end."""
    stop = threading.Event()
    senders = [Sender(stop) for _ in range(SENDERS)]
    for sender in senders:
        sender.start()
    try:
        wait_for("all senders", lambda: all(sender.acknowledged for sender in senders))
        yield senders
    finally:
        stop.set()
        for sender in senders:
            sender.join(60)
            assert not sender.is_alive()


def check(database: Database, senders: list[Sender]) -> None:
    """Every acknowledged record is in diag once, in order, and nothing else is."""
    for sender in senders:
        check_one(database, sender)


def check_one(database: Database, sender: Sender) -> None:
    """The same of one sender."""
    where = f"vin = '{sender.vin}' AND epoch = {sender.epoch}"
    count = f"SELECT count(*) FROM diag WHERE {where}"
    wait_for(f"the rows of {sender.vin}", lambda: database.value(count) >= sender.acknowledged, 90)
    seqs = [row[0] for row in database.rows(f"SELECT seq FROM diag WHERE {where} ORDER BY id")]
    assert seqs == list(range(1, sender.acknowledged + 1))
    assert database.value(f"SELECT count(*) FROM gap WHERE {where}") == 0
