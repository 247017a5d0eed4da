"""The ledger: what each vehicle of the proof made, what was acknowledged, and what was seen meanwhile.

It is kept by the sender alone, and is the only source of what is expected. One JSON file a round.
"""

from __future__ import annotations

import json
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

MAKE, MODEL = "Tachograph", "verify"
"""Of all records of the proof."""
PLANTED, REJECTED = "planted", "rejected"
"""Reasons of gaps: dropped on purpose before sending, and refused by the server."""


class Reading(NamedTuple):
    """One record as it was made: seq, seconds since 1970 (UTC), metres, and metres per second."""

    seq: int
    timestamp: float
    position_x: float
    position_y: float
    position_z: float
    speed: float


VALUES = Reading._fields[1:]
"""A record's fields beside its seq; the proof compares all of them."""


@dataclass
class Entry:
    """One vehicle. A form client has epoch 0 and its seqs are microseconds."""

    vin: str
    epoch: int
    made: list[Reading] = field(default_factory=list)
    gaps: list[tuple[int, int, str]] = field(default_factory=list)
    """First seq, last seq, reason."""
    acknowledged: list[tuple[int, int]] = field(default_factory=list)
    """Ranges of seqs answered 200, in order."""
    unexpected: list[dict[str, Any]] = field(default_factory=list)
    """Refusals of good records."""


@dataclass
class Ledger:
    """One round. All times are seconds since 1970 (UTC)."""

    instance: str
    seed: str
    epoch: int
    begun: float
    ended: float = 0.0
    rate: float = 0.0
    """Records made a second in all; 0 when as many as are acknowledged."""
    entries: list[Entry] = field(default_factory=list)
    fleet: list[str] = field(default_factory=list)
    """VINs of the product's own vehicles, as their hosts named them when the round began."""
    uploads: list[tuple[float, float, int, int]] = field(default_factory=list)
    """When posted, when answered, number of the vehicle, HTTP status (0 is no answer)."""
    stored: list[tuple[float, int | None, int]] = field(default_factory=list)
    """When asked, seqs that the database's progress knew of (None when it did not answer), and seqs acknowledged by then."""
    polls: list[tuple[float, float, str, bool | None, str]] = field(default_factory=list)
    """When asked, when answered, URL, ready or not (None: no answer), and why not."""
    bodies: list[str] = field(default_factory=list)
    """The different answers that were not 200, cut to 500 characters."""
    topic_ids: list[str] = field(default_factory=list)
    """Of the topic that was written to: the ledger holds for a database that knows them."""
    undelivered: int = 0
    lag: int | None = None
    """Kafka records that consumers were behind at the end."""

    def save(self, path: Path) -> None:
        """Write the file, whole or not at all."""
        new = path.with_suffix(".new")
        new.write_text(json.dumps(asdict(self)))
        os.replace(new, path)

    @classmethod
    def load(cls, path: Path) -> Ledger:
        """Read a file that save() wrote."""
        values = json.loads(path.read_text())
        values["entries"] = [
            Entry(
                each["vin"],
                each["epoch"],
                [Reading(*reading) for reading in each["made"]],
                [(first, last, reason) for first, last, reason in each["gaps"]],
                [(first, last) for first, last in each["acknowledged"]],
                each["unexpected"],
            )
            for each in values["entries"]
        ]
        for name in ("uploads", "stored", "polls"):
            values[name] = [tuple(each) for each in values[name]]
        # Ledgers outlive an update: earlier ones do not say when a poll was answered
        values["polls"] = [each if len(each) == 5 else (each[0], *each) for each in values["polls"]]
        return cls(**values)
