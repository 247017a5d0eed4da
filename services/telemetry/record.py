"""The record and the upload: their fields, their limits, and the reasons for which bytes are refused.

Validity is a pure function of the bytes. The producer asks before it acknowledges and the consumer before it stores, both
here, so that what one accepts the other stores.

An upload is one POST, and one Kafka record: records of one vehicle in the order of their seq, and gaps (seqs that will never
come). For epoch >= 1 records and gaps together cover first_seq..last_seq without hole or overlap. Epoch 0 belongs to form clients:
one record, no order, seq made from the timestamp.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Annotated, Any, TypeVar
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
MAX_FORM = 8_192
"""Bytes of a form, more than its fields can fill."""
MAX_FIELD, MAX_ERROR = 40, 200
"""Bytes that an answer repeats of a field's name, and of what the decoder says: an answer stays small, whatever was sent."""
RETRY_AFTER = "1"
"""Seconds after which what could not be made durable may be sent again."""
FORM_EPOCH = 0
VERSION = b"1"
"""Of an upload, as the Kafka record's header `v` says it."""
KAFKA_HEADERS = [("v", VERSION)]

Item = TypeVar("Item")
VIN = re.compile(r"[A-Z0-9]{17}\Z")
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d+)?\Z", re.ASCII)
_ESCAPED = re.compile(r'["\\\x00-\x1f\x7f]')
"""What JSON writes in more than one byte, beside letters that are not ASCII."""

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
_OUTSIDE = {field: f"must be from {low:g} to {high:.10g}" for field, (low, high) in BOUNDS.items()}
_NOT_A_NUMBER = "not a number"


_UPLOAD_FIELDS, _GAP_FIELDS, _RECORD_FIELDS = (frozenset(kind.__struct_fields__) for kind in (Upload, Gap, Record))
_FORM_FIELDS = ("vin", "make", "model", *VALUES)
_decode_text = msgspec.json.Decoder(str).decode
_encode = msgspec.json.Encoder().encode


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

    def encoded(self) -> bytes:
        """The answer's body, as JSON."""
        answer: dict[str, Any] = {"error": self.error, "message": self.message}
        if self.field is not None:
            answer["field"] = self.field
        if self.rejected:
            answer["rejected"] = self.rejected
        return _encode(answer) + b"\n"

    @property
    def headers(self) -> dict[str, str]:
        """The answer's headers."""
        return {"Content-Type": "application/json"} | ({"Retry-After": RETRY_AFTER} if self.status == 503 else {})


TOO_LARGE = (413, "too_large", f"An upload has at most {MAX_BODY} bytes. Send fewer records in one.")
_BAD_VIN = (400, "invalid", "vin must be 17 characters out of A-Z and 0-9.", "vin")
_BAD_EPOCH = (400, "invalid", f"epoch must be an integer from 1 to {MAX_EPOCH}; 0 belongs to form clients.", "epoch")
_NOT_JSON = (400, "bad_json", "The body is not JSON. Send one upload as a JSON object in UTF-8.")

_decode = msgspec.json.Decoder(Upload).decode


class _Numbered(msgspec.Struct):
    seq: Annotated[int, msgspec.Meta(ge=1, le=MAX_SEQ)]


class _Range(msgspec.Struct):
    from_seq: Annotated[int, msgspec.Meta(ge=1, le=MAX_SEQ)]
    to_seq: Annotated[int, msgspec.Meta(ge=1, le=MAX_SEQ)]


# Values stay bytes, for a number of any length is the fault of its record alone; the decoder checks at once what it can for all
_open = msgspec.json.Decoder(dict[str, msgspec.Raw]).decode
_open_records = msgspec.json.Decoder(list[dict[str, msgspec.Raw]]).decode
_open_list = msgspec.json.Decoder(list[msgspec.Raw]).decode
_decode_seqs = msgspec.json.Decoder(list[_Numbered]).decode
_decode_ranges = msgspec.json.Decoder(list[_Range]).decode
_decode_number = msgspec.json.Decoder(float).decode
_decode_gap = msgspec.json.Decoder(Gap).decode


def parse_json(body: bytes) -> Upload:
    """The upload in the body of a JSON POST. Raises Refused."""
    return decode(body, lowest_epoch=1)


def decode(value: bytes, lowest_epoch: int = FORM_EPOCH) -> Upload:
    """The upload in the value of a Kafka record, or in a body; epoch 0 is one record and no gap. Raises Refused."""
    if len(value) > MAX_BODY:
        raise Refused(*TOO_LARGE)
    try:
        upload = _decode(value)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        raise _explain(value, lowest_epoch, str(error)) from None
    if not lowest_epoch <= upload.epoch:
        raise Refused(*_BAD_EPOCH)
    _check_cover(upload.epoch, [record.seq for record in upload.records], [(gap.from_seq, gap.to_seq) for gap in upload.gaps])
    return upload


