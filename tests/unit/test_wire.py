"""What a fetched batch holds, for bytes that the client library does not read as for those that it does."""

from __future__ import annotations

import gzip
import importlib.util
import random
import time
from typing import Any

import kafka
import pytest
from contract.raw import Header, batch, body, framed, number
from hypothesis import example, given
from hypothesis import strategies as st
from kafka import TopicPartition
from kafka.consumer.fetcher import Fetcher
from kafka.record.memory_records import MemoryRecords, MemoryRecordsBuilder
from telemetry import wire
from telemetry.consumer.batch import Run, TopicRecord, decode_all
from telemetry.wire import Unreadable

# Where the reading is replaced
importlib.import_module("telemetry.clients")
PLACE = TopicPartition("telemetry", 3)
GOOD = framed(body(b"good"))


def library() -> Any:
    """The library's own reading, out of a copy of its module."""
    spec = importlib.util.find_spec("kafka.consumer.fetcher")
    assert spec
    assert spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.Fetcher.PartitionRecords._unpack_records


LIBRARY = library()


def read(content: bytes, start: int = 0) -> list[Any]:
    """What the client reads from an offset on."""
    return list(Fetcher.PartitionRecords(start, PLACE, MemoryRecords(content)).take())


def found(content: bytes) -> list[tuple[int, bytes | None]]:
    return [(each.offset, each.value) for each in read(content)]


def reasons(content: bytes) -> list[str]:
    """Of the dead letters that come of it; empty for what is none."""
    records = [TopicRecord(3, each.offset, each.timestamp, each.key, each.value, tuple(each.headers)) for each in read(content)]
    return [each.reason for each in decode_all([Run(3, 0, len(records), tuple(records))], {})]


def test_this_is_the_release_whose_reading_is_replaced() -> None:
    assert kafka.__version__ == wire.RELEASE
    assert Fetcher.PartitionRecords._unpack_records is wire.read_batches


@given(st.binary(max_size=20))
@example("Größe".encode("latin-1"))
@example(b"\xed\xa0\x80")
def test_a_header_name_gives_its_bytes_whatever_they_are(raw: bytes) -> None:
    [record] = read(batch([framed(body(b"x", headers=[(raw, b"1"), (b"v", None)]))]))
    [(name, value), last] = record.headers
    assert (name.encode(errors="surrogateescape"), value, last) == (raw, b"1", ("v", None))


def test_a_header_name_of_utf_8_is_its_text() -> None:
    [record] = read(batch([framed(body(b"x", headers=[("Größe".encode(), b"1")]))]))
    assert record.headers == [("Größe", b"1")]


@pytest.mark.parametrize("attributes", [0x01, 0x7F, 0x80, 0xFF])
def test_the_first_byte_of_a_record_says_nothing(attributes: int) -> None:
    records = [framed(body(b"one", attributes=attributes)), framed(body(b"two", delta=1, attributes=attributes))]
    assert found(batch(records, base=10)) == [(10, b"one"), (11, b"two")]


@pytest.mark.parametrize("deltas", [(0, 0, 0), (0, 5, 9), (2, 1, 0), (0, -1, 2**31 - 1)])
def test_offsets_are_those_of_the_batch_whatever_its_records_say(deltas: tuple[int, ...]) -> None:
    records = [framed(body(b"x", delta=delta)) for delta in deltas]
    assert [offset for offset, _ in found(batch(records, base=7))] == [7, 8, 9]


def test_a_batch_with_offsets_left_out_has_those_of_its_records() -> None:
    content = batch([framed(body(b"x", delta=1)), framed(body(b"y", delta=4))], base=7, reach=6)
    assert found(content) == [(8, b"x"), (11, b"y")]


def test_numbers_in_more_bytes_than_they_need() -> None:
    # Kafka drops what is beyond 32 bits
    long_length = bytes([GOOD[0] | 0x80, 0x80, 0x80, 0x80, 0x70])
    assert found(batch([long_length + GOOD[1:], GOOD])) == [(0, b"good"), (1, b"good")]


@pytest.mark.parametrize(
    ("first", "created", "expected"),
    [(1_000, 5, 1_005), (2**63 - 1, 1, -(2**63)), (-1, 0, -1), (-(2**63), -1, 2**63 - 1)],
)
def test_times_are_kafkas_64_bits(first: int, created: int, expected: int) -> None:
    [record] = read(batch([framed(body(b"x", created=number(created)))], created=first))
    assert record.timestamp == expected
    [record] = read(batch([framed(body(b"x", created=number(created)))], created=first, attributes=8))
    assert record.timestamp == first


HEADER: list[Header] = [(b"v", b"1")]
BROKEN = [
    body(b"x")[:-1],
    body(b"x") + b"\0",
    body(b"x")[:3],
    b"",
    body(b"x", headers=[]) [:-1] + number(-1),
    body(b"x", headers=[])[:-1] + number(1) + number(-2**30) + number(0),
    body(b"x", headers=[])[:-1] + number(2**31 - 1),
    bytes([0, 0, 0]) + number(2**31 - 1) + b"abc",
    body(b"x", created=b"\xff" * 20),
]  # fmt: skip


@pytest.mark.parametrize("raw", BROKEN)
def test_a_record_that_cannot_be_taken_apart_is_a_dead_letter_with_its_bytes(raw: bytes) -> None:
    content = batch([GOOD, framed(raw), GOOD])
    assert found(content) == [(0, b"good"), (1, raw), (2, b"good")]
    assert "b'unparsable'" in reasons(content)[1]
    assert read(content)[1].headers[1][0] == "reason"


