"""The spool: nothing made is lost, uploads have no hole, and a copy is recognized."""

from __future__ import annotations

import random
import shutil
from pathlib import Path

import pytest
from telemetry.record import Gap, Record, decode, encode
from telemetry.spool import Made, Spool, SpoolError

VIN = "1M8GDM9AXKP042788"


class Places:
    """A spool's two folders."""

    def __init__(self, root: Path) -> None:
        self.spool, self.counter = root / "spool", root / "counter"
        self.spool.mkdir()
        self.counter.mkdir()
        self._opened = 0

    def open(self) -> Spool:
        self._opened += 1
        return Spool(self.spool, self.counter, lambda: 1_700_000_000_000_000 + (self._opened << 21), random.Random(self._opened))


@pytest.fixture
def places(tmp_path: Path) -> Places:
    return Places(tmp_path)


def fill(spool: Spool, epoch: int, seqs: range, model: str = "F-150") -> None:
    for seq in seqs:
        spool.append(Made(VIN, epoch, "Ford", model, Record(seq, 1.0 + seq, 0.0, 0.0, 0.0, 0.0)), 1.0)
    spool.commit()


def test_what_is_unsent_survives_a_restart_with_epoch_and_seq(places: Places) -> None:
    spool = places.open()
    epoch, following = spool.join(VIN)
    assert following == 1
    fill(spool, epoch, range(1, 4))
    spool.close()
    again = places.open()
    assert again.join(VIN) == (epoch, 4)
    upload = again.next_upload(VIN, 50)
    assert upload is not None
    assert [record.seq for record in upload.records] == [1, 2, 3]


def test_what_was_not_committed_is_gone_and_its_seq_is_used_again(places: Places) -> None:
    spool = places.open()
    epoch, _ = spool.join(VIN)
    spool.commit()
    spool.append(Made(VIN, epoch, "Ford", "Edge", Record(1, 1.0, 0.0, 0.0, 0.0, 0.0)), 1.0)
    spool.close()
    assert places.open().join(VIN) == (epoch, 1)


def test_acknowledged_is_forgotten_and_the_rest_begins_where_it_ended(places: Places) -> None:
    spool = places.open()
    epoch, _ = spool.join(VIN)
    fill(spool, epoch, range(1, 8))
    first = spool.next_upload(VIN, 3)
    assert first is not None
    assert (first.first_seq, first.last_seq) == (1, 3)
    spool.acknowledge(VIN, epoch, 3)
    rest = spool.next_upload(VIN, 50)
    assert rest is not None
    assert (rest.first_seq, rest.last_seq) == (4, 7)
    spool.acknowledge(VIN, epoch, 7)
    assert spool.next_upload(VIN, 50) is None
    assert spool.unsent([VIN]) == {VIN: 0}


def test_set_aside_records_become_gaps_and_the_cover_stays_whole(places: Places) -> None:
    spool = places.open()
    epoch, _ = spool.join(VIN)
    fill(spool, epoch, range(1, 8))
    spool.set_aside(VIN, epoch, [1, 2, 5], "rejected", "why")
    upload = spool.next_upload(VIN, 50)
    assert upload is not None
    assert [record.seq for record in upload.records] == [3, 4, 6, 7]
    assert upload.gaps == (Gap(1, 2, "rejected"), Gap(5, 5, "rejected"))
    assert decode(encode(upload)) == upload
    spool.acknowledge(VIN, epoch, upload.last_seq)
    assert spool.next_upload(VIN, 50) is None


def test_an_upload_never_mixes_models(places: Places) -> None:
    spool = places.open()
    epoch, _ = spool.join(VIN)
    fill(spool, epoch, range(1, 3), "Edge")
    fill(spool, epoch, range(3, 5), "Bronco")
    upload = spool.next_upload(VIN, 50)
    assert upload is not None
    assert (upload.model, upload.last_seq) == ("Edge", 2)


@pytest.mark.parametrize("harm", ["restored", "counter lost"])
def test_a_copy_begins_a_new_epoch_and_still_delivers_the_old(places: Places, harm: str, tmp_path: Path) -> None:
    spool = places.open()
    epoch, _ = spool.join(VIN)
    fill(spool, epoch, range(1, 3))
    spool.close()
    if harm == "restored":
        shutil.copytree(places.spool, tmp_path / "backup")
        places.open().close()
        shutil.rmtree(places.spool)
        shutil.copytree(tmp_path / "backup", places.spool)
    else:
        (places.counter / "starts").unlink()
    again = places.open()
    new, following = again.join(VIN)
    assert new != epoch
    assert following == 1
    fill(again, new, range(1, 2))
    old = again.next_upload(VIN, 50)
    assert old is not None
    assert (old.epoch, old.last_seq) == (epoch, 2)
    again.acknowledge(VIN, epoch, 2)
    fresh = again.next_upload(VIN, 50)
    assert fresh is not None
    assert (fresh.epoch, fresh.last_seq) == (new, 1)


def test_a_wiped_spool_begins_a_new_epoch(places: Places) -> None:
    spool = places.open()
    epoch, _ = spool.join(VIN)
    spool.commit()
    spool.close()
    shutil.rmtree(places.spool)
    places.spool.mkdir()
    assert places.open().join(VIN)[0] != epoch


def test_a_spool_that_cannot_be_used_says_where(tmp_path: Path) -> None:
    with pytest.raises(SpoolError, match=r"spool\.sqlite"):
        Spool(tmp_path / "absent", tmp_path)
