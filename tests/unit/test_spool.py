"""The spool: nothing made is lost, uploads have no hole, and a copy is recognized."""

from __future__ import annotations

import asyncio
import math
import os
import random
import shutil
import sqlite3
import tempfile
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from telemetry.consumer.progress import DECLARED, Progress, Span, walk
from telemetry.record import VALUES, Gap, Record, Upload, decode, encode, parse_json
from telemetry.vehicle.spool import (
    COLUMNS,
    MAX_FAULT,
    RECORD_BYTES,
    SPOOL_AGE,
    SPOOL_FULL,
    STEPS,
    UNBOUNDED,
    Backlog,
    Bound,
    Made,
    Numbering,
    PutBack,
    Spool,
    SpoolError,
    SpoolThread,
    new_epoch,
    perform,
)

VIN, OTHER = "1M8GDM9AXKP042788", "11111111111111111"


NAMES = ("Ford", "F-150")


class Clock:
    """Seconds that somebody counts."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


class Places:
    """A spool's two folders."""

    def __init__(self, root: Path) -> None:
        self.spool, self.counter = root / "spool", root / "counter"
        self.spool.mkdir(parents=True)
        self.counter.mkdir()
        self._name, self._opened = root.name, 0

    def open(self, bound: Bound = UNBOUNDED) -> Spool:
        self._opened += 1
        clock = 1_700_000_000_000_000 + (self._opened << 21)
        return Spool(self.spool, self.counter, lambda: clock, random.Random(f"{self._name} {self._opened}"), bound, Clock())


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def at(spool: Spool, seconds: float) -> Spool:
    """The spool, when its processes have run so long."""
    assert isinstance(spool._monotonic, Clock)
    spool._monotonic.now += seconds - spool.ran()
    return spool


def made(epoch: int, seq: int, model: str = "F-150", vin: str = VIN) -> Made:
    return Made(vin, epoch, "Ford", model, Record(seq, 1000.0 + seq, 0.0, 0.0, 0.0, 0.0))


def joined(spool: Spool, vin: str = VIN) -> Numbering:
    with spool.transaction():
        return spool.join(vin)


def fill(spool: Spool, epoch: int, seqs: range | list[int], model: str = "F-150", vin: str = VIN) -> None:
    with spool.transaction():
        for seq in seqs:
            at(spool, 10.0 + seq).append(made(epoch, seq, model, vin))


def upload_of(spool: Spool, most: int = 50) -> Upload:
    upload = spool.next_upload(VIN, NAMES, most)
    assert upload is not None
    assert decode(encode(upload)) == upload
    return upload


def test_what_is_unsent_survives_a_restart_with_epoch_and_seq(places: Places) -> None:
    spool = places.open()
    epoch, following = joined(spool)
    assert following == 1
    fill(spool, epoch, range(1, 4))
    spool.close()
    again = places.open()
    assert joined(again) == Numbering(epoch, 4)
    assert [record.seq for record in upload_of(again).records] == [1, 2, 3]


def test_a_process_that_was_killed_left_what_it_committed_and_nothing_else(places: Places, tmp_path: Path) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 3))
    copy = Places(tmp_path / "copy")
    with spool.transaction():
        at(spool, 1.0).append(made(epoch, 3))
        # The files as they are on the disk at this instruction
        shutil.copytree(places.spool, copy.spool, dirs_exist_ok=True)
        shutil.copytree(places.counter, copy.counter, dirs_exist_ok=True)
    after = copy.open()
    assert joined(after)[:2] == (epoch, 3)
    assert upload_of(after).last_seq == 2


def test_commits_are_on_the_disk_when_they_end(places: Places) -> None:
    database = places.open()._database
    assert database.execute("PRAGMA synchronous").fetchone() == (2,)
    assert database.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_only_the_next_seq_can_be_kept(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 3))
    for wrong in (made(epoch, 2), made(epoch, 4), made(epoch + 1, 3), made(epoch, 3, vin=OTHER)):
        with pytest.raises(SpoolError, match="not the next"), spool.transaction():
            at(spool, 1.0).append(wrong)
    assert joined(spool).next_seq == 3


def test_acknowledged_is_forgotten_and_the_rest_begins_where_it_ended(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 8))
    first = upload_of(spool, 3)
    assert (first.first_seq, first.last_seq) == (1, 3)
    spool.acknowledge(VIN, epoch, 3)
    rest = upload_of(spool)
    assert (rest.first_seq, rest.last_seq) == (4, 7)
    spool.acknowledge(VIN, epoch, 7)
    assert spool.next_upload(VIN, NAMES, 50) is None


def test_set_aside_records_become_gaps_and_the_cover_stays_whole(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 8))
    spool.set_aside(VIN, epoch, {5: "speed: too high", 1: "a", 2: "b", 99: "never made"}, "rejected")
    upload = upload_of(spool)
    assert [record.seq for record in upload.records] == [3, 4, 6, 7]
    assert upload.gaps == (Gap(1, 2, "rejected"), Gap(5, 5, "rejected"))
    assert ("speed: too high",) in spool._database.execute("SELECT fault FROM set_aside").fetchall()
    spool.acknowledge(VIN, epoch, upload.last_seq)
    assert spool.next_upload(VIN, NAMES, 50) is None


def test_a_gap_alone_is_delivered(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 3))
    spool.set_aside(VIN, epoch, {1: "", 2: ""}, "rejected")
    assert spool.backlog() == {VIN: Backlog(2, None)}
    upload = upload_of(spool)
    assert (upload.records, upload.gaps) == ((), (Gap(1, 2, "rejected"),))
    spool.acknowledge(VIN, epoch, 2)
    assert spool.backlog() == {}


