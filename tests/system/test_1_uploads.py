"""What is posted becomes rows: exact, once, in order; what is wrong gets a reason and leaves no trace."""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import requests
from kafka import KafkaProducer
from system.deployment import BOOTSTRAP, CONSUMERS, NGINX, NODES, PRODUCERS, VEHICLES, Database, all_ready, ready, started, wait_for
from system.sender import new_vin, post, reading, upload

COLUMNS = "seq, timestamp, position_x, position_y, position_z, speed"


def rows(database: Database, vin: str, epoch: int = 1) -> list[list[Any]]:
    return database.rows(f"SELECT {COLUMNS} FROM diag WHERE vin = '{vin}' AND epoch = {epoch} ORDER BY id")


def last(database: Database, vin: str, epoch: int = 1) -> int:
    found = database.rows(f"SELECT last FROM progress WHERE vin = '{vin}' AND epoch = {epoch}")
    return int(found[0][0]) if found else 0


def gaps(database: Database, vin: str) -> list[list[Any]]:
    return database.rows(f"SELECT from_seq, to_seq, state, reason FROM gap WHERE vin = '{vin}' ORDER BY from_seq")


def test_an_upload_is_stored_exactly_once_however_often_it_is_sent(database: Database) -> None:
    vin = new_vin()
    document = upload(vin, range(1, 51))
    for _ in range(4):
        answer = post(document)
        assert answer.status_code == 200
        assert answer.json() == {"vin": vin, "epoch": 1, "acked_through": 50, "records": 50}
    post(upload(vin, range(51, 53)))
    wait_for("the rows", lambda: last(database, vin) == 52)
    expected = [list(reading(seq).values()) for seq in range(1, 53)]
    assert rows(database, vin) == expected
    assert database.value(f"SELECT count(*) FROM conflict WHERE vin = '{vin}'") == 0


def test_odd_floats_arrive_to_the_bit(database: Database) -> None:
    vin, rng = new_vin(), random.Random(1)
    values = [rng.uniform(-1e9, 1e9) for _ in range(50)] + [5e-324, 1e9, -1e9, 0.1 + 0.2]
    document = upload(vin, []) | {"records": [reading(seq) | {"position_x": value} for seq, value in enumerate(values, 1)]}
    assert post(document).status_code == 200
    wait_for("the rows", lambda: last(database, vin) == len(values))
    assert [row[2] for row in rows(database, vin)] == values


def test_gaps_are_declared_found_and_filled(database: Database) -> None:
    vin = new_vin()
    declared = [{"from_seq": 3, "to_seq": 5, "reason": "bound"}]
    assert post(upload(vin, [1, 2, 6], gaps=declared)).status_code == 200
    assert post(upload(vin, [9, 10])).status_code == 200
    wait_for("the uploads", lambda: last(database, vin) == 10)
    assert gaps(database, vin) == [[3, 5, "declared", "bound"], [7, 8, "undeclared", "missing"]]
    assert post(upload(vin, [7])).status_code == 200
    assert post(upload(vin, [], gaps=[{"from_seq": 8, "to_seq": 8, "reason": "rejected"}])).status_code == 200
    wait_for("the filled gap", lambda: len(gaps(database, vin)) == 3)
    wait_for("the declaration", lambda: [8, 8, "declared", "rejected"] in gaps(database, vin))
    assert [7, 7, "filled", "missing"] in gaps(database, vin)
    assert [row[0] for row in rows(database, vin)] == [1, 2, 6, 9, 10, 7]


def test_epochs_are_apart(database: Database) -> None:
    vin = new_vin()
    for epoch in (1, 2):
        assert post(upload(vin, range(1, 4), epoch)).status_code == 200
    wait_for("both epochs", lambda: last(database, vin, 1) == last(database, vin, 2) == 3)
    assert len(rows(database, vin, 1)) == len(rows(database, vin, 2)) == 3


def test_other_values_under_a_known_identity_are_a_conflict(database: Database) -> None:
    vin = new_vin()
    assert post(upload(vin, [1, 2])).status_code == 200
    assert post(upload(vin, []) | {"records": [reading(1, speed=77.0), reading(2)]}).status_code == 200
    query = f"SELECT seqs, convert_from(value, 'UTF8') AS value FROM conflict WHERE vin = '{vin}'"
    [(seqs, value)] = wait_for("the conflict", lambda: database.rows(query))
    assert seqs == [1]
    assert json.loads(value)["records"][0]["speed"] == 77.0
    assert [row[5] for row in rows(database, vin)] == [1.0, 1.0]


def form(vin: str, **changes: str) -> dict[str, str]:
    return {
        "timestamp": "1700000000.25", "make": "O'Brien", "model": "F-150", "vin": vin,
        "position_x": "1.5", "position_y": "-2", "position_z": "3", "speed": "4.5",
    } | changes  # fmt: skip


def test_the_predecessors_clients_and_queries_work(database: Database) -> None:
    vin = f"1E{random.randrange(10**15):015}"
    for data in (form(vin), form(vin), form(vin, speed="5.5")):
        answer = requests.post(f"{NGINX}/events", data=data, timeout=30)
        assert answer.status_code == 200
    older = "timestamp=1700000001&make=Ford&model=Edge&position=1&position=2&position=3&speed=0&vin=IOQ45678901234567"
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    assert requests.post(f"{NGINX}/events", data=older, headers=headers, timeout=30).status_code == 200
    query = (
        f"SELECT timestamp, vin, make, model, position_x, position_y, position_z, speed FROM diag WHERE vin = '{vin}' ORDER BY id"
    )
    first = [1700000000.25, vin, "O'Brien", "F-150", 1.5, -2.0, 3.0]
    wait_for("the rows", lambda: len(database.rows(query)) == 2)
    assert database.rows(query) == [[*first, 4.5], [*first, 5.5]]
    wait_for("the older form", lambda: database.rows("SELECT id FROM diag WHERE vin = 'IOQ45678901234567'"))


