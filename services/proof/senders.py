"""The vehicles of the proof: what each makes, what it sends, and what it notes in its entry of the ledger.

Pure: clock and seed are arguments, and who drives them posts what they say.
"""

from __future__ import annotations

import hashlib
import json
import random
from collections import deque
from collections.abc import Sequence
from typing import Any, NamedTuple
from urllib.parse import urlencode

from proof.ledger import MAKE, MODEL, PLANTED, REJECTED, Entry, Reading

UPLOAD_RECORDS = 50
ALPHABET = "ABCDEFGHJKLMNPRSTUVWXYZ0123456789"


class DeclaredGap(NamedTuple):
    """Seqs that will never come, as they are sent."""

    first: int
    last: int
    reason: str


Item = Reading | DeclaredGap


def make_vin(seed: str, number: int) -> str:
    """The VIN of a vehicle: a function of the seed."""
    digest = hashlib.sha256(f"{seed} {number}".encode()).digest()
    return "VF" + "".join(ALPHABET[byte % len(ALPHABET)] for byte in digest[:15])


def last_seq(items: Sequence[Item]) -> int:
    """The last seq of an upload."""
    last = items[-1]
    return last.seq if isinstance(last, Reading) else last.last


class OnceIn:
    """True once in `mean` calls, at random intervals, each shorter than twice the mean, so that every round contains some."""

    def __init__(self, mean: int, rng: random.Random) -> None:
        self._mean, self._rng = mean, rng
        self._left = rng.randrange(1, 2 * mean)

    def __call__(self) -> bool:
        self._left -= 1
        if self._left:
            return False
        self._left = self._rng.randrange(1, 2 * self._mean)
        return True


class Sender:
    """One vehicle of the proof with one upload under way. Memory is its spool: it does not survive its process, and need not."""

    def __init__(self, number: int, entry: Entry, seed: str) -> None:
        self.number, self.entry = number, entry
        self.rng = random.Random(f"{seed} {number}")
        self.queue: deque[Item] = deque()
        self.acked_at = 0.0
        self.acked_through = 0
        self._next, self._last_timestamp = 1, 0.0

    def make(self, now: float, dropped: bool = False, invalid: bool = False) -> None:
        """Make one record: one to be sent, one that is dropped, or one that the server has to refuse."""
        rng, entry = self.rng, self.entry
        timestamp = self._last_timestamp = max(now, self._last_timestamp + 2e-6)
        seq = round(timestamp * 1e6) if entry.epoch == 0 else self._next
        self._next += 1
        speed = -1.0 if invalid else rng.random() * 40
        reading = Reading(seq, timestamp, rng.uniform(-1e5, 1e5), rng.uniform(-1e5, 1e5), rng.random(), speed)
        entry.made.append(reading)
        if dropped:
            entry.gaps.append((seq, seq, PLANTED))
            self.queue.append(DeclaredGap(seq, seq, PLANTED))
        else:
            self.queue.append(reading)

    def upload(self) -> list[Item]:
        """What is sent next: the first items of the queue."""
        return list(self.queue)[: 1 if self.entry.epoch == 0 else UPLOAD_RECORDS]

    def body(self, items: Sequence[Item]) -> tuple[bytes, str]:
        """The items as the wire has them, and their content type."""
        entry = self.entry
        if entry.epoch == 0:
            [reading] = items
            assert isinstance(reading, Reading)
            fields = {**reading._asdict(), "vin": entry.vin, "make": MAKE, "model": MODEL}
            del fields["seq"]
            return urlencode(fields).encode(), "application/x-www-form-urlencoded"
        document = {
            "vin": entry.vin, "epoch": entry.epoch, "make": MAKE, "model": MODEL,
            "records": [item._asdict() for item in items if isinstance(item, Reading)],
            "gaps": [
                {"from_seq": item.first, "to_seq": item.last, "reason": item.reason}
                for item in items
                if isinstance(item, DeclaredGap)
            ],
        }  # fmt: skip
        return json.dumps(document).encode(), "application/json"

    def is_confirmed(self, answer: dict[str, Any], items: Sequence[Item]) -> bool:
        """Whether a 200 names exactly what was sent."""
        wanted = (self.entry.vin, self.entry.epoch, last_seq(items))
        return (answer.get("vin"), answer.get("epoch"), answer.get("acked_through")) == wanted

    def acknowledged(self, items: Sequence[Item], now: float) -> None:
        """Forget what was answered 200."""
        last = last_seq(items)
        self.entry.acknowledged.append((items[0][0], last))
        for _ in items:
            self.queue.popleft()
        self.acked_at = now
        self.acked_through = last

    def rejected(self, items: Sequence[Item], faults: Sequence[dict[str, Any]]) -> None:
        """Set aside what was refused; a good record among it is a finding."""
        refused = {fault.get("seq"): fault for fault in faults}
        for index, item in enumerate(items):
            if isinstance(item, Reading) and item.seq in refused:
                if item.speed >= 0:
                    self.entry.unexpected.append(refused[item.seq])
                self.entry.gaps.append((item.seq, item.seq, REJECTED))
                self.queue[index] = DeclaredGap(item.seq, item.seq, REJECTED)
