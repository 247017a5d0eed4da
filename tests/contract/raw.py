"""Kafka's bytes by hand: batches that no client library would make, and a produce request that brings them to a broker."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterable, Sequence

from crc32c import crc32c
from kafka.record.util import encode_varint

Header = tuple[bytes, bytes | None]


def number(value: int) -> bytes:
    """A number as records have it."""
    out = bytearray()
    encode_varint(value, out.append)
    return bytes(out)


def sized(content: bytes | None) -> bytes:
    """Bytes behind their length; None is -1."""
    return number(-1) if content is None else number(len(content)) + content


def body(
    value: bytes | None,
    key: bytes | None = b"k",
    headers: Sequence[Header] = ((b"v", b"1"),),
    delta: int = 0,
    attributes: int = 0,
    created: bytes = b"\0",
) -> bytes:
    """A record without its length."""
    tail = number(len(headers)) + b"".join(sized(name) + sized(content) for name, content in headers)
    return bytes([attributes]) + created + number(delta) + sized(key) + sized(value) + tail


def batch(
    records: Iterable[bytes],
    *,
    base: int = 0,
    attributes: int = 0,
    count: int | None = None,
    reach: int | None = None,
    created: int = 1_000,
    producer: tuple[int, int, int] = (-1, -1, -1),
    compress: Callable[[bytes], bytes] = bytes,
) -> bytes:
    """A batch of records that have their lengths already, see `framed`; reach: how many offsets it takes."""
    records = list(records)
    count = len(records) if count is None else count
    after: bytes = struct.pack("!hiqqqhii", attributes, (count if reach is None else reach) - 1, created, created, *producer, count)
    after += bytes(compress(b"".join(records)))
    envelope: bytes = struct.pack("!qiibI", base, len(after) + 9, 0, 2, int(crc32c(after)))
    return envelope + after


def framed(record: bytes) -> bytes:
    """A record behind its length."""
    return sized(record)


def produce(
    address: tuple[str, int], topic: str, partition: int, content: bytes, transaction: str | None = None
) -> tuple[int, int]:
    """Bring a batch to a broker as it is; Kafka's error code, and the first offset."""
    name = topic.encode()
    words = struct.pack("!hhih", 0, 7, 1, 3) + b"raw"
    words += struct.pack("!h", -1) if transaction is None else struct.pack("!h", len(transaction)) + transaction.encode()
    words += struct.pack("!hiih", -1, 10_000, 1, len(name)) + name + struct.pack("!iii", 1, partition, len(content)) + content
    with socket.create_connection(address, timeout=15) as link, link.makefile("rb") as answers:
        link.sendall(struct.pack("!i", len(words)) + words)
        (size,) = struct.unpack("!i", answers.read(4))
        answer = answers.read(size)
    error, offset = struct.unpack_from("!hq", answer, 4 + 4 + 2 + len(name) + 4 + 4)
    return error, offset