def test_more_gaps_than_an_upload_may_have_leave_no_hole_in_it(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 7))
    for seq, reason in enumerate(("rejected", "spool_age", "rejected", "spool_age"), 2):
        spool.set_aside(VIN, epoch, {seq: ""}, reason)
    for last in (3, 6):
        upload = spool.next_upload(VIN, NAMES, 50, 2)
        assert upload is not None
        assert decode(encode(upload)) == upload
        assert upload.last_seq == last
        spool.acknowledge(VIN, epoch, last)


def test_an_upload_never_mixes_models(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 3), "Edge")
    fill(spool, epoch, range(3, 5), "Bronco")
    upload = upload_of(spool)
    assert (upload.model, upload.last_seq) == ("Edge", 2)
    spool.acknowledge(VIN, epoch, 2)
    assert upload_of(spool).model == "Bronco"


def test_the_backlog_counts_every_numbering_and_its_oldest_record(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 6))
    spool.acknowledge(VIN, epoch, 1)
    spool.set_aside(VIN, epoch, {3: "", 5: ""}, "rejected")
    fill(spool, joined(spool, OTHER).epoch, range(1, 3), vin=OTHER)
    assert at(spool, 20.0).backlog() == {VIN: Backlog(4, 8.0), OTHER: Backlog(2, 9.0)}
    spool.close()
    (places.counter / "starts").unlink()
    again = places.open()
    fill(again, joined(again).epoch, range(1, 4))
    assert at(again, 25.0).backlog()[VIN] == Backlog(7, 14.0)


def restored(places: Places, tmp_path: Path) -> None:
    """A backup of a stopped spool is put back after the next life."""
    shutil.copytree(places.spool, tmp_path / "backup")
    places.open().close()
    shutil.rmtree(places.spool)
    shutil.copytree(tmp_path / "backup", places.spool)


def moved(places: Places, tmp_path: Path) -> None:
    """A spool comes to a place where another one began as often."""
    other = Places(tmp_path / "elsewhere")
    Spool(other.spool, other.counter).close()
    places.counter = other.counter


def counter_lost(places: Places, tmp_path: Path) -> None:
    (places.counter / "starts").unlink()


def counter_unreadable(places: Places, tmp_path: Path) -> None:
    (places.counter / "starts").write_text("")


@pytest.mark.parametrize("harm", [restored, moved, counter_lost, counter_unreadable])
def test_a_copy_begins_a_new_epoch_and_still_delivers_the_old(
    places: Places, harm: Callable[[Places, Path], None], tmp_path: Path
) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 3))
    spool.close()
    harm(places, tmp_path)
    again = places.open()
    new, following = joined(again)
    assert new != epoch
    assert following == 1
    fill(again, new, range(1, 2))
    old = upload_of(again)
    assert (old.epoch, old.last_seq) == (epoch, 2)
    again.acknowledge(VIN, epoch, 2)
    fresh = upload_of(again)
    assert (fresh.epoch, fresh.last_seq) == (new, 1)


def test_a_backup_made_while_it_ran_is_recognized_after_a_stop(places: Places, tmp_path: Path) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    shutil.copytree(places.spool, tmp_path / "backup")
    fill(spool, epoch, range(1, 3))
    spool.close()
    shutil.rmtree(places.spool)
    shutil.copytree(tmp_path / "backup", places.spool)
    # Seqs 1 and 2 were used after the backup: in the same epoch they would be used twice.
    assert joined(places.open()).epoch != epoch


def test_what_breaks_off_between_the_two_places_has_counted_in_the_second(places: Places, tmp_path: Path) -> None:
    """Else a backup would equal it, though the spool went on after that."""
    spool = places.open()
    epoch = joined(spool).epoch
    away = places.counter.rename(tmp_path / "away")
    with pytest.raises(SpoolError, match="counter"):
        spool.count()
    away.rename(places.counter)
    crashed = Places(tmp_path / "crashed")
    shutil.copytree(places.spool, crashed.spool, dirs_exist_ok=True)
    shutil.copytree(places.counter, crashed.counter, dirs_exist_ok=True)
    assert joined(crashed.open()).epoch == epoch


