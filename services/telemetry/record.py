"""The record and the upload: their fields, their limits, and the reasons for which bytes are refused.

Validity is a pure function of the bytes. The producer asks before it acknowledges and the consumer before it stores, both
here, so that what one accepts the other stores.

An upload is one POST, and one Kafka record: records of one vehicle in the order of their seq, and gaps (seqs that will never
come). For epoch >= 1 records and gaps together cover first_seq..last_seq without hole or overlap. Epoch 0 belongs to form clients:
one record, no order, seq made from the timestamp.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable
from typing import Annotated, Any
from urllib.parse import parse_qsl

import msgspec
import msgspec.inspect

MAX_BODY = 262_144
"""Bytes of one upload."""
MAX_RECORDS = 1_000
MAX_GAPS = 1_000
MAX_SEQ = MAX_EPOCH = 2**53 - 1
"""What every JSON implementation keeps exactly."""
MAX_TIMESTAMP = 4_102_444_800.0
"""The year 2100, in seconds since 1970."""
MAX_POSITION = 1e9
"""Metres from the origin."""
MAX_SPEED = 1e4
"""Metres per second."""
MAX_NAME = 20
"""Characters of make and model."""
MAX_REASON = 100
"""Characters of a gap's reason."""
FORM_EPOCH = 0
VERSION = b"1"
"""Of an upload, as the Kafka record's header `v` says it."""
KAFKA_HEADERS = [("v", VERSION)]

VIN = re.compile(r"[A-Z0-9]{17}\Z")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)

Seq = Annotated[int, msgspec.Meta(ge=0, le=MAX_SEQ)]
Position = Annotated[float, msgspec.Meta(ge=-MAX_POSITION, le=MAX_POSITION)]
Name = Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_NAME, pattern=r"^[^\x00]*\Z")]


