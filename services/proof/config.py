"""What the playbook tells the proof, and the way to the database."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psycopg2


@dataclass
class Config:
    """What the playbook tells; DIR/config.json."""

    instance: str
    seed: str
    records: int
    rate: float
    vehicles: int
    forms: int
    urls: list[str]
    services: list[str]
    consumers: list[str]
    topic: str
    postgres: dict[str, Any]
    password_file: str
    vehicle_hosts: list[str] = field(default_factory=list)
    changes: bool = False
    """Whether hosts and services come and go meanwhile."""

    def connect(self, seconds: int = 30) -> Any:
        """The database, as its reader. A round is not lost because a machine under load takes some seconds to let somebody in."""
        password = Path(self.password_file).read_text().strip()
        limits = {"connect_timeout": seconds, "tcp_user_timeout": 2000 * seconds, "options": "-c statement_timeout=20s"}
        connection = psycopg2.connect(**{**limits, **self.postgres}, password=password, application_name="verify")
        connection.autocommit = True
        return connection