def test_a_spool_whose_second_place_refuses_goes_on_and_says_so(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("telemetry.vehicle.spool.COUNT_INTERVAL", 0.0)
    spool = places.open()
    epoch = joined(spool).epoch
    away = places.counter.rename(tmp_path / "away")

    async def live_on() -> None:
        thread = SpoolThread(spool, window=0)
        await thread.run(lambda spool: at(spool, 1.0).append(made(epoch, 1)))
        away.rename(places.counter)
        await thread.close()

    asyncio.run(live_on())
    assert "might not be recognized: the spool" in caplog.text


def test_a_backup_made_while_it_ran_is_recognized_after_a_crash(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("telemetry.vehicle.spool.COUNT_INTERVAL", 0.0)
    spool = places.open()
    epoch = joined(spool).epoch
    back = Places(tmp_path / "back")
    shutil.copytree(places.spool, back.spool, dirs_exist_ok=True)

    async def live_on() -> None:
        thread = SpoolThread(spool, window=0)
        await thread.run(lambda spool: at(spool, 1.0).append(made(epoch, 1)))
        # The crash: the second place is as it is now
        shutil.copytree(places.counter, back.counter, dirs_exist_ok=True)
        await thread.close()

    asyncio.run(live_on())
    assert joined(back.open()).epoch != epoch


def test_a_wiped_spool_begins_a_new_epoch(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    spool.close()
    shutil.rmtree(places.spool)
    places.spool.mkdir()
    assert joined(places.open()).epoch != epoch


def test_an_epoch_is_its_time_with_twenty_random_bits() -> None:
    now = 1_764_000_000_123_456
    epochs = {new_epoch(now, random.Random(seed)) for seed in range(100)}
    assert len(epochs) > 90
    assert {epoch >> 20 for epoch in epochs} == {now >> 20}
    assert max(epochs) < 2**53


def test_a_spool_that_cannot_be_used_says_where(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match=r"absent/spool\.sqlite.*writable"):
        Spool(tmp_path / "absent", tmp_path)
    (tmp_path / "spool.sqlite").write_bytes(b"no database" * 100)
    with pytest.raises(SpoolError, match=r"not a database"):
        Spool(tmp_path, tmp_path)


def test_a_second_process_is_refused(places: Places) -> None:
    first = places.open()
    with pytest.raises(SpoolError, match="in use by another process"):
        places.open()
    first.close()
    places.open()


def test_a_spool_of_the_first_form_is_taken_over_and_one_of_a_later_refused(places: Places) -> None:
    old = sqlite3.connect(places.spool / "spool.sqlite")
    old.executescript(STEPS[0])
    old.execute("INSERT INTO counter VALUES (3)")
    old.execute("INSERT INTO vehicle VALUES (?, 77, 5)", (VIN,))
    old.commit()
    (places.counter / "starts").write_text("3")
    spool = places.open()
    assert joined(spool) == Numbering(77, 5)
    spool.close()
    old.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    old.close()
    with pytest.raises(SpoolError, match="later version"):
        places.open()


def test_a_call_that_fails_takes_only_itself_back(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch

    def half(spool: Spool) -> None:
        at(spool, 1.0).append(made(epoch, 1))
        raise ZeroDivisionError

    _, failed, _, refused = perform(
        spool,
        [
            lambda spool: spool.join(OTHER),
            half,
            lambda spool: at(spool, 1.0).append(made(epoch, 1)),
            lambda spool: at(spool, 1.0).append(made(epoch, 1)),
        ],
    )
    assert isinstance(failed, ZeroDivisionError)
    assert isinstance(refused, SpoolError)
    assert joined(spool).next_seq == 2
    assert joined(spool, OTHER).next_seq == 1


def test_a_full_disk_refuses_and_the_spool_goes_on_when_there_is_room(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    (pages,) = spool._database.execute("PRAGMA page_count").fetchone()
    spool._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(SpoolError, match="full"):
        fill(spool, epoch, range(1, 500))
    assert joined(spool).next_seq == 1
    spool._database.execute("PRAGMA max_page_count = 1000000")
    fill(spool, epoch, range(1, 500))
    assert upload_of(spool, 1000).last_seq == 499


def test_calls_that_come_together_share_a_commit_and_return_after_it(places: Places) -> None:
    spool = places.open()
    commits: list[int] = []
    transaction = spool.transaction

    @contextmanager
    def counted() -> Iterator[None]:
        with transaction():
            yield
        commits.append(1)

    spool.transaction = counted  # type: ignore[method-assign]  # to count what it does

    async def scenario() -> None:
        thread = SpoolThread(spool, window=0)
        # The first call holds the thread until all others wait; it may be taken together with them.
        held = threading.Event()
        first = asyncio.ensure_future(thread.run(lambda _: held.wait(10)))
        others = [asyncio.ensure_future(thread.run(methodcaller("join", f"{n:017d}"))) for n in range(100)]
        await asyncio.sleep(0)
        held.set()
        await asyncio.gather(first, *others)
        assert len(commits) <= 2
        reader = sqlite3.connect(places.spool / "spool.sqlite")
        assert reader.execute("SELECT count(*) FROM vehicle").fetchone() == (100,)
        reader.close()
        with pytest.raises(ZeroDivisionError):
            await thread.run(lambda _: 1 // 0)
        assert await thread.run(lambda spool: spool.join(f"{0:017d}").next_seq) == 1
        await thread.close()

    asyncio.run(scenario())


# The bound


def test_at_the_bound_the_oldest_go_and_are_declared_as_one_gap(places: Places) -> None:
    spool = places.open(Bound(10 * RECORD_BYTES, 1000))
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 26))
    upload = upload_of(spool)
    assert upload.gaps == (Gap(1, 15, SPOOL_FULL),)
    assert [record.seq for record in upload.records] == list(range(16, 26))


def test_a_share_is_a_vehicles_own(places: Places) -> None:
    spool = places.open(Bound(20 * RECORD_BYTES, 1000))
    mine, other = joined(spool).epoch, joined(spool, OTHER).epoch
    fill(spool, other, range(1, 3), vin=OTHER)
    fill(spool, mine, range(1, 101))
    assert len(upload_of(spool).records) == 10
    kept = spool.next_upload(OTHER, NAMES, 50)
    assert kept is not None
    assert ([record.seq for record in kept.records], kept.gaps) == ([1, 2], ())


def test_what_is_too_old_goes_whatever_room_there_is(places: Places) -> None:
    spool = places.open(Bound(1000 * RECORD_BYTES, 10 / 3600))
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 21))
    upload = upload_of(spool)
    # Each was made a second after the one before it
    assert upload.gaps == (Gap(1, 9, SPOOL_AGE),)
    assert upload.records[0].seq == 10


def test_both_bounds_met_in_turn_open_one_gap(places: Places) -> None:
    spool = places.open(Bound(10 * RECORD_BYTES, 10 / 3600))
    epoch = joined(spool).epoch
    with spool.transaction():
        for seq in range(1, 41):
            # A second apart, more or less
            at(spool, seq + seq % 3 / 10).append(made(epoch, seq))
    [gap] = upload_of(spool).gaps
    assert (gap.from_seq, gap.to_seq) in ((1, 29), (1, 30))


def test_what_was_set_aside_keeps_its_reason_at_the_bound(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 16))
    with spool.transaction():
        spool.set_aside(VIN, epoch, {3: "no", 4: "no", 8: "no"}, "rejected")
    spool.close()
    # An operator lowers the bound
    spool = places.open(Bound(10 * RECORD_BYTES, 1000))
    with spool.transaction():
        # What is set aside is declared already, and goes first
        assert at(spool, 26.0).append(made(epoch, 16)) == 3 + 4
    upload = upload_of(spool)
    gaps = [(1, 2, SPOOL_FULL), (3, 4, "rejected"), (5, 6, SPOOL_FULL), (8, 8, "rejected")]
    assert upload.gaps == tuple(Gap(*gap) for gap in gaps)
    assert [record.seq for record in upload.records] == [7, 9, 10, 11, 12, 13, 14, 15, 16]


def work(spool: Spool, call: Callable[[], object]) -> int:
    """What SQLite does for a call, in tens of instructions of its machine: a cost that no other process changes."""
    done = [0]

    def count() -> None:
        done[0] += 1

    with spool.transaction():
        spool._database.set_progress_handler(count, 10)
        call()
        spool._database.set_progress_handler(None, 0)
    return done[0]


@pytest.mark.parametrize("bound", [Bound(math.inf, 100 / 3600), Bound(100 * RECORD_BYTES, math.inf)])
def test_at_the_bound_a_record_costs_the_same_however_much_is_kept(places: Places, bound: Bound) -> None:
    spool = places.open(bound)
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 105))
    few = work(spool, lambda: at(spool, 115.0).append(made(epoch, 105)))
    spool._bound = Bound(bound.bytes * 20, bound.hours * 20)
    fill(spool, epoch, range(106, 2110))
    many = work(spool, lambda: at(spool, 2120.0).append(made(epoch, 2110)))
    assert upload_of(spool, 1).gaps[0].to_seq > 100
    assert many < 1.5 * few


