"""What role container takes for a reason that a service cannot do its work, and which of them a change can have caused."""

from __future__ import annotations

import json

import pytest
from interface.roles import module

container = module("roles/container/filter_plugins/container.py")


def answer(status: str, body: object) -> str:
    text = body if isinstance(body, str) else json.dumps(body)
    return f"HTTP/1.0 {status}\r\nContent-Type: application/json\r\n\r\n{text}\n"


@pytest.mark.parametrize(
    ("said", "reasons"),
    [
        (answer("200 OK", {"ready": True, "reasons": [], "causes": []}), {}),
        (answer("200 OK", "Events served: 3"), {}),
        (
            answer("503 Service Unavailable", {"reasons": ["no broker", "stopped at 3"], "causes": ["kafka", "stopped 2"]}),
            {"kafka": "no broker", "stopped 2": "stopped at 3"},
        ),
        # A version that does not name its causes
        (answer("503 Service Unavailable", {"reasons": ["no broker"]}), {"no broker": "no broker"}),
        (answer("502 Bad Gateway", {"error": "no_producer", "message": "No producer."}), {"no_producer": "No producer."}),
        (answer("500 Internal Server Error", "<html>"), {"answer": "it answers 'HTTP/1.0 500 Internal Server Error'"}),
        (answer("503 Service Unavailable", [1]), {"answer": "it answers 'HTTP/1.0 503 Service Unavailable'"}),
        ("", {"answer": "it does not answer"}),
    ],
)
def test_an_answer_becomes_reasons(said: str, reasons: dict[str, str]) -> None:
    assert container.container_unready(said) == reasons


@pytest.mark.parametrize(
    ("states", "causes"),
    [
        # Nobody was asked before: nothing stood
        ([], []),
        # One was left broken, others work: what it lacks comes from its setting
        ([{"kafka": "x"}, {}, {}], []),
        # Postgres is away for all
        ([{"postgres": "x", "group": "y"}, {"postgres": "z"}], ["postgres"]),
        # A stopped partition goes from one to another
        ([{"stopped 3": "x", "client": "y"}, {}], ["stopped 3"]),
        ([{"kafka": "x"}], ["kafka"]),
    ],
)
def test_what_stood_before_is_not_caused_by_the_change(states: list[dict[str, str]], causes: list[str]) -> None:
    assert container.container_standing(states) == causes
