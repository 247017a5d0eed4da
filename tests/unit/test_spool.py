"""The spool: nothing made is lost, uploads have no hole, and a copy is recognized."""

from __future__ import annotations

import asyncio
import math
import os
import random
import shutil
import sqlite3
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from operator import methodcaller
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from telemetry.consumer.progress import DECLARED, Progress, Span, walk
from telemetry.record import Gap, Record, Upload, decode, encode
from telemetry.vehicle.spool import (
    RECORD_BYTES,
    SPOOL_AGE,
    SPOOL_FULL,
    STEPS,
    UNBOUNDED,
    Backlog,
    Bound,
    Made,
    Place,
    Spool,
    SpoolError,
    SpoolThread,
    new_epoch,
    perform,
)

VIN, OTHER = "1M8GDM9AXKP042788", "11111111111111111"


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
        return Spool(self.spool, self.counter, lambda: clock, random.Random(f"{self._name} {self._opened}"), bound)


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def made(epoch: int, seq: int, model: str = "F-150", vin: str = VIN) -> Made:
    return Made(vin, epoch, "Ford", model, Record(seq, 1000.0 + seq, 0.0, 0.0, 0.0, 0.0))


def joined(spool: Spool, vin: str = VIN) -> Place:
    with spool.transaction():
        return spool.join(vin)


def fill(spool: Spool, epoch: int, seqs: range | list[int], model: str = "F-150", vin: str = VIN) -> None:
    with spool.transaction():
        for seq in seqs:
            spool.append(made(epoch, seq, model, vin), 10.0 + seq)


def upload_of(spool: Spool, most: int = 50) -> Upload:
    upload = spool.next_upload(VIN, most)
    assert upload is not None
    assert decode(encode(upload)) == upload
    return upload


def test_what_is_unsent_survives_a_restart_with_epoch_seq_and_time(places: Places) -> None:
    spool = places.open()
    epoch, following, timestamp = joined(spool)
    assert (following, timestamp) == (1, 0.0)
    fill(spool, epoch, range(1, 4))
    spool.close()
    again = places.open()
    assert joined(again) == Place(epoch, 4, 1003.0)
    assert [record.seq for record in upload_of(again).records] == [1, 2, 3]


def test_a_process_that_was_killed_left_what_it_committed_and_nothing_else(places: Places, tmp_path: Path) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 3))
    copy = Places(tmp_path / "copy")
    with spool.transaction():
        spool.append(made(epoch, 3), 1.0)
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
            spool.append(wrong, 1.0)
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
    assert spool.next_upload(VIN, 50) is None


def test_set_aside_records_become_gaps_and_the_cover_stays_whole(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 8))
    spool.set_aside(VIN, epoch, {5: "speed: too high", 1: "a", 2: "b", 99: "never made"}, "rejected")
    upload = upload_of(spool)
    assert [record.seq for record in upload.records] == [3, 4, 6, 7]
    assert upload.gaps == (Gap(1, 2, "rejected"), Gap(5, 5, "rejected"))
    assert ("speed: too high",) in spool._database.execute("SELECT detail FROM gap").fetchall()
    spool.acknowledge(VIN, epoch, upload.last_seq)
    assert spool.next_upload(VIN, 50) is None


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


def test_more_gaps_than_an_upload_may_have_leave_no_hole_in_it(places: Places, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("telemetry.vehicle.spool.MAX_GAPS", 2)
    spool = places.open()
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 7))
    for seq, reason in enumerate(("rejected", "too_large", "rejected", "too_large"), 2):
        spool.set_aside(VIN, epoch, {seq: ""}, reason)
    assert upload_of(spool).last_seq == 3
    spool.acknowledge(VIN, epoch, 3)
    assert upload_of(spool).last_seq == 6


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
    assert spool.backlog() == {VIN: Backlog(4, 12.0), OTHER: Backlog(2, 11.0)}
    spool.close()
    (places.counter / "starts").unlink()
    again = places.open()
    fill(again, joined(again).epoch, range(1, 4))
    assert again.backlog()[VIN] == Backlog(7, 11.0)


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
    new, following, timestamp = joined(again)
    assert new != epoch
    assert (following, timestamp) == (1, 1002.0)
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
        await thread.run(lambda spool: spool.append(made(epoch, 1), 1.0))
        away.rename(places.counter)
        await thread.close()

    asyncio.run(live_on())
    assert "might not be recognized: the spool's counter" in caplog.text


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
        await thread.run(lambda spool: spool.append(made(epoch, 1), 1.0))
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
    assert joined(spool) == Place(77, 5, 0.0)
    spool.close()
    old.execute(f"PRAGMA user_version = {len(STEPS) + 1}")
    old.close()
    with pytest.raises(SpoolError, match="later version"):
        places.open()


def test_a_call_that_fails_takes_only_itself_back(places: Places) -> None:
    spool = places.open()
    epoch = joined(spool).epoch

    def half(spool: Spool) -> None:
        spool.append(made(epoch, 1), 1.0)
        raise ZeroDivisionError

    _, failed, _, refused = perform(
        spool,
        [
            lambda spool: spool.join(OTHER),
            half,
            lambda spool: spool.append(made(epoch, 1), 1.0),
            lambda spool: spool.append(made(epoch, 1), 1.0),
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
    kept = spool.next_upload(OTHER, 50)
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
            spool.append(made(epoch, seq), seq + seq % 3 / 10)
    [gap] = upload_of(spool).gaps
    assert (gap.from_seq, gap.to_seq) in ((1, 29), (1, 30))


def test_a_clock_that_was_put_leaves_no_holes(places: Places) -> None:
    spool = places.open(Bound(1000 * RECORD_BYTES, 10 / 3600))
    epoch = joined(spool).epoch
    with spool.transaction():
        for seq, now in enumerate((9.0, 10.0, 18.0, 11.0, 22.0), 1):
            spool.append(made(epoch, seq), now)
    upload = upload_of(spool)
    assert upload.gaps == (Gap(1, 2, SPOOL_AGE),)
    assert [record.seq for record in upload.records] == [3, 4, 5]


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
        assert spool.append(made(epoch, 16), 26.0) == 4
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
    few = work(spool, lambda: spool.append(made(epoch, 105), 115.0))
    spool._bound = Bound(bound.bytes * 20, bound.hours * 20)
    fill(spool, epoch, range(106, 2110))
    many = work(spool, lambda: spool.append(made(epoch, 2110), 2120.0))
    assert upload_of(spool, 1).gaps[0].to_seq > 100
    assert many < 1.5 * few


def test_who_returns_with_nothing_but_old_records_drops_them_at_once(places: Places) -> None:
    spool = places.open(Bound(math.inf, 1))
    epoch = joined(spool).epoch
    fill(spool, epoch, range(1, 2001))
    statements: list[str] = []
    spool._database.set_trace_callback(statements.append)
    with spool.transaction():
        assert spool.append(made(epoch, 2001), 1e6) == 2000
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
        assert spool.append(made(epoch, 1), 100.0) == 5
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
    upload = spool.next_upload(VIN, 50)
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
                    spool.append(made(epoch, seq), 10.0)
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
            spool.append(made(place.epoch, place.next_seq), 10.0)
        spool.close()