def test_who_returns_with_nothing_but_old_records_drops_them_at_once(places: Places) -> None:
    spool = places.open(Bound(math.inf, 1))
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 2001))
    statements: list[str] = []
    spool._database.set_trace_callback(statements.append)
    with spool.transaction():
        assert at(spool, 1e6).append(made(epoch, 2001)) == 2000
    assert len(statements) < 20
    assert upload_of(spool).gaps == (Gap(1, 2000, SPOOL_AGE),)


def test_the_bound_holds_for_what_a_restored_spool_has_of_its_old_numbering(places: Places) -> None:
    spool = places.open(Bound(1000 * RECORD_BYTES, 10 / 3600))
    fill(spool, joined(spool).epoch, range(1, 6))
    spool.close()
    (places.counter / "starts").unlink()
    spool = places.open(Bound(1000 * RECORD_BYTES, 10 / 3600))
    epoch = joined(spool).epoch
    with spool.transaction():
        assert at(spool, 100.0).append(made(epoch, 1)) == 5
    assert upload_of(spool).gaps == (Gap(1, 5, SPOOL_AGE),)


@pytest.mark.parametrize("answered", [True, False])
def test_what_is_stored_of_an_upload_whose_records_are_dropped_meanwhile_is_no_gap(places: Places, answered: bool) -> None:
    spool = places.open(Bound(10 * RECORD_BYTES, 1000))
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 11))
    under_way = upload_of(spool, most=5)
    fill(spool, epoch, range(11, 19))
    assert upload_of(spool).gaps == (Gap(1, 8, SPOOL_FULL),)
    if answered:
        with spool.transaction():
            spool.acknowledge(VIN, epoch, under_way.last_seq)
        assert upload_of(spool).gaps == (Gap(6, 8, SPOOL_FULL),)
    first = walk(Progress(), under_way.records, under_way.gaps)
    following = upload_of(spool)
    second = walk(first.progress, following.records, following.gaps)
    assert [record.seq for record in first.insert] == [1, 2, 3, 4, 5]
    assert [record.seq for record in second.insert] == list(range(9, 19))
    assert second.progress == Progress(18, (Span(6, 8, DECLARED, SPOOL_FULL),))


def test_a_transaction_that_is_taken_back_drops_nothing(places: Places) -> None:
    spool = places.open(Bound(2 * RECORD_BYTES, 1000))
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 3))
    with pytest.raises(SpoolError):
        # The second 3 is not the vehicle's next
        fill(spool, epoch, [3, 3])
    upload = upload_of(spool)
    assert ([record.seq for record in upload.records], upload.gaps) == ([1, 2], ())


# A crash at any instruction


class Kept(NamedTuple):
    """What a spool holds of a vehicle."""

    records: tuple[int, ...] = ()
    gaps: tuple[Gap, ...] = ()


def kept(spool: Spool) -> Kept:
    upload = spool.next_upload(VIN, NAMES, 50)
    return Kept(tuple(record.seq for record in upload.records), upload.gaps) if upload else Kept()


LIFE: list[tuple[str, int, Kept]] = [
    ("open", 0, Kept()),
    ("append", 1, Kept((1,))),
    ("append", 2, Kept((1, 2))),
    ("append", 3, Kept((1, 2, 3))),
    ("append", 4, Kept((2, 3, 4), (Gap(1, 1, SPOOL_FULL),))),
    ("acknowledge", 2, Kept((3, 4))),
    ("set aside", 3, Kept((4,), (Gap(3, 3, "rejected"),))),
    ("append", 5, Kept((4, 5), (Gap(3, 3, "rejected"),))),
    ("append", 6, Kept((4, 5, 6), (Gap(3, 3, "rejected"),))),
    ("append", 7, Kept((5, 6, 7), (Gap(3, 3, "rejected"), Gap(4, 4, SPOOL_FULL)))),
    ("close", 0, Kept((5, 6, 7), (Gap(3, 3, "rejected"), Gap(4, 4, SPOOL_FULL)))),
    ("open", 0, Kept((5, 6, 7), (Gap(3, 3, "rejected"), Gap(4, 4, SPOOL_FULL)))),
    ("append", 8, Kept((6, 7, 8), (Gap(3, 3, "rejected"), Gap(4, 5, SPOOL_FULL)))),
    ("acknowledge", 8, Kept()),
    ("append", 9, Kept((9,))),
]
"""What is asked of a spool with room for three records, one after the other, and what it holds after each."""


