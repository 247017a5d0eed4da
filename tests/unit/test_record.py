"""Validity is a function of the bytes: what is accepted, and for each fault the contract's answer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from telemetry import record as records
from telemetry.record import MAX_SEQ, Gap, Record, Refused, Upload, decode, encode, parse_form, parse_json, salvage

VIN = "1FTFW1ET5DFC10312"
FORM = b"timestamp=1700000000.5&vin=1E234567890123456&make=O%27Brien&model=F-150&position_x=1&position_y=2&position_z=3&speed=4.5"


def reading(seq: int, **changes: Any) -> dict[str, Any]:
    return {"seq": seq, "timestamp": 1.5, "position_x": 0, "position_y": 1, "position_z": -2.5, "speed": 3} | changes


def document(**changes: Any) -> dict[str, Any]:
    return {"vin": VIN, "epoch": 5, "make": "Ford", "model": "F-150", "records": [reading(1), reading(2)]} | changes


def refused(body: Any, parse: Any = parse_json) -> Refused:
    with pytest.raises(Refused) as caught:
        parse(body if isinstance(body, bytes) else json.dumps(body).encode())
    return caught.value


def status_of(parse: Any, body: bytes) -> int:
    """The HTTP status that a body gets."""
    try:
        parse(body)
    except Refused as answer:
        return answer.status
    return 200


def test_an_upload_is_read_as_it_was_written() -> None:
    upload = parse_json(json.dumps(document(gaps=[{"from_seq": 3, "to_seq": 9, "reason": "rejected"}])).encode())
    assert (upload.vin, upload.epoch, upload.make, upload.model) == (VIN, 5, "Ford", "F-150")
    assert upload.records == (Record(1, 1.5, 0.0, 1.0, -2.5, 3.0), Record(2, 1.5, 0.0, 1.0, -2.5, 3.0))
    assert upload.gaps == (Gap(3, 9, "rejected"),)
    assert (upload.first_seq, upload.last_seq) == (1, 9)
    assert decode(encode(upload)) == upload


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"vin": "1FTFW1ET5DFC1031"}, "vin"),
        ({"vin": "1ftfw1et5dfc10312"}, "vin"),
        ({"vin": VIN + "\n"}, "vin"),
        ({"vin": 17}, "vin"),
        ({"epoch": 0}, "epoch"),
        ({"epoch": -1}, "epoch"),
        ({"epoch": "5"}, "epoch"),
        ({"epoch": 2**53}, "epoch"),
        ({"epoch": True}, "epoch"),
        ({"gaps": [{"from_seq": 3, "to_seq": 10**400, "reason": "x"}]}, "gaps"),
        ({"records": [reading(10**400)]}, "seq"),
        ({"records": [reading(seq) for seq in range(1, 1002)]}, "records"),
        ({"gaps": [{"from_seq": seq, "to_seq": seq, "reason": "x"} for seq in range(3, 1004)]}, "gaps"),
        ({"records": [], "gaps": [{"from_seq": 3, "to_seq": 3, "reason": "x"}], "make": ""}, "make"),
        ({'unknown field "\0' + "x" * 100: 1}, "unknown field ??" + "x" * 24),
        ({"'; DROP TABLE diag; --": 1}, "'; DROP TABLE diag; --"),
        ({"records": []}, "records"),
        ({"records": {}}, "records"),
        ({"records": [1]}, "records"),
        ({"records": [reading(2), reading(1)]}, "records"),
        ({"records": [reading(1), reading(3)]}, "records"),
        ({"records": [reading(1), reading(1)]}, "records"),
        ({"records": [reading(-1)]}, "seq"),
        ({"records": [reading(0)]}, "seq"),
        ({"records": [reading(1) | {"seq": 1.0}]}, "seq"),
        ({"records": [reading(1) | {"seq": "1"}]}, "seq"),
        ({"records": [{"timestamp": 1}]}, "seq"),
        ({"gaps": [{"from_seq": 2, "to_seq": 4, "reason": "x"}]}, "records"),
        ({"gaps": [{"from_seq": 4, "to_seq": 4, "reason": "x"}]}, "records"),
        ({"gaps": [{"from_seq": 3, "to_seq": 2, "reason": "x"}]}, "gaps"),
        ({"gaps": [{"from_seq": 3, "to_seq": 3, "reason": ""}]}, "reason"),
        ({"gaps": [{"from_seq": 3, "to_seq": 3}]}, "reason"),
        ({"gaps": [{"from_seq": 3, "to_seq": 3, "reason": "x", "y": 1}]}, "y"),
    ],
)
def test_a_faulty_envelope_is_400_and_names_the_field(changes: dict[str, Any], field: str) -> None:
    answer = refused(document(**changes))
    assert (answer.status, answer.field) == (400, field)
    assert answer.message


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"\xff",
        b"null",
        b"[]",
        b"[" * 100_000,
        b'{"a":' * 40_000,
        b"1" * 200_000,
        json.dumps(document()).replace("-2.5", "NaN").encode(),
        json.dumps(document()).replace("-2.5", "-Infinity").encode(),
        json.dumps(document()).replace("Ford", "\\ud800").encode(),
        json.dumps(document()).replace("Ford", "a\0b").encode(),
        json.dumps(document()).encode("utf-16"),
    ],
)
def test_what_is_no_json_is_400(body: bytes) -> None:
    assert refused(body).status == 400


@pytest.mark.parametrize(
    ("fault", "field"),
    [
        ({"speed": -1}, "speed"),
        ({"speed": "4"}, "speed"),
        ({"speed": None}, "speed"),
        ({"speed": True}, "speed"),
        ({"speed": 10_001}, "speed"),
        ({"timestamp": -0.1}, "timestamp"),
        ({"timestamp": 4102444801}, "timestamp"),
        ({"position_z": 1.1e9}, "position_z"),
        ({"unknown": 1}, "unknown"),
    ],
)
def test_invalid_records_are_422_and_all_are_named(fault: dict[str, Any], field: str) -> None:
    answer = refused(document(records=[reading(1, **fault), reading(2), reading(3, **fault)]))
    assert answer.status == 422
    assert [(each["seq"], each["field"]) for each in answer.rejected] == [(1, field), (3, field)]
    assert all(each["reason"] for each in answer.rejected)


def test_a_missing_field_and_a_number_beyond_floats_are_invalid_records() -> None:
    short = reading(1)
    del short["speed"]
    assert refused(document(records=[short])).rejected == [{"seq": 1, "field": "speed", "reason": "missing"}]
    huge = refused(json.dumps(document()).replace("-2.5", "1e400").encode())
    assert (huge.status, [each["seq"] for each in huge.rejected]) == (422, [1, 2])


def test_more_than_a_body_may_have_is_413_and_nothing_else_is() -> None:
    for parse in (parse_json, parse_form):
        answer = refused(b" " * (records.MAX_BODY + 1), parse)
        assert (answer.status, answer.error) == (413, "too_large")
        assert refused(b" " * records.MAX_BODY, parse).status == 400


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"make": ""}, "make"),
        ({"make": "x" * 21}, "make"),
        ({"make": 7, "model": ""}, "make"),
        ({"model": "a\0b"}, "model"),
        ({"model": None}, "model"),
    ],
)
def test_a_bad_make_or_model_is_a_fault_of_every_record(changes: dict[str, Any], field: str) -> None:
    answer = refused(document(**changes, records=[reading(1), reading(2, speed=-1)]))
    assert answer.status == 422
    reason = "must be text of 1 to 20 characters without NUL"
    assert answer.rejected == [{"seq": seq, "field": field, "reason": reason} for seq in (1, 2)]
    without = document()
    del without[field]
    assert refused(without).rejected == [{"seq": seq, "field": field, "reason": "missing"} for seq in (1, 2)]


def test_of_a_record_the_first_fault_is_named_and_an_unknown_field_before_all_others() -> None:
    several = reading(1, speed=-1, timestamp="x", extra=1)
    assert refused(document(records=[several])).rejected == [{"seq": 1, "field": "extra", "reason": "unknown field"}]
    del several["extra"]
    assert refused(document(records=[several])).rejected == [{"seq": 1, "field": "timestamp", "reason": "not a number"}]


@pytest.mark.parametrize("number", ["1e400", "-1e400", "1" * 400, "9" * 100_000, "1" * 400 + ".5", "1e-400000000"])
def test_numbers_of_any_length_are_faults_of_their_record_alone(number: str) -> None:
    body = json.dumps(document(records=[reading(1, speed=1234), reading(2)])).replace("1234", number).encode()
    if number == "1e-400000000":
        assert parse_json(body).records[0].speed == 0
        return
    assert refused(body).rejected == [{"seq": 1, "field": "speed", "reason": "must be from 0 to 10000"}]


def test_an_answer_is_small_whatever_was_sent() -> None:
    longest = '"' * 150
    worst = [{"seq": MAX_SEQ - 999 + number, longest: 1} for number in range(1000)]
    every = [
        [{"seq": MAX_SEQ - 999 + number, "\N{OLD ITALIC LETTER A}" * 20: 1} for number in range(1000)],
        [{"seq": MAX_SEQ - 999 + number, "\1" * 30: 1} for number in range(1000)],
        [reading(MAX_SEQ - 999 + number, position_x=1e10) for number in range(1000)],
        worst[:500],
    ]
    for rejected in every:
        answer = refused(json.dumps(document(records=rejected), ensure_ascii=False, separators=(",", ":")).encode())
        assert answer.status == 422
        assert len(answer.rejected) == len(rejected)
        assert len(answer.encoded()) <= 128 * 1024
        assert all(len(each["field"].encode()) <= 40 and len(each["reason"]) <= 60 for each in answer.rejected)


def test_an_error_of_the_decoder_is_repeated_in_part() -> None:
    # Of a field that comes twice the last is looked at, and the decoder judges both
    body = json.dumps(document(records=[reading(1)])).replace('"speed"', f'"speed": "{"x" * 9000}", "speed"').encode()
    assert len(refused(body).encoded()) < 400


def test_the_largest_upload_is_accepted() -> None:
    body = json.dumps(document(records=[reading(seq) for seq in range(1, 1001)])).encode()
    assert len(parse_json(body).records) == 1000


def test_a_form_is_one_record_of_epoch_0() -> None:
    upload = parse_form(FORM)
    assert upload == Upload("1E234567890123456", 0, "O'Brien", "F-150", (Record(1700000000500000, 1700000000.5, 1, 2, 3, 4.5),))
    assert decode(encode(upload)) == upload


def test_the_older_form_repeats_position() -> None:
    older = FORM.replace(b"position_x=1&position_y=2&position_z=3", b"position=1&position=2&position=3")
    assert parse_form(older) == parse_form(FORM)


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ((b"speed=4.5", b"speed=inf"), "speed"),
        ((b"speed=4.5", b"speed=nan"), "speed"),
        ((b"speed=4.5", b"speed=1e400"), "speed"),
        ((b"speed=4.5", b"speed=1_0"), "speed"),
        ((b"speed=4.5", b"speed="), "speed"),
        ((b"speed=4.5", b"speed=-1"), "speed"),
        ((b"&speed=4.5", b""), "speed"),
        ((b"O%27Brien", b"%00"), "make"),
        ((b"O%27Brien", b"x" * 21), "make"),
        ((b"vin=1E", b"vin=1e"), "vin"),
        ((b"speed=4.5", b"speed=4.5&speed=4.5"), "speed"),
        ((b"speed=4.5", b"speed=4.5&x%3B=1"), "x;"),
        ((b"position_x=1", b"position=1&position_x=1"), "position_x"),
    ],
)
def test_a_faulty_form_is_400_and_names_the_field(change: tuple[bytes, bytes], field: str) -> None:
    answer = refused(FORM.replace(*change), parse_form)
    assert (answer.status, answer.field) == (400, field)


@pytest.mark.parametrize("body", [b"{}", b"\xff", b"make=%ff", b"a" * 300_000, b"&".join([b"a=1"] * 100)])
def test_what_is_no_form_is_refused(body: bytes) -> None:
    assert refused(body, parse_form).status in (400, 413)


@settings(max_examples=40)
@given(st.binary(max_size=300) | st.text(max_size=100).map(str.encode))
def test_any_bytes_get_an_answer(body: bytes) -> None:
    for parse in (parse_json, parse_form, decode):
        assert status_of(parse, body) in (200, 400, 413, 422)
    salvage(body)


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: st.lists(inner, max_size=3),
    max_leaves=5,
)


@settings(max_examples=60)
@given(st.sampled_from(["vin", "epoch", "make", "model", "records", "gaps"]), json_values)
def test_any_value_of_a_field_gets_an_answer(field: str, value: Any) -> None:
    body = json.dumps(document(**{field: value})).encode()
    status = status_of(parse_json, body)
    assert status in (200, 400, 413, 422)
    # What the producer acknowledges, the consumer stores
    assert (status_of(decode, body) == 200) >= (status == 200)


def test_the_range_of_a_dead_letter_is_read_where_it_can_be() -> None:
    body = json.dumps(document(records=[reading(7, speed="x"), reading(8)])).encode()
    assert salvage(body) == (VIN, 5, 7, 8)
    assert salvage(b"no upload") is None
    assert salvage(json.dumps(document(records=[reading(1), reading(9)])).encode()) is None


def test_a_field_is_one_entry() -> None:
    source = Path(records.__file__).read_text()
    last = "    speed: Annotated[float, msgspec.Meta(ge=0, le=MAX_SPEED)]\n"
    assert source.count(last) == 1
    module = ModuleType("telemetry.record_with_heading")
    sys.modules[module.__name__] = module
    try:
        heading = "    heading: Annotated[float, msgspec.Meta(ge=0, le=360)]\n"
        exec(compile(source.replace(last, last + heading), records.__file__, "exec"), module.__dict__)
        assert (*records.VALUES, "heading") == module.VALUES
        assert module.BOUNDS == records.BOUNDS | {"heading": (0, 360)}

        def status(parse: Any, body: bytes) -> tuple[int, Any]:
            try:
                parse(body)
            except module.Refused as answer:
                return answer.status, answer.rejected or answer.field
            return 200, None

        new = json.dumps(document(records=[reading(1, heading=90)])).encode()
        assert status(module.parse_json, new) == (200, None)
        assert module.parse_json(new).records[0].heading == 90
        assert status(module.parse_json, json.dumps(document(records=[reading(1)])).encode())[0] == 422
        far = json.dumps(document(records=[reading(1, heading=361)])).encode()
        assert status(module.parse_json, far) == (422, [{"seq": 1, "field": "heading", "reason": "must be from 0 to 360"}])
        assert status(module.parse_form, FORM) == (400, "heading")
        assert status(module.parse_form, FORM + b"&heading=x") == (400, "heading")
        assert module.parse_form(FORM + b"&heading=7").records[0].heading == 7
        assert module.salvage(far) == (VIN, 5, 1, 1)
        # What does not know the field yet refuses its records by name
        assert refused(new).rejected == [{"seq": 1, "field": "heading", "reason": "unknown field"}]
    finally:
        del sys.modules[module.__name__]
