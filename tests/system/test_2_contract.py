"""The real Postgres and Kafka keep the contract that those in memory keep, and Postgres what its schema promises."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

from system.deployment import BOOTSTRAP, INSTANCE, ROOT, container


def test_what_is_asked_of_memory_is_kept_by_the_real_ones_too(summary: dict[str, Any]) -> None:
    connection = {
        "host": summary["postgres"]["host"],
        "port": summary["postgres"]["port"],
        "dbname": summary["postgres"]["database"],
        "user": "telemetry_writer",
        "password": (ROOT / "secrets" / INSTANCE / "postgres_writer").read_text().strip(),
    }
    psql = ["docker", "exec", "-i", container("postgres", "node1"), "psql"]
    given = {
        "TACHOGRAPH_TEST_POSTGRES": json.dumps(connection),
        "TACHOGRAPH_TEST_PSQL": json.dumps(psql),
        "TACHOGRAPH_TEST_KAFKA": ",".join(BOOTSTRAP),
    }
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-W", "ignore", "tests/contract"],
        cwd=ROOT,
        env=os.environ | given,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout[-20000:]
    assert "deselected" not in done.stdout