def test_a_crash_at_any_instruction_leaves_what_was_asked_last_done_or_not_done(
    places: Places, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bound = Bound(3 * RECORD_BYTES, 1000)
    crashes: list[tuple[int, Places]] = []
    done: list[Kept] = []

    def crash(*_: object) -> None:
        # The files as they are at this instruction: what a process that is killed leaves
        copy = Places(tmp_path / f"crash{len(crashes)}")
        shutil.copytree(places.spool, copy.spool, dirs_exist_ok=True)
        shutil.copytree(places.counter, copy.counter, dirs_exist_ok=True)
        crashes.append((len(done), copy))

    def connect(*arguments: Any, connect: Callable[..., Any] = sqlite3.connect, **options: Any) -> sqlite3.Connection:
        database: sqlite3.Connection = connect(*arguments, **options)
        # At every statement, before it is run
        database.set_trace_callback(crash)
        return database

    def around(call: Callable[..., object]) -> Callable[..., None]:
        def call_between(*arguments: Any) -> None:
            crash()
            call(*arguments)
            crash()

        return call_between

    monkeypatch.setattr(sqlite3, "connect", connect)
    for name in ("fsync", "replace"):
        monkeypatch.setattr(os, name, around(getattr(os, name)))
    for what, seq, after in LIFE:
        if what == "open":
            spool = places.open(bound)
            epoch = joined(spool).epoch
        elif what == "close":
            spool.close()
        else:
            with spool.transaction():
                if what == "append":
                    at(spool, 10.0).append(made(epoch, seq))
                elif what == "acknowledge":
                    spool.acknowledge(VIN, epoch, seq)
                else:
                    spool.set_aside(VIN, epoch, {seq: "no"}, "rejected")
        done.append(after)
    monkeypatch.undo()
    spool._database.set_trace_callback(None)
    assert kept(spool) == LIFE[-1][2]
    spool.close()

    assert len(crashes) > 100
    for number, copy in crashes:
        what, seq, after = LIFE[number]
        before = LIFE[number - 1][2] if number else Kept()
        spool = copy.open(bound)
        place = joined(spool)
        held = kept(spool)
        assert held in (before, after)
        known = max([each[1] for each in LIFE[:number] if each[0] == "append"], default=0)
        if place.epoch == epoch:
            assert place.next_seq - known in ((1, 2) if what == "append" else (1,))
            assert not held.records or held.records[-1] == place.next_seq - 1
        else:
            # While a start or an end is being counted, it costs an epoch
            assert what in ("open", "close")
            assert place.next_seq == 1
        with spool.transaction():
            at(spool, 10.0).append(made(place.epoch, place.next_seq))
        spool.close()


# What was set aside


def aside(spool: Spool) -> list[int]:
    """Seqs that are set aside."""
    return [seq for (seq,) in spool._database.execute("SELECT seq FROM set_aside ORDER BY vin, epoch, seq")]


def put_back(spool: Spool) -> None:
    """As the operator's tool does."""
    spool._database.execute("UPDATE set_aside SET put_back = 1")


def test_what_is_set_aside_is_kept_whole(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    reading = Record(1, 1e9, 1.5, -2.5, 3.5, 99999.0)
    with spool.transaction():
        at(spool, 7.0).append(Made(VIN, epoch, "Ford", "Edge", reading))
        spool.set_aside(VIN, epoch, {1: "speed: " + "x" * 200}, "rejected")
    spool.close()
    spool = places.open()
    assert spool.kept_aside() == {VIN: 1}
    [row] = spool._database.execute(f"SELECT {', '.join((*COLUMNS, 'fault'))} FROM set_aside")
    kept = dict(zip((*COLUMNS, "fault"), row, strict=True))
    assert [kept[name] for name in ("vin", "epoch", "seq", "made_at", "make", "model")] == [VIN, epoch, 1, 7.0, "Ford", "Edge"]
    assert {name: kept[name] for name in VALUES} == {name: getattr(reading, name) for name in VALUES}
    assert kept["fault"] == ("speed: " + "x" * 200)[:MAX_FAULT]


def test_what_is_put_back_waits_for_its_gap_and_then_fills_it_in_the_store(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 11))
    spool.set_aside(VIN, epoch, {3: "no", 4: "no", 8: "no"}, "rejected")
    put_back(spool)
    under_way = upload_of(spool)
    assert under_way.gaps == (Gap(3, 4, "rejected"), Gap(8, 8, "rejected"))
    # The store knows nothing of the gaps yet: seqs before them would be taken for lost
    assert spool.next_put_back(VIN, 50) is None
    first = walk(Progress(), under_way.records, under_way.gaps)
    spool.acknowledge(VIN, epoch, under_way.last_seq)
    # Not by an answer to the upload that declared them
    assert aside(spool) == [3, 4, 8]
    assert spool.backlog()[VIN].put_back == 3

    progress = first.progress
    for seqs in ([3, 4], [8]):
        upload = spool.next_put_back(VIN, 50)
        assert upload is not None
        assert decode(encode(upload)).records == upload.records
        assert [record.seq for record in upload.records] == seqs
        step = walk(progress, upload.records, upload.gaps)
        assert step.insert == list(upload.records)
        progress = step.progress
        spool.acknowledge_put_back(upload)
    assert (progress.last, progress.gaps) == (10, ())
    assert spool.next_put_back(VIN, 50) is spool.next_upload(VIN, NAMES, 50) is None
    assert (spool.backlog(), spool.kept_aside()) == ({}, {})


def test_an_answer_forgets_only_what_was_sent_though_more_was_put_back_meanwhile(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 6))
    spool.set_aside(VIN, epoch, {2: "no", 5: "no"}, "rejected")
    spool.acknowledge(VIN, epoch, 5)
    spool._database.execute("UPDATE set_aside SET put_back = 1 WHERE seq = 5")
    upload = spool.next_put_back(VIN, 50)
    fill(spool, epoch, range(6, 8))
    put_back(spool)
    assert upload is not None
    spool.acknowledge_put_back(upload)
    assert aside(spool) == [2]
    # An upload of the line, in which nothing of it is sent
    spool.acknowledge(VIN, epoch, 7)
    assert aside(spool) == [2]