class Record(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One reading. timestamp: s since 1970 (UTC); position: m in a local Cartesian frame; speed: m/s."""

    seq: Seq
    timestamp: Annotated[float, msgspec.Meta(ge=0, le=MAX_TIMESTAMP)]
    position_x: Position
    position_y: Position
    position_z: Position
    speed: Annotated[float, msgspec.Meta(ge=0, le=MAX_SPEED)]


class Gap(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Seqs from_seq..to_seq, both included, will never come; reason says why."""

    from_seq: Seq
    to_seq: Seq
    reason: Annotated[str, msgspec.Meta(min_length=1, max_length=MAX_REASON, pattern=r"^[^\x00]*\Z")]


class Upload(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Records and gaps of one vehicle, one make and model."""

    vin: Annotated[str, msgspec.Meta(pattern=r"^[A-Z0-9]{17}\Z")]
    epoch: Annotated[int, msgspec.Meta(ge=0, le=MAX_EPOCH)]
    make: Name
    model: Name
    records: Annotated[tuple[Record, ...], msgspec.Meta(max_length=MAX_RECORDS)] = ()
    gaps: Annotated[tuple[Gap, ...], msgspec.Meta(max_length=MAX_GAPS)] = ()

    @property
    def first_seq(self) -> int:
        """The lowest seq, gaps included."""
        return min([record.seq for record in self.records[:1]] + [gap.from_seq for gap in self.gaps])

    @property
    def last_seq(self) -> int:
        """The highest seq, gaps included."""
        return max([record.seq for record in self.records[-1:]] + [gap.to_seq for gap in self.gaps])


VALUES = Record.__struct_fields__[1:]
"""A record's fields beside its seq, in the order of the table. The struct is the one list of them."""


def _bounds(field: msgspec.inspect.Field) -> tuple[float, float]:
    assert isinstance(field.type, msgspec.inspect.FloatType)
    assert field.type.ge is not None
    assert field.type.le is not None
    return field.type.ge, field.type.le


_struct = msgspec.inspect.type_info(Record)
assert isinstance(_struct, msgspec.inspect.StructType)
BOUNDS = {field.name: _bounds(field) for field in _struct.fields[1:]}
"""The least and the greatest value of each."""


class Refused(ValueError):
    """Bytes that are not accepted.

    status is the HTTP status, error a stable word, message a sentence with the remedy, field the name of the faulty one if
    there is one, rejected the invalid records (for 422): [{"seq", "field", "reason"}].
    """

    def __init__(
        self, status: int, error: str, message: str, field: str | None = None, rejected: Iterable[dict[str, Any]] = ()
    ) -> None:
        super().__init__(message)
        self.status, self.error, self.message, self.field = status, error, message, field
        self.rejected = list(rejected)

    def body(self) -> dict[str, Any]:
        """The answer as a JSON object."""
        answer: dict[str, Any] = {"error": self.error, "message": self.message}
        if self.field is not None:
            answer["field"] = self.field
        if self.rejected:
            answer["rejected"] = self.rejected
        return answer


_decode = msgspec.json.Decoder(Upload).decode
_encode = msgspec.json.Encoder().encode


def parse_json(body: bytes) -> Upload:
    """The upload in the body of a JSON POST. Raises Refused."""
    return decode(body, lowest_epoch=1)


def decode(value: bytes, lowest_epoch: int = FORM_EPOCH) -> Upload:
    """The upload in the value of a Kafka record, or in a body; epoch 0 is one record and no gap. Raises Refused."""
    if len(value) > MAX_BODY:
        raise Refused(413, "too_large", f"An upload has at most {MAX_BODY} bytes. Send fewer records in one.")
    try:
        upload = _decode(value)
    except (msgspec.MsgspecError, RecursionError, UnicodeDecodeError) as error:
        # Valid uploads pay for one decoder; only a refusal is worth a second, which names all that is wrong.
        raise _explain(value, lowest_epoch, str(error)) from None
    _check_epoch(upload.epoch, lowest_epoch)
    _check_cover(upload.epoch, [record.seq for record in upload.records], [(gap.from_seq, gap.to_seq) for gap in upload.gaps])
    return upload


def encode(upload: Upload) -> bytes:
    """The upload as JSON."""
    return _encode(upload)


def _check_epoch(epoch: Any, lowest: int) -> None:
    if not _integer(epoch, lowest, MAX_EPOCH):
        raise Refused(400, "invalid", f"epoch must be an integer from 1 to {MAX_EPOCH}; 0 belongs to form clients.", "epoch")


def _check_cover(epoch: int, seqs: list[int], gaps: list[tuple[int, int]]) -> None:
    """Raise Refused unless records and gaps cover first..last without hole or overlap."""
    if not seqs and not gaps:
        raise Refused(400, "invalid", "An upload needs at least one record or one gap.", "records")
    if epoch == FORM_EPOCH:
        if len(seqs) != 1 or gaps:
            raise Refused(400, "invalid", "An upload of epoch 0 is one record and no gap.", "records")
        return
    spans = sorted(gaps)
    spans.append((MAX_SEQ + 2, MAX_SEQ + 2))
    gap, (start, end) = 0, spans[0]
    expected = min([*seqs[:1], start])
    if expected < 1:
        raise Refused(400, "invalid", "seq must be an integer from 1 on.", "seq")
    for seq in [*seqs, MAX_SEQ + 2]:
        while start == expected and start <= MAX_SEQ:
            if end < start:
                raise Refused(400, "invalid", f"gap {start}..{end} ends before it begins.", "gaps")
            expected, gap = end + 1, gap + 1
            start, end = spans[gap]
        if seq != expected:
            break
        expected += 1
    else:
        return
    if seq > MAX_SEQ and start > MAX_SEQ:
        return
    raise Refused(
        400,
        "invalid",
        "Records (ascending) and gaps must cover the first to the last seq without hole or overlap; "
        f"seq {expected} is missing or comes twice.",
        "records",
    )


def _constant(name: str) -> Any:
    raise Refused(400, "bad_json", f"{name} is not JSON. Numbers must be finite.")


def _explain(value: bytes, lowest_epoch: int, error: str) -> Refused:
    """Find why a value is not an upload: all invalid records, or the first fault of the envelope."""
    try:
        document = json.loads(value.decode(), parse_constant=_constant)
        # A lone surrogate passes json.loads, but is no text
        json.dumps(document, ensure_ascii=False).encode()
        rejected = _faults(document, lowest_epoch)
    except Refused as refused:
        return refused
    except (ValueError, RecursionError):
        return Refused(400, "bad_json", "The body is not JSON. Send one upload as a JSON object in UTF-8.")
    if rejected:
        return Refused(
            422, "rejected", "Records are invalid and nothing was accepted. Declare them a gap and send the rest.", None, rejected
        )
    return Refused(400, "bad_json", f"The body is not a valid upload: {error}.")


def _integer(value: Any, low: int, high: int) -> bool:
    return type(value) is int and low <= value <= high


def _name(document: dict[str, Any], field: str, longest: int) -> None:
    value = document.get(field)
    if not isinstance(value, str) or not 1 <= len(value) <= longest or "\0" in value:
        raise Refused(400, "invalid", f"{field} must be text of 1 to {longest} characters without NUL.", field)


def _listed(document: dict[str, Any], field: str, most: int) -> list[dict[str, Any]]:
    value = document.get(field, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise Refused(400, "invalid", f"{field} must be a list of objects.", field)
    if len(value) > most:
        raise Refused(413, "too_large", f"An upload has at most {most} {field}. Send fewer in one.", field)
    return value


def _fields(document: dict[str, Any], known: Iterable[str], what: str) -> None:
    unknown = sorted(set(document) - set(known))
    if unknown:
        raise Refused(400, "invalid", f"{what} has an unknown field: {unknown[0][:50]!r}.", unknown[0][:50])


def _faults(document: Any, lowest_epoch: int) -> list[dict[str, Any]]:
    """The invalid records of a sound envelope; raise Refused if the envelope is not."""
    if not isinstance(document, dict):
        raise Refused(400, "invalid", "An upload is a JSON object.")
    _fields(document, Upload.__struct_fields__, "The upload")
    if not isinstance(document.get("vin"), str) or not VIN.match(document["vin"]):
        raise Refused(400, "invalid", "vin must be 17 characters out of A-Z and 0-9.", "vin")
    _check_epoch(document.get("epoch"), lowest_epoch)
    _name(document, "make", MAX_NAME)
    _name(document, "model", MAX_NAME)
    records, gaps = _listed(document, "records", MAX_RECORDS), _listed(document, "gaps", MAX_GAPS)
    for gap in gaps:
        _fields(gap, Gap.__struct_fields__, "A gap")
        if not _integer(gap.get("from_seq"), 1, MAX_SEQ) or not _integer(gap.get("to_seq"), 1, MAX_SEQ):
            raise Refused(400, "invalid", f"from_seq and to_seq must be integers from 1 to {MAX_SEQ}.", "gaps")
        _name(gap, "reason", MAX_REASON)
    lowest = 0 if document["epoch"] == FORM_EPOCH else 1
    if not all(_integer(record.get("seq"), lowest, MAX_SEQ) for record in records):
        raise Refused(400, "invalid", f"Every record needs a seq, an integer from 1 to {MAX_SEQ}.", "seq")
    _check_cover(document["epoch"], [record["seq"] for record in records], [(gap["from_seq"], gap["to_seq"]) for gap in gaps])
    return [fault for record in records for fault in _record_faults(record)]


def _record_faults(record: dict[str, Any]) -> list[dict[str, Any]]:
    faults = [(field[:50], "unknown field") for field in sorted(set(record) - {"seq", *VALUES})]
    for field in VALUES:
        reason = "missing" if field not in record else _number_fault(field, record[field])
        if reason:
            faults.append((field, reason))
    return [{"seq": record["seq"], "field": field, "reason": reason} for field, reason in faults]


def _number_fault(field: str, value: Any) -> str:
    """Why a value is none for the field; empty if it is one."""
    low, high = BOUNDS[field]
    if type(value) not in (int, float):
        return "not a number"
    if not low <= value <= high or not math.isfinite(value):
        return f"must be from {low:g} to {high:.10g}"
    return ""


def parse_form(body: bytes) -> Upload:
    """The one record in the body of a form POST. Raises Refused.

    Fields: timestamp, make, model, position_x, position_y, position_z, speed, vin; in place of the three positions, three
    times `position`, as the predecessor's older clients send.
    """
    if len(body) > MAX_BODY:
        raise Refused(413, "too_large", f"A form has at most {MAX_BODY} bytes.")
    try:
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=16)
    except ValueError:
        raise Refused(400, "bad_form", "The body is not a form. Send fields as name=value, joined by &.", "") from None
    values: dict[str, str] = {}
    axes = iter("xyz")
    for name, value in pairs:
        if name == "position":
            name = f"position_{next(axes, 'w')}"
        if name in values:
            raise Refused(400, "invalid", f"The field {name[:50]!r} comes twice.", name[:50])
        if name not in VALUES and name not in ("vin", "make", "model"):
            raise Refused(400, "invalid", f"Unknown field {name[:50]!r}.", name[:50])
        values[name] = value
    for field in ("vin", "make", "model", *VALUES):
        if field not in values:
            raise Refused(400, "invalid", f"The field {field!r} is missing.", field)
    if not VIN.match(values["vin"]):
        raise Refused(400, "invalid", "vin must be 17 characters out of A-Z and 0-9.", "vin")
    for field in ("make", "model"):
        _name(dict(values), field, MAX_NAME)
    numbers: dict[str, float] = {}
    for field in VALUES:
        number = float(values[field]) if len(values[field]) <= 400 and NUMBER.match(values[field]) else None
        reason = _number_fault(field, number)
        if number is None or reason:
            raise Refused(400, "invalid", f"{field}: {reason}.", field)
        numbers[field] = number
    record = Record(seq=round(numbers["timestamp"] * 1e6), **numbers)
    return Upload(vin=values["vin"], epoch=FORM_EPOCH, make=values["make"], model=values["model"], records=(record,))


def salvage(value: bytes) -> tuple[str, int, int, int] | None:
    """(vin, epoch, first_seq, last_seq) of a value that is no valid upload, if so much can be read and its cover is sound."""
    try:
        document = json.loads(value[:MAX_BODY].decode())
        if not VIN.match(document["vin"]) or not _integer(document["epoch"], 1, MAX_EPOCH):
            return None
        seqs = [record["seq"] for record in document.get("records", [])]
        gaps = [(gap["from_seq"], gap["to_seq"]) for gap in document.get("gaps", [])]
        if not all(_integer(seq, 1, MAX_SEQ) for seq in [*seqs, *(seq for gap in gaps for seq in gap)]):
            return None
        _check_cover(document["epoch"], seqs, gaps)
    except (ValueError, TypeError, KeyError, AttributeError, RecursionError):
        return None
    every = [*seqs, *(seq for gap in gaps for seq in gap)]
    return document["vin"], document["epoch"], min(every), max(every)