def good_json(change: Callable[[str], str] = str, /, **changes: Any) -> bytes:
    return change(json.dumps(upload("WRONG000000000000", [1, 2]) | changes)).encode()


BAD = {
    "empty": (b"", 400),
    "no json": (b"{not json", 400),
    "300 KB": (b"x" * 300_000, 413),
    "5,000 records": (good_json(records=[{"seq": seq, "speed": 0} for seq in range(1, 5001)]), 400),
    "NaN": (good_json(lambda text: text.replace('"position_z": 0.1', '"position_z": NaN')), 400),
    "1e400": (good_json(lambda text: text.replace('"position_z": 0.1', '"position_z": 1e400')), 422),
    "bad vin": (good_json(vin="WRONG"), 400),
    "sql as vin": (good_json(vin="';DROP TABLE diag"), 400),
    "negative seq": (good_json(lambda text: text.replace('"seq": 1', '"seq": -1')), 400),
    "missing field": (good_json(records=[{"seq": 1}]), 422),
    "unknown field": (good_json(lambda text: text.replace('"speed"', '"x); DROP TABLE diag; --": 1, "speed"')), 422),
    "unknown field of the upload": (good_json(**{"x'); DROP TABLE diag; --": 1}), 400),
    "number as text": (good_json(lambda text: text.replace('"position_z": 0.1', '"position_z": "0.1"')), 422),
    "NUL": (good_json(make="a\0b"), 422),
    "lone surrogate": (good_json(lambda text: text.replace("Ford", "\\ud800")), 400),
    "deep nesting": (b"[" * 200_000, 400),
    "not UTF-8": (b"\xff\xfe", 400),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_input_gets_a_reason_and_leaves_no_trace(database: Database, name: str) -> None:
    body, status = BAD[name]
    answer = requests.post(f"{NGINX}/events", data=body, headers={"Content-Type": "application/json"}, timeout=30)
    assert answer.status_code == status
    assert answer.headers["Content-Type"] == "application/json"
    assert answer.json()["error"]
    assert answer.json()["message"]
    assert "Traceback" not in answer.text


@pytest.mark.parametrize(("kind", "body"), [("text/plain", b"x"), ("", b"x"), ("application/x-www-form-urlencoded", b"x")])
def test_other_content_types_get_a_reason(summary: dict[str, Any], kind: str, body: bytes) -> None:
    answer = requests.post(f"{NGINX}/events", data=body, headers={"Content-Type": kind}, timeout=30)
    assert answer.status_code == (400 if "form" in kind else 415)
    assert answer.json()["error"]


def test_after_bad_input_nothing_is_stored_and_the_next_good_record_is(database: Database) -> None:
    vin = new_vin()
    assert post(upload(vin, [1])).status_code == 200
    wait_for("the next good record", lambda: last(database, vin) == 1)
    assert database.value("SELECT count(*) FROM diag WHERE vin LIKE 'WRONG%'") == 0
    assert database.value("SELECT count(*) FROM progress WHERE vin LIKE 'WRONG%'") == 0


def test_bytes_in_the_topic_that_are_no_upload_become_dead_letters(database: Database) -> None:
    before = started()
    vin = new_vin()
    client = KafkaProducer(bootstrap_servers=BOOTSTRAP, enable_idempotence=False, acks="all")
    values = [b"no upload", b"", b"\xff" * 100, json.dumps(upload(vin, [1]) | {"make": "x" * 21}).encode(), b'{"vin": 1}']
    places = [client.send("telemetry", value=value, key=b"k").get(timeout=30) for value in values]
    client.close()
    for place, value in zip(places, values, strict=True):
        where = f'partition = {place.partition} AND "offset" = {place.offset}'
        query = f"SELECT topic, encode(value, 'hex'), reason, topic_id FROM dead_letter WHERE {where}"
        [letter] = wait_for("the dead letter", partial(database.rows, query))
        assert letter[0] == "telemetry"
        assert bytes.fromhex(letter[1]) == value
        assert letter[2]
    good = new_vin()
    assert post(upload(good, [1])).status_code == 200
    wait_for("the next upload", lambda: last(database, good) == 1)
    assert started() == before


def test_pages_and_the_four_routes_of_every_service(summary: dict[str, Any]) -> None:
    wait_for("all services ready", all_ready)
    assert "Tachograph" in requests.get(NGINX, timeout=5).text
    served = requests.get(f"{NGINX}/events", timeout=5).text
    assert "Events served: " in served
    assert requests.get(f"{NGINX}/nothing", timeout=5).json()["error"] == "not_found"
    for url in [*PRODUCERS, *CONSUMERS, *VEHICLES]:
        assert requests.get(f"{url}/healthz", timeout=5).status_code == 200
        assert ready(url)["ready"]
        assert requests.get(f"{url}/version", timeout=5).json()["version"] == summary["version"]
        assert "telemetry_ready 1.0" in requests.get(f"{url}/metrics", timeout=5).text


def test_the_summary_says_where_everything_is(summary: dict[str, Any]) -> None:
    assert summary["nginx"] == [NGINX, f"http://{NODES['node1']}:8080", f"http://{NODES['node2']}:8080"]
    assert summary["kafka"] == ",".join(BOOTSTRAP)
    assert summary["topic"] == "telemetry"
    assert set(summary["postgres"]) == {"host", "port", "database", "user", "password_file"}