def test_what_is_rejected_again_is_set_aside_again_and_declared_once(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 4))
    spool.set_aside(VIN, epoch, {2: "no"}, "rejected")
    spool.acknowledge(VIN, epoch, 3)
    put_back(spool)
    spool.set_aside(VIN, epoch, {2: "still no"}, "rejected")
    assert spool.next_put_back(VIN, 50) is spool.next_upload(VIN, NAMES, 50) is None
    assert spool._database.execute("SELECT seq, fault FROM set_aside").fetchall() == [(2, "still no")]
    assert spool.kept_aside() == {VIN: 1}


def test_what_is_put_back_never_mixes_models_and_is_sent_in_parts(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 5), "Edge")
    fill(spool, epoch, range(5, 7), "Bronco")
    spool.set_aside(VIN, epoch, dict.fromkeys(range(1, 7), "no"), "rejected")
    spool.acknowledge(VIN, epoch, 6)
    put_back(spool)
    parts = []
    while upload := spool.next_put_back(VIN, 3):
        parts.append((upload.model, upload.first_seq, upload.last_seq))
        spool.acknowledge_put_back(upload)
    assert parts == [("Edge", 1, 3), ("Edge", 4, 4), ("Bronco", 5, 6)]


def test_gaps_alone_have_a_make_that_is_taken_though_their_records_had_none(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 4))
    # As an earlier version kept them
    spool._database.execute("UPDATE record SET make = 'Bayerische Motoren Werke AG'")
    spool.set_aside(VIN, epoch, dict.fromkeys(range(1, 4), "make: too long"), "rejected")
    fill(spool, epoch, range(4, 5))
    upload = upload_of(spool)
    assert (upload.make, upload.gaps, len(upload.records)) == ("Ford", (Gap(1, 3, "rejected"),), 1)
    spool.set_aside(VIN, epoch, {4: "no"}, "rejected")
    assert upload_of(spool).gaps == (Gap(1, 4, "rejected"),)


def test_what_is_set_aside_is_bounded_by_the_vehicles_share_and_by_age(places: Places) -> None:
    spool = places.open(Bound(20 * RECORD_BYTES, 1000 / 3600))
    epoch = joined(spool).epoch
    for seq in range(1, 31):
        fill(spool, epoch, [seq])
        spool.set_aside(VIN, epoch, {seq: "no"}, "rejected")
    fill(spool, epoch, [31])
    # What is left of the share beside one record, and an unsent one is worth more
    assert aside(spool) == list(range(22, 31))
    fill(spool, epoch, range(32, 41))
    assert aside(spool) == list(range(26, 31))
    assert spool.kept_aside() == {VIN: 5}
    assert [record.seq for record in upload_of(spool).records] == list(range(31, 41))
    spool.acknowledge(VIN, epoch, 40)
    with spool.transaction():
        at(spool, 10.0 + 28 + 1000.5).append(made(epoch, 41))
    assert aside(spool) == [29, 30]
    assert spool.kept_aside() == {VIN: 2}


def test_a_vehicle_that_rejects_every_second_record_costs_the_same_however_many_there_are(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    costs = []
    for seqs in (range(1, 201), range(201, 4201)):
        fill(spool, epoch, seqs)
        with spool.transaction():
            spool.set_aside(VIN, epoch, dict.fromkeys(seqs[:-2:2], "no"), "rejected")
        last = seqs[-1]
        costs.append(work(spool, partial(spool.set_aside, VIN, epoch, {last: "no"}, "rejected")))
    few, many = costs
    assert many < 1.5 * few


@pytest.mark.parametrize(
    "wrong",
    [
        Made(VIN, 1, "", "Edge", Record(1, 0.0, 0.0, 0.0, 0.0, 0.0)),
        Made(VIN, 1, "Bayerische Motoren Werke AG", "Edge", Record(1, 0.0, 0.0, 0.0, 0.0, 0.0)),
        Made(VIN, 1, "Ford", "E\0dge", Record(1, 0.0, 0.0, 0.0, 0.0, 0.0)),
        Made(VIN, 1, "Ford", "\ud800", Record(1, 0.0, 0.0, 0.0, 0.0, 0.0)),
        Made("vin", 1, "Ford", "Edge", Record(1, 0.0, 0.0, 0.0, 0.0, 0.0)),
        Made(VIN, 2**53, "Ford", "Edge", Record(1, 0.0, 0.0, 0.0, 0.0, 0.0)),
    ],
)
def test_what_could_not_even_be_declared_is_not_kept(places: Places, wrong: Made) -> None:
    spool = places.open()
    with spool.transaction():
        spool.join(wrong.vin)
        spool._database.execute("UPDATE vehicle SET epoch = ?", (wrong.epoch,))
    with pytest.raises(SpoolError, match="cannot be sent"), spool.transaction():
        spool.append(wrong)
    assert spool.backlog() == {}


# Its age, its clock, its epoch


def test_a_records_age_is_the_time_that_the_process_ran_whatever_the_clock_shows(places: Places) -> None:
    spool = places.open(Bound(math.inf, 10 / 3600))
    epoch = joined(spool).epoch
    for seq, shown in enumerate((946_684_800.0, 946_684_803.0, 1_790_000_000.0, 0.0, 4_000_000_000.0), 1):
        reading = Record(seq, shown, 0.0, 0.0, 0.0, 0.0)
        with spool.transaction():
            assert at(spool, seq).append(Made(VIN, epoch, "Ford", "Edge", reading)) == 0
    assert spool.backlog()[VIN].age == 4.0
    with spool.transaction():
        assert at(spool, 13.5).append(made(epoch, 6)) == 3
    assert upload_of(spool).gaps == (Gap(1, 3, SPOOL_AGE),)


@pytest.mark.parametrize("killed", [False, True])
def test_an_age_goes_on_where_the_last_process_ended(places: Places, tmp_path: Path, killed: bool) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 6))
    at(spool, 100.0)
    if killed:
        copy = Places(tmp_path / "copy")
        shutil.copytree(places.spool, copy.spool, dirs_exist_ok=True)
        shutil.copytree(places.counter, copy.counter, dirs_exist_ok=True)
        places = copy
    else:
        spool.close()
    again = places.open()
    # A process that is killed has kept how long it ran with its last record, made at 15
    assert again.ran() == (15.0 if killed else 100.0)
    assert again.backlog()[VIN].age == again.ran() - 11.0


