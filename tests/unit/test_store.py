"""The store's pure parts. What it promises on Postgres, the real one or the one in memory, is in tests/contract."""

from __future__ import annotations

import struct
import uuid
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from simulation.postgres import Database, open_gaps
from telemetry.consumer import store as stores
from telemetry.consumer.batch import (
    Decoded,
    Fingerprint,
    Row,
    Run,
    TopicRecord,
    append_time,
    crc,
    decode,
    decode_all,
    fingerprint,
    form_hash,
    halves,
    plan,
)
from telemetry.consumer.progress import Progress
from telemetry.consumer.store import COPY_COLUMNS, COPY_HEADER, Lasts, PostgresStore, copy_rows, plain
from telemetry.record import Record, Refused, Upload, encode

VIN = "1FTEW1E45JFB00001"


def record(seq: int, speed: float = 0.0) -> Record:
    return Record(seq=seq, timestamp=1.5, position_x=-2.25, position_y=3.0, position_z=4e8, speed=speed)


def upload(*seqs: int, epoch: int = 1, vin: str = VIN, speed: float = 0.0) -> Upload:
    records = tuple(record(seq, speed) for seq in seqs)
    return Upload(vin=vin, epoch=epoch, make="Ford", model="Edge", records=records)


def source(offset: int, value: bytes | None, timestamp: int = 0, headers: tuple[tuple[str, bytes | None], ...] = ()) -> TopicRecord:
    return TopicRecord(0, offset, timestamp, b"key", value, headers)


def test_the_checksum_covers_key_and_value() -> None:
    # The check value of CRC-32C
    assert crc(b"1234", b"56789") == 0xE3069283
    assert crc(None, None) == 0


def test_a_fingerprint_is_of_the_record_right_before_the_end() -> None:
    records = (source(3, b"a", 10), source(4, b"b", 11))
    assert fingerprint(Run(0, 3, 5, records)) == Fingerprint(11, crc(b"key", b"b"))
    assert fingerprint(Run(0, 3, 6, records)) == Fingerprint(None, None)


def test_halves_join_without_a_hole() -> None:
    run = Run(0, 3, 9, tuple(source(offset, b"") for offset in (3, 5, 8)))
    first, second = halves(run)
    assert (first.start, first.end, second.start, second.end) == (3, 5, 5, 9)
    assert first.records + second.records == run.records


def test_copied_rows_hold_every_value() -> None:
    moment = datetime(2026, 11, 23, 12, 0, 0, 123_000, UTC)
    sent = upload(7, 8)
    other = Upload(vin=VIN, epoch=2, make="É", model="Maverick", records=(record(1, speed=9.5),))
    rows = [Row(sent, each, source(0, b"", int(moment.timestamp() * 1000))) for each in sent.records]
    rows.append(Row(other, other.records[0], source(1, b"", 0)))
    data = copy_rows(rows)
    assert data.startswith(COPY_HEADER)
    at, found = len(COPY_HEADER), []
    while (count := struct.unpack_from("!h", data, at)[0]) != -1:
        at += 2
        fields = []
        for _ in range(count):
            (length,) = struct.unpack_from("!i", data, at)
            fields.append(data[at + 4 : at + 4 + length])
            at += 4 + length
        found.append(dict(zip(COPY_COLUMNS.split(", "), fields, strict=True)))
    assert at + 2 == len(data)
    assert [struct.unpack("!q", row["seq"])[0] for row in found] == [7, 8, 1]
    assert [row["make"] for row in found] == [b"Ford", b"Ford", "É".encode()]
    assert [struct.unpack("!q", row["epoch"])[0] for row in found] == [1, 1, 2]
    floats = ("timestamp", "position_x", "position_y", "position_z", "speed")
    assert [struct.unpack("!d", found[2][name])[0] for name in floats] == [1.5, -2.25, 3.0, 4e8, 9.5]
    received = datetime(2000, 1, 1, tzinfo=UTC) + timedelta(microseconds=struct.unpack("!q", found[0]["received_at"])[0])
    assert received == moment


@pytest.mark.parametrize(
    ("value", "headers"),
    [
        (None, ()),
        (b"", ()),
        (b"{}", ()),
        (b"[" * 10_000, ()),
        (b"{" + b" " * 262_144, ()),
        (encode(upload(1)), (("v", b"2"),)),
        (encode(upload(1)), (("v", None),)),
    ],
)
def test_what_is_no_upload_is_refused(value: bytes | None, headers: tuple[tuple[str, bytes | None], ...]) -> None:
    with pytest.raises(Refused):
        decode(source(0, value, headers=headers))


def test_an_upload_without_the_header_is_one_of_version_1() -> None:
    assert decode(source(0, encode(upload(1)))) == upload(1)


@pytest.mark.parametrize("name", ["Größe".encode("latin-1"), b"\xff"])
def test_a_header_whose_name_is_not_utf_8_makes_a_dead_letter(name: bytes) -> None:
    headers = (("v", b"1"), (name.decode(errors="surrogateescape"), b"1"))
    (found,) = decode_all([Run(0, 0, 1, (source(0, encode(upload(4, 5)))._replace(headers=headers),))], {})
    assert (found.upload, found.lost) == (None, (VIN, 1, 4, 5))
    assert found.reason == f"The name of a header is not UTF-8: {name!r}."