def encode(upload: Upload) -> bytes:
    """The upload as JSON."""
    return _encode(upload)


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


def shorten(text: str, most: int = MAX_FIELD) -> str:
    """So many bytes of a text that somebody sent, each of them one byte of JSON too."""
    if len(text) <= most and text.isascii() and text.isidentifier():
        return text
    return _ESCAPED.sub("?", text[:most]).encode()[:most].decode(errors="ignore")


def _explain(value: bytes, lowest_epoch: int, error: str) -> Refused:
    """Why a value is not an upload: all invalid records, or the first fault of the envelope."""
    try:
        value.decode()
        rejected = _faults(_open(value), lowest_epoch)
    except Refused as refused:
        return refused
    except msgspec.ValidationError:
        return Refused(400, "invalid", "An upload is a JSON object.")
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return Refused(*_NOT_JSON)
    if rejected:
        message = "Records are invalid and nothing was accepted. Declare them a gap and send the rest."
        return Refused(422, "rejected", message, None, rejected)
    return Refused(400, "bad_json", f"The body is not a valid upload: {shorten(error, MAX_ERROR)}.")


def _faults(document: Mapping[str, msgspec.Raw], lowest_epoch: int) -> list[dict[str, Any]]:
    """The invalid records of a sound envelope; raise Refused if the envelope is not."""
    if not document.keys() <= _UPLOAD_FIELDS:
        field = shorten(next(field for field in document if field not in _UPLOAD_FIELDS))
        raise Refused(400, "invalid", f"The upload has an unknown field: {field!r}.", field)
    _, epoch = _sender(document, lowest_epoch)
    seqs, ranges = _seqs(document), _ranges(document)
    if ranges:
        _check_gaps(_open_list(document["gaps"]))
    _check_cover(epoch, seqs, ranges)
    for field in ("make", "model"):
        if reason := _name_fault(document.get(field)):
            # They belong to the records: with none, to nothing that could be set aside
            if not seqs:
                raise Refused(400, "invalid", f"{field}: {reason}.", field)
            return [{"seq": seq, "field": field, "reason": reason} for seq in seqs]
    faults = zip(seqs, map(_record_fault, _open_records(document["records"])), strict=True) if seqs else ()
    return [{"seq": seq, "field": fault[0], "reason": fault[1]} for seq, fault in faults if fault]


def _sender(document: Mapping[str, msgspec.Raw], lowest_epoch: int) -> tuple[str, int]:
    """vin and epoch. Raise Refused where either is wrong."""
    vin = _text(document.get("vin"))
    if vin is None or not VIN.match(vin):
        raise Refused(*_BAD_VIN)
    epoch = _integer(document.get("epoch"), lowest_epoch, MAX_EPOCH)
    if epoch is None:
        raise Refused(*_BAD_EPOCH)
    return vin, epoch


def _seqs(document: Mapping[str, msgspec.Raw]) -> list[int]:
    """The seq of each record. Raise Refused where a record has none."""
    try:
        found = [each.seq for each in _decode_seqs(document.get("records", b"[]"))]
    except msgspec.MsgspecError as error:
        if str(error).startswith(("Expected `array`", "Expected `object`")):
            raise Refused(400, "invalid", "records must be a list of objects.", "records") from None
        raise Refused(400, "invalid", f"Every record needs a seq, an integer from 1 to {MAX_SEQ}.", "seq") from None
    return _limited(found, "records", MAX_RECORDS)


def _ranges(document: Mapping[str, msgspec.Raw]) -> list[tuple[int, int]]:
    """The range of each gap. Raise Refused where a gap has none."""
    try:
        found = [(each.from_seq, each.to_seq) for each in _decode_ranges(document.get("gaps", b"[]"))]
    except msgspec.MsgspecError:
        message = f"gaps must be a list of objects whose from_seq and to_seq are integers from 1 to {MAX_SEQ}."
        raise Refused(400, "invalid", message, "gaps") from None
    return _limited(found, "gaps", MAX_GAPS)


def _limited(items: list[Item], field: str, most: int) -> list[Item]:
    if len(items) > most:
        raise Refused(400, "invalid", f"An upload has at most {most} {field}, not {len(items)}. Send fewer in one.", field)
    return items


def _check_gaps(gaps: Iterable[msgspec.Raw]) -> None:
    """Raise Refused at the first that is faulty beside its range."""
    for raw in gaps:
        try:
            _decode_gap(raw)
        except msgspec.MsgspecError:
            gap = _open(raw)
            if not gap.keys() <= _GAP_FIELDS:
                field = shorten(next(field for field in gap if field not in _GAP_FIELDS))
                raise Refused(400, "invalid", f"A gap has an unknown field: {field!r}.", field) from None
            reason = _name_fault(gap.get("reason"), MAX_REASON)
            raise Refused(400, "invalid", f"A gap's reason: {reason}.", "reason") from None