def test_a_spool_of_the_form_before_keeps_its_records_and_their_age_begins(places: Places) -> None:
    old = sqlite3.connect(places.spool / "spool.sqlite")
    old.executescript(STEPS[0] + STEPS[1] + "PRAGMA user_version = 2")
    old.execute("INSERT INTO counter VALUES (3)")
    old.execute("INSERT INTO vehicle VALUES (?, 77, 5, 4e9)", (VIN,))
    for seq, wall in ((1, 946_684_800.0), (2, 946_684_803.0), (4, 1_790_000_000.0)):
        old.execute("INSERT INTO record VALUES (?, 77, ?, ?, 'Ford', 'Edge', 1, 2, 3, 4, 5)", (VIN, seq, wall))
    old.execute("INSERT INTO gap VALUES (?, 77, 3, 3, 'too_large', 'why', 'Ford', 'Edge')", (VIN,))
    old.commit()
    old.close()
    (places.counter / "starts").write_text("3")
    spool = places.open(Bound(math.inf, 1))
    assert at(spool, 1800.0).backlog() == {VIN: Backlog(4, 1800.0)}
    with spool.transaction():
        assert spool.append(made(77, 5, "Edge")) == 0
    upload = upload_of(spool)
    assert [record.seq for record in upload.records] == [1, 2, 4, 5]
    assert upload.records[0] == Record(1, 1.0, 2.0, 3.0, 4.0, 5.0)
    assert upload.gaps == (Gap(3, 3, "too_large"),)


@pytest.mark.parametrize("table", ["record", "set_aside"])
def test_the_tables_have_the_records_fields(places: Places, table: str) -> None:
    """A field that is added to the record needs a step of the schema."""
    names = {name for _, name, *_ in places.open()._database.execute(f"PRAGMA table_info({table})")}
    assert names - {"fault", "put_back"} == {"vin", "epoch", "seq", "made_at", "make", "model", *VALUES}


@pytest.mark.parametrize("microseconds", [2**53 - 1, 2**53, 2**63, 0, -1, -(2**40)])
def test_an_epoch_stays_in_its_range_whatever_the_clock_shows(microseconds: int) -> None:
    epochs = {new_epoch(microseconds, random.Random(seed)) for seed in range(200)}
    assert len(epochs) > 190
    assert min(epochs) >= 1
    assert max(epochs) < 2**53


# A thread that fails


class Sick:
    """A connection that refuses some statements, as a disk with errors does."""

    def __init__(self, database: Any) -> None:
        self._database, self.refuses = database, ""

    def execute(self, statement: str, *arguments: Any) -> Any:
        if self.refuses and self.refuses in statement:
            raise sqlite3.OperationalError("disk I/O error")
        return self._database.execute(statement, *arguments)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


