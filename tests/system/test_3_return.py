"""A fleet that comes back with an hour's records is no flood: at the real nginx and producers, with the real vehicles."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator

import pytest
import requests
from system.deployment import NODES, PRODUCERS, Database, container, docker, play, wait_for
from system.test_2_fleet import vehicles, whole

FLEET = 200
DELAY = 3
RECORDS = 3600 // DELAY

# Run by the service's own Python on the spool of a host whose vehicles stand still
FILL = """
import sys, time
from telemetry.record import Record
from telemetry.vehicle.spool import Made, Spool

count, delay = int(sys.argv[1]), float(sys.argv[2])
spool = Spool("/var/lib/telemetry/spool", "/var/lib/telemetry/counter")
with spool.transaction():
    for vin in sys.stdin.read().split():
        epoch, seq, last = spool.join(vin)
        begin = max(last, time.time() - 10 * count * delay)
        for number in range(count):
            record = Record(seq + number, begin + delay * (number + 1), float(number), 0.0, 0.0, 1.0)
            spool.append(Made(vin, epoch, "Ford", "F-150", record), time.time())
spool.close()
"""


def fill(node: str, vins: list[str]) -> None:
    """Put an hour's records into the spool of a vehicle host that is stopped."""
    name = container("vehicle", node)
    image, user = docker("inspect", "--format", "{{.Config.Image}} {{.Config.User}}", name).split()
    docker(
        "run", "--rm", "--interactive", "--network=none", f"--user={user}", f"--volumes-from={name}", image,
        "python", "-c", FILL, str(RECORDS), str(DELAY), stdin="\n".join(vins),
    )  # fmt: skip


def posts() -> float:
    """POSTs that all producers have answered since their start."""
    texts = [requests.get(f"{url}/metrics", timeout=5).text for url in PRODUCERS]
    found = [re.findall(r"^telemetry_uploads_total\{.*\} (\S+)$", text, re.MULTILINE) for text in texts]
    return sum(float(value) for values in found for value in values)


def unsent() -> float:
    """Records and gaps in all spools, as the vehicles' hosts count them."""
    texts = [requests.get(f"http://{address}:5003/metrics", timeout=5).text for address in NODES.values()]
    return sum(float(value) for text in texts for value in re.findall(r"^telemetry_spool_records (\S+)$", text, re.MULTILINE))


def behind(database: Database, vins: list[str]) -> list[str]:
    """Vehicles whose records are not yet all in the database."""
    stored = dict(database.rows("SELECT vin, max(last) FROM progress WHERE epoch > 1 GROUP BY vin"))
    return [vin for vin in vins if stored.get(vin, 0) <= RECORDS]


def rates() -> Iterator[float]:
    """POSTs in each second from now on."""
    asked, before = time.monotonic(), posts()
    while True:
        time.sleep(max(0.0, asked + 1 - time.monotonic()))
        now, after = time.monotonic(), posts()
        yield (after - before) / (now - asked)
        asked, before = now, after


@pytest.mark.long
def test_an_hours_spool_of_200_vehicles_returned_at_once_is_no_flood(database: Database) -> None:
    play("fleet-200", "fleet.yml", "-e", f"num_vehicles={FLEET}", "-e", f"vehicle_report_delay={DELAY}")
    try:
        steady = FLEET / DELAY
        here = {node: requests.get(f"http://{address}:5003/fleet", timeout=5).json()["here"] for node, address in NODES.items()}
        names = [container("vehicle", node) for node in NODES]
        docker("stop", *names)
        for node, vins in here.items():
            fill(node, vins)
        docker("start", *names)
        wait_for("the vehicles", lambda: len(vehicles()) == FLEET)
        begun, peak = time.monotonic(), 0.0
        for rate in rates():
            peak = max(peak, rate)
            if unsent() < 2 * FLEET:
                break
            assert time.monotonic() - begun < 300
        seconds = time.monotonic() - begun
        print(
            f"\nan hour's records of {FLEET} vehicles returned in {seconds:.0f} s; POSTs in any second: at most {peak:.0f}, "
            f"{peak / steady:.2f} times the steady {steady:.0f}"
        )
        assert peak <= 2 * steady
        vins = vehicles()
        play("fleet-200-away", "fleet.yml", "-e", "num_vehicles=1", "-e", f"vehicle_report_delay={DELAY}")
        wait_for("all rows", lambda: behind(database, vins) == [])
        whole(database, vins)
    finally:
        play("fleet-6", "fleet.yml", "-e", "num_vehicles=6")