def _record_fault(record: Mapping[str, msgspec.Raw]) -> tuple[str, str] | None:
    """Field and reason of a record's first fault, a field that we do not know before all others."""
    if not record.keys() <= _RECORD_FIELDS:
        for field in record:
            if field not in _RECORD_FIELDS:
                return shorten(field), "unknown field"
    field = ""
    try:
        for field, (low, high) in BOUNDS.items():
            if not low <= _decode_number(record[field]) <= high:
                return field, _OUTSIDE[field]
    except KeyError:
        return field, "missing"
    except msgspec.MsgspecError:
        # A number that no float holds is one all the same
        return field, _OUTSIDE[field] if b"-" <= bytes(record[field]) < b":" else _NOT_A_NUMBER
    return None


def _text(raw: msgspec.Raw | None) -> str | None:
    """The text of a JSON value; None if it is not a text."""
    try:
        return None if raw is None else _decode_text(raw)
    except msgspec.MsgspecError:
        return None


def _integer(raw: msgspec.Raw | None, low: int, high: int) -> int | None:
    """The integer of a JSON value; None if it is not one from low to high."""
    if raw is None:
        return None
    try:
        number = int(raw)
    except ValueError:
        return None
    return number if low <= number <= high else None


def _name_fault(raw: msgspec.Raw | None, longest: int = MAX_NAME) -> str:
    return "missing" if raw is None else _text_fault(_text(raw), longest)


def _text_fault(text: str | None, longest: int = MAX_NAME) -> str:
    """Why something is not text of 1 to so many characters; empty if it is."""
    good = text is not None and 1 <= len(text) <= longest and "\0" not in text
    return "" if good else f"must be text of 1 to {longest} characters without NUL"


def parse_form(body: bytes) -> Upload:
    """The one record in the body of a form POST. Raises Refused.

    Fields: timestamp, make, model, position_x, position_y, position_z, speed, vin; in place of the three positions, three
    times `position`, as the predecessor's older clients send.
    """
    values = _form_fields(body)
    if not VIN.match(values["vin"]):
        raise Refused(*_BAD_VIN)
    for field in ("make", "model"):
        if reason := _text_fault(values[field]):
            raise Refused(400, "invalid", f"{field}: {reason}.", field)
    numbers = {field: _form_number(field, values[field]) for field in VALUES}
    record = Record(seq=round(numbers["timestamp"] * 1e6), **numbers)
    return Upload(vin=values["vin"], epoch=FORM_EPOCH, make=values["make"], model=values["model"], records=(record,))


def _form_fields(body: bytes) -> dict[str, str]:
    """All fields of a form by name, each of which must be there once."""
    if len(body) > MAX_BODY:
        raise Refused(*TOO_LARGE)
    try:
        if len(body) > MAX_FORM:
            raise ValueError
        pairs = parse_qsl(body.decode("ascii"), keep_blank_values=True, strict_parsing=True, errors="strict", max_num_fields=16)
    except ValueError:
        message = f"The body is not a form of at most {MAX_FORM} bytes. Send fields as name=value, joined by &."
        raise Refused(400, "bad_form", message, "") from None
    values: dict[str, str] = {}
    axes = iter("xyz")
    for name, value in pairs:
        if name == "position":
            name = f"position_{next(axes, 'w')}"
        if name in values:
            raise Refused(400, "invalid", f"The field {shorten(name)!r} comes twice.", shorten(name))
        if name not in _FORM_FIELDS:
            raise Refused(400, "invalid", f"Unknown field {shorten(name)!r}.", shorten(name))
        values[name] = value
    for field in _FORM_FIELDS:
        if field not in values:
            raise Refused(400, "invalid", f"The field {field!r} is missing.", field)
    return values


def _form_number(field: str, text: str) -> float:
    """The number in a form's field: it may be spelled in more ways than in JSON, and in fewer than in Python."""
    if not NUMBER.match(text):
        raise Refused(400, "invalid", f"{field}: {_NOT_A_NUMBER}.", field)
    low, high = BOUNDS[field]
    number = float(text)
    if not low <= number <= high:
        raise Refused(400, "invalid", f"{field}: {_OUTSIDE[field]}.", field)
    return number


def salvage(value: bytes) -> tuple[str, int, int, int] | None:
    """(vin, epoch, first_seq, last_seq) of a value that is not a valid upload, if so much can be read and its cover is sound."""
    try:
        document = _open(value[:MAX_BODY])
        vin, epoch = _sender(document, 1)
        seqs, gaps = _seqs(document), _ranges(document)
        _check_cover(epoch, seqs, gaps)
    except (Refused, msgspec.MsgspecError, UnicodeDecodeError, RecursionError):
        return None
    every = [*seqs, *(seq for gap in gaps for seq in gap)]
    return vin, epoch, min(every), max(every)