def test_even_where_its_bytes_are_an_upload_it_is_a_dead_letter() -> None:
    gaps = b'"gaps": [{"from_seq": 1, "to_seq": 1, "reason": "x"}]'
    upload = b'{"vin": "1FTFW1E50NFA00001", "epoch": 1, "make": "a", "model": "b", ' + gaps + b"}"
    assert reasons(batch([framed(body(upload))])) == [""]
    assert "unparsable" in reasons(batch([framed(upload)]))[0]


@pytest.mark.parametrize("length", [number(-1), number(100), b"\xff" * 12, b""])
def test_where_a_records_end_is_not_known_the_rest_of_its_batch_is_one_dead_letter(length: bytes) -> None:
    rest = length + GOOD[1:] + GOOD if length else b""
    content = batch([GOOD, rest], count=3) + batch([GOOD], base=3)
    assert found(content) == [(0, b"good"), (1, rest), (2, b""), (3, b"good")]
    assert [bool(reason) for reason in reasons(content)] == [True] * 4


@pytest.mark.parametrize("codec", [1, 2, 3, 4, 7])
def test_a_batch_that_cannot_be_unpacked_is_a_dead_letter_with_all_its_bytes(codec: int) -> None:
    assert found(batch([b"packed"], attributes=codec, count=2)) == [(0, b"packed"), (1, b"")]


def test_a_packed_batch_is_read() -> None:
    content = batch([framed(body(b"a")), framed(body(b"b"))], attributes=1, compress=gzip.compress)
    assert found(content) == [(0, b"a"), (1, b"b")]


def test_markers_of_transactions_are_passed_over_and_their_records_read() -> None:
    writer = (5, 0, 0)
    content = batch([GOOD], attributes=0x10, producer=writer) + batch([b"marker"], base=1, attributes=0x30, producer=writer)
    part = Fetcher.PartitionRecords(0, PLACE, MemoryRecords(content + batch([GOOD], base=2)))
    assert [each.offset for each in part.take()] == [0, 2]
    assert part.next_fetch_offset == 3


def spoilt(content: bytes) -> bytes:
    return content[:-1] + bytes([content[-1] ^ 1])


def test_a_wrong_checksum_names_its_partition_and_all_its_offsets() -> None:
    content = batch([GOOD]) + spoilt(batch([GOOD] * 3, base=1)) + batch([GOOD], base=4)
    part = Fetcher.PartitionRecords(0, PLACE, MemoryRecords(content))
    assert [each.offset for each in part.take()] == [0]
    with pytest.raises(Unreadable, match=r"partition=3\) at offset 1: the batch has a wrong checksum") as error:
        part.take()
    assert (error.value.partition, error.value.first, error.value.last) == (3, 1, 3)


def test_what_a_broken_batch_says_of_its_end_counts_only_at_the_end_of_what_was_fetched() -> None:
    broken = spoilt(batch([GOOD], base=1, reach=1000))
    with pytest.raises(Unreadable) as error:
        read(broken + batch([GOOD], base=3), 1)
    assert (error.value.first, error.value.last) == (1, 2)
    with pytest.raises(Unreadable) as error:
        read(spoilt(batch([GOOD] * 5, base=1)), 3)
    assert (error.value.first, error.value.last) == (3, 5)


@given(st.binary(max_size=60), st.integers(1, 5), st.sampled_from([0, 0x10, 8]))
def test_whatever_a_batch_with_a_right_checksum_holds_it_is_as_many_records(content: bytes, count: int, attributes: int) -> None:
    assert [each.offset for each in read(batch([content], count=count, attributes=attributes))] == list(range(count))


texts = st.text(max_size=8)
content = st.none() | st.binary(max_size=300)
written = st.tuples(content, content, st.lists(st.tuples(texts, st.none() | st.binary(max_size=9))))


@given(st.lists(written, min_size=1, max_size=5), st.integers(0, 2**41))
def test_what_the_library_reads_is_read_alike(records: list[tuple[bytes | None, bytes | None, Any]], created: int) -> None:
    builder = MemoryRecordsBuilder(2, 0, 2**20)
    for index, (key, value, headers) in enumerate(records):
        builder.append(created + index * 7, key, value, headers)
    builder.close()
    content = bytes(builder.buffer())
    part = Fetcher.PartitionRecords(0, PLACE, None)
    theirs = list(LIBRARY(part, PLACE, MemoryRecords(content), None, None))
    # How long headers are in all is told by the library alone, and asked by nobody
    assert [each[:-1] for each in read(content)] == [each[:-1] for each in theirs]


def test_it_costs_no_more_than_the_library() -> None:
    builder = MemoryRecordsBuilder(2, 0, 2**20)
    for index in range(300):
        builder.append(1_000 + index, b"1FTFW1E50NFA00001", random.randbytes(230), [("v", b"1")])
    builder.close()
    content = bytes(builder.buffer())

    def cost(unpack: Any) -> int:
        part = Fetcher.PartitionRecords(0, PLACE, None)
        begun = time.thread_time_ns()
        assert len(list(unpack(part, PLACE, MemoryRecords(content), None, None))) == 300
        return time.thread_time_ns() - begun

    ours, theirs = zip(*((cost(wire.read_batches), cost(LIBRARY)) for _ in range(10)), strict=True)
    assert min(ours) < min(theirs)