def test_a_disk_that_fails_while_it_counts_ends_nothing(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.vehicle.spool.COUNT_INTERVAL", 0.0)
    spool = places.open()
    epoch = joined(spool).epoch
    sick = spool._database = Sick(spool._database)  # type: ignore[assignment]  # as much of it as the spool uses

    async def scenario() -> None:
        thread = SpoolThread(spool, window=0)
        sick.refuses = "SELECT starts"
        assert await asyncio.wait_for(thread.run(lambda spool: spool.append(made(epoch, 1))), 10) == 0
        sick.refuses = ""
        assert await asyncio.wait_for(thread.run(lambda spool: spool.append(made(epoch, 2))), 10) == 0
        thread.check(1.0)
        await thread.close()

    asyncio.run(scenario())


def test_a_thread_that_ends_fails_all_that_wait_and_tells_the_process(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.vehicle.spool.COUNT_INTERVAL", 0.0)
    spool = places.open()

    def count() -> None:
        raise ZeroDivisionError

    async def scenario() -> None:
        thread = SpoolThread(spool, window=0)
        thread.check(1.0)
        with monkeypatch.context() as patch:
            patch.setattr(spool, "count", count)
            calls = [asyncio.ensure_future(thread.run(lambda spool: spool.join(VIN))) for _ in range(20)]
            done, late = await asyncio.wait(calls, timeout=10)
        assert not late
        assert all("ZeroDivisionError" in str(call.exception()) for call in done if call.exception())
        with pytest.raises(SpoolError, match="ZeroDivisionError"):
            thread.check(1.0)
        with pytest.raises(SpoolError, match="ZeroDivisionError"):
            await asyncio.wait_for(thread.run(lambda spool: spool.join(VIN)), 10)
        await thread.close()

    asyncio.run(scenario())


def test_a_thread_that_hangs_is_told_and_does_not_hold_up_the_end(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.vehicle.spool.CLOSE_TIMEOUT", 0.01)
    spool = places.open()

    async def scenario() -> None:
        thread = SpoolThread(spool, window=0)
        for _ in range(3):
            # Slow, but it comes round
            await thread.run(lambda spool: spool.join(VIN))
            thread.check(50.0)
        await thread.run(lambda spool: spool.join(VIN))
        held, begun = threading.Event(), threading.Event()

        def hold(_: Spool) -> bool:
            begun.set()
            return held.wait(10)

        call = asyncio.ensure_future(thread.run(hold))
        await asyncio.to_thread(begun.wait, 10)
        for _ in range(60):
            thread.check(1.0)
        with pytest.raises(SpoolError, match="'spool' has not come round for 61 s"):
            thread.check(1.0)
        with pytest.raises(SpoolError, match="its disk hangs"):
            await thread.close()
        held.set()
        await call

    asyncio.run(scenario())


# The backlog, followed and read


@settings(max_examples=30, deadline=None)
@given(data=st.data())
def test_the_backlog_that_is_followed_is_the_one_that_is_read(data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        places = Places(Path(folder, "followed"))
        spool = places.open(Bound(8 * RECORD_BYTES, 20 / 3600))
        vins = (VIN, OTHER)
        for now in range(data.draw(st.integers(1, 40))):
            vin = data.draw(st.sampled_from(vins))
            what = data.draw(st.sampled_from(("append", "append", "acknowledge", "set aside", "put back", "fail", "epoch", "look")))
            place = joined(spool, vin)
            try:
                with spool.transaction():
                    if what in ("append", "fail"):
                        at(spool, now).append(made(place.epoch, place.next_seq, vin=vin))
                    if what == "fail":
                        raise ZeroDivisionError
                    upload = spool.next_put_back(vin, 3) or spool.next_upload(vin, NAMES, 3)
                    if what == "acknowledge" and isinstance(upload, PutBack):
                        spool.acknowledge_put_back(upload)
                    elif what == "acknowledge" and upload is not None:
                        spool.acknowledge(vin, upload.epoch, upload.last_seq)
                    elif what == "set aside" and upload is not None:
                        spool.set_aside(vin, upload.epoch, {record.seq: "" for record in upload.records[1::2]}, "rejected")
                    elif what == "put back":
                        put_back(spool)
                    elif what == "epoch":
                        spool._database.execute("UPDATE vehicle SET epoch = epoch + 1, next_seq = 1 WHERE vin = ?", (vin,))
            except ZeroDivisionError:
                pass
            if what == "look":
                spool.backlog()
        followed, counted = spool.backlog(), spool.kept_aside()
        spool._lines = None
        assert spool.backlog() == followed
        assert counted == dict(spool._database.execute("SELECT vin, count(*) FROM set_aside GROUP BY vin"))
        spool.close()


def test_a_fleet_that_has_delivered_costs_nothing_to_look_at(places: Places) -> None:
    spool = places.open()
    vins = [f"{number:017d}" for number in range(500)]
    for vin in vins:
        fill(spool, joined(spool, vin).epoch, range(1, 3), vin=vin)
    assert len(spool.backlog()) == 500
    for vin in vins:
        spool.acknowledge(vin, joined(spool, vin).epoch, 2)
    statements: list[str] = []
    spool._database.set_trace_callback(statements.append)
    assert spool.backlog() == {}
    assert len(statements) == 1
    # And an outage's: only what goes on being acknowledged is looked up
    for vin in vins:
        fill(spool, joined(spool, vin).epoch, range(3, 6), vin=vin)
    spool.acknowledge(vins[7], joined(spool, vins[7]).epoch, 3)
    statements.clear()
    assert sum(each.unsent for each in spool.backlog().values()) == 1499
    assert len(statements) == 2


# A vehicle and the store, whatever comes between them


@settings(max_examples=40, deadline=None)
@given(data=st.data(), room=st.sampled_from((4, 1000)))
def test_every_record_is_stored_once_or_declared_whatever_is_refused_lost_or_put_back(data: st.DataObject, room: int) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if os.path.isdir("/dev/shm") else None) as folder:
        places = Places(Path(folder, "spool"))
        bound = Bound(room * RECORD_BYTES, 1000)
        spool = places.open(bound)
        place = joined(spool)
        made_so_far = 0
        progress = Progress()
        stored: list[int] = []

        def send(outcome: str) -> bool:
            nonlocal progress
            with spool.transaction():
                upload = spool.next_put_back(VIN, 3) or spool.next_upload(VIN, NAMES, 3, 2)
                if upload is None:
                    return False
                assert parse_json(encode(upload)).records == upload.records
                if outcome == "reject" and upload.records:
                    faults = {record.seq: "no" for record in upload.records[data.draw(st.integers(0, 2)) :]}
                    spool.set_aside(VIN, upload.epoch, faults, "rejected")
                    return True
                step = walk(progress, upload.records, upload.gaps)
                progress = step.progress
                stored.extend(record.seq for record in step.insert)
                if outcome == "lose the answer":
                    return True
                if isinstance(upload, PutBack):
                    spool.acknowledge_put_back(upload)
                else:
                    spool.acknowledge(VIN, upload.epoch, upload.last_seq)
            return True

        for what in data.draw(
            st.lists(st.sampled_from(("make", "make", "send", "reject", "lose the answer", "put back", "start")))
        ):
            if what == "make":
                made_so_far += 1
                fill(spool, place.epoch, [made_so_far])
            elif what == "put back":
                put_back(spool)
            elif what == "start":
                spool.close()
                spool = places.open(bound)
            else:
                send(what)
            assert {span.state for span in progress.gaps} <= {DECLARED}
        put_back(spool)
        while send("take"):
            pass
        declared = [seq for span in progress.gaps for seq in range(span.first, span.last + 1)]
        assert sorted(stored + declared) == list(range(1, made_so_far + 1))
        assert room == 4 or not declared
        assert (spool.backlog(), spool.kept_aside()) == ({}, {})
        spool.close()