def test_other_headers_are_ignored() -> None:
    assert decode(source(0, encode(upload(1)))._replace(headers=(("Größe", None), ("v", b"1")))) == upload(1)


def test_a_dead_letter_keeps_the_range_that_can_be_read() -> None:
    value = encode(upload(4, 5)).replace(b'"speed":0.0', b'"speed":-1')
    (found,) = decode_all([Run(0, 0, 1, (source(0, value),))], {})
    assert found.upload is None
    assert found.lost == (VIN, 1, 4, 5)
    assert "speed" in found.reason


def test_what_the_database_refused_is_a_dead_letter() -> None:
    run = Run(0, 0, 2, (source(0, encode(upload(1))), source(1, encode(upload(2)))))
    first, second = decode_all([run], {(0, 1): "refused"})
    assert first.upload == upload(1)
    assert (second.upload, second.reason, second.lost) == (None, "refused", (VIN, 1, 2, 2))


def test_forms_are_told_apart_by_all_they_say() -> None:
    one = upload(5, epoch=0)
    assert form_hash(one) == form_hash(upload(5, epoch=0))
    assert form_hash(one) == form_hash(upload(5, epoch=0, speed=-0.0))
    assert form_hash(one) != form_hash(upload(5, epoch=0, speed=1.0))
    assert form_hash(one) != form_hash(Upload(vin=VIN, epoch=0, make="Ford", model="Bronco", records=one.records))


NOW = datetime(2026, 1, 1, tzinfo=UTC)
DAY = 86_400_000


@pytest.mark.parametrize(
    ("off", "believed"), [(DAY, True), (DAY + 1, False), (-8 * DAY, True), (-8 * DAY - 1, False), (2**62, False), (-(2**63), False)]
)
def test_an_append_time_is_believed_where_it_can_be_right(off: int, believed: bool) -> None:
    here = int(NOW.timestamp() * 1000)
    assert append_time(here + off, here, 7 * DAY) == (here + off if believed else here)


def test_a_plan_walks_in_the_order_of_arrival() -> None:
    decoded = [Decoded(source(offset, b""), each) for offset, each in enumerate((upload(3), upload(1, 2), upload(3)))]
    found = plan(decoded, lambda key: Progress())
    assert [(row.record.seq, row.source.offset) for row in found.rows] == [(3, 0), (1, 1), (2, 1)]
    assert [row.source.offset for row in found.repeats] == [2]
    assert found.before == {(VIN, 1): Progress()}
    assert found.after == {(VIN, 1): Progress(3)}


def test_only_days_of_rows_are_made() -> None:
    """What comes again, of a day that retention dropped, makes it no more."""
    database = Database(now=lambda: NOW)
    store = PostgresStore(lambda: {}, 9 * DAY, now=lambda: NOW, connect=database.connect)
    at = int(NOW.timestamp() * 1000) - 3 * DAY
    for offset in range(2):
        store.write(uuid.UUID(int=1), "t", [Run(0, offset, offset + 1, (source(offset, encode(upload(1, 2)), at),))])
        assert database.days == ({NOW.date() - timedelta(days=3)} if not offset else set())
        database.days.clear()
        store.forget()


def test_text_of_any_kind_is_made_one_that_postgres_takes() -> None:
    assert plain("é\0\ud800") == "é\\0\\ud800"


def test_what_was_written_lately_is_known_in_two_generations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stores, "MAX_CACHED", 3)
    lasts = Lasts()
    for number in range(7):
        lasts.update({(VIN, number): number + 1})
    assert [lasts.get((VIN, number)) for number in range(7)] == [None, None, None, 4, 5, 6, 7]
    lasts.clear()
    assert lasts.get((VIN, 6)) is None


cuts = st.lists(st.tuples(st.integers(1, 40), st.integers(1, 12), st.integers(1, 5)), min_size=1, max_size=15)


@settings(max_examples=40)
@given(cuts)
def test_any_batching_of_any_cut_gives_the_same_table(sequence: list[tuple[int, int, int]]) -> None:
    """One record at a time, or in batches of any size: rows, progress and open gaps are the same."""
    values = [encode(upload(*range(first, first + size), vin=f"{VIN[:-1]}{number}")) for first, size, number in sequence]
    tables = []
    for size in (1, 4, len(values)):
        database = Database(now=lambda: datetime(2026, 1, 1, tzinfo=UTC))
        store = PostgresStore(lambda: {}, DAY, now=database.clock, connect=database.connect)
        for start in range(0, len(values), size):
            part = values[start : start + size]
            records = tuple(source(start + index, value, 1_767_225_600_000) for index, value in enumerate(part))
            store.write(uuid.UUID(int=1), "t", [Run(0, start, start + len(part), records)])
        seqs = [(row.vin, row.seq) for row in database.tables.rows]
        assert len(seqs) == len(set(seqs))
        progress = {}
        for (vin, epoch), last in database.tables.progress.items():
            gaps = open_gaps(database.tables, vin, epoch)
            opened = [seq for first, end, *_ in gaps for seq in range(first, end + 1)]
            assert sorted([seq for each, seq in seqs if each == vin] + opened) == list(range(1, last + 1))
            progress[vin] = (last, gaps)
        tables.append((seqs, progress))
    assert tables[0] == tables[1] == tables[2]
