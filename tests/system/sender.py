"""A sender of uploads that keeps a ledger outside the system under test: what it made, and what was acknowledged."""

from __future__ import annotations

import itertools
import random
import threading
import time
import uuid
from typing import Any

import requests
from deployment import NGINX, NODES

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
        self.tries = 0
        self._finish = stop

    def run(self) -> None:
        """Send until told to stop; the last upload is brought to its end."""
        urls = itertools.cycle(URLS)
        url = next(urls)
        while not self._finish.is_set():
            size = random.randrange(1, 8)
            document = upload(self.vin, range(self.acknowledged + 1, self.acknowledged + 1 + size), self.epoch)
            while True:
                self.tries += 1
                try:
                    answer = post(document, url)
                    if answer.status_code == 200 and answer.json()["acked_through"] == self.acknowledged + size:
                        break
                except (requests.RequestException, ValueError):
                    url = next(urls)
                time.sleep(0.2)
            self.acknowledged += size
            time.sleep(0.02)
