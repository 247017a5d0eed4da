"""The checker of verify.yml: each planted defect is found, under its name, and nothing is found where nothing is wrong."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import psycopg2
import pytest
from proof import check, report
from proof.__main__ import DriveError, main, start
from proof.check import Contents, DiagRow, GapRow
from proof.config import Config
from proof.drive import Drive
from proof.ledger import MAKE, MODEL, PLANTED, Entry, Ledger, Reading
from proof.plan import PlanError, plan
from proof.senders import Sender, make_vin

VIN, EPOCH = make_vin("test", 1), 7
KEY = (VIN, EPOCH)
GROUPS = {
    "kafka": ["n1", "n2", "n3"],
    "zookeeper": ["n1", "n2", "n3"],
    "postgres": ["n1"],
    "consumers": ["n2", "n3"],
    "producers": ["n1", "n2", "n3"],
    "nginx": ["n1", "n2"],
    "vehicles": ["n1"],
}


def reading(seq: int) -> Reading:
    return Reading(seq, 1.7e9 + seq, seq * 1.5, -seq / 3, 0.25, 12.5)


def row(seq: int, number: int | None = None) -> DiagRow:
    return DiagRow(number or seq, seq, tuple(reading(seq)[1:]), MAKE, MODEL)


def make_ledger() -> Ledger:
    """Seqs 1 to 10 made and acknowledged, of which 5 was dropped on purpose."""
    entry = Entry(VIN, EPOCH, [reading(seq) for seq in range(1, 11)], [(5, 5, PLANTED)], [(1, 6), (7, 10)])
    return Ledger("test", "test", EPOCH, begun=1000.0, ended=2000.0, entries=[entry], lag=0)


def make_stored() -> Contents:
    """What the database has of it when all is well."""
    stored = Contents()
    stored.rows[KEY] = [row(seq) for seq in range(1, 11) if seq != 5]
    stored.gaps[KEY] = [GapRow(5, 5, "declared", PLANTED)]
    return stored


def test_nothing_is_found_where_nothing_is_wrong() -> None:
    found = check.check_stored(make_ledger(), make_stored())
    assert not found.wrong
    assert (found.counts["made"], found.counts["acknowledged"], found.counts["rows"], found.counts["gaps"]) == (10, 9, 9, 1)


def delete_a_row(stored: Contents) -> None:
    del stored.rows[KEY][2]


def double_a_row(stored: Contents) -> None:
    stored.rows[KEY].append(row(3, 99))


def swap_two_rows(stored: Contents) -> None:
    rows = stored.rows[KEY]
    rows[1], rows[2] = rows[2], rows[1]


def alter_a_value(stored: Contents) -> None:
    stored.rows[KEY][2] = row(3)._replace(values=(1.0, 2.0, 3.0, 4.0, 5.0))


def leave_the_epoch_out(stored: Contents) -> None:
    stored.rows[VIN, 8] = stored.rows.pop(KEY)


def add_a_row(stored: Contents) -> None:
    stored.rows[KEY].append(row(11))


def store_what_was_dropped(stored: Contents) -> None:
    stored.rows[KEY].append(row(5, 99))


def forget_a_gap(stored: Contents) -> None:
    stored.gaps[KEY].clear()


def open_a_gap(stored: Contents) -> None:
    del stored.rows[KEY][2]
    stored.gaps[KEY].append(GapRow(3, 3, "undeclared", "missing"))


def note_a_conflict(stored: Contents) -> None:
    stored.conflicts.append((VIN, EPOCH, 3))


@pytest.mark.parametrize(
    ("plant", "invariant", "count"),
    [
        (delete_a_row, "I1", "missing"),
        (double_a_row, "I3", "duplicates"),
        (swap_two_rows, "I4", "reordered"),
        (alter_a_value, "I5", "altered"),
        (leave_the_epoch_out, "I1", "missing"),
        (add_a_row, "I5", "foreign"),
        (store_what_was_dropped, "I2", "torn"),
        (forget_a_gap, "I2", "undeclared"),
        (open_a_gap, "I2", "unexplained"),
        (note_a_conflict, "I5", "conflicts"),
    ],
)
def test_a_planted_defect_is_found_and_named(plant: Callable[[Contents], None], invariant: str, count: str) -> None:
    stored = make_stored()
    plant(stored)
    found = check.check_stored(make_ledger(), stored)
    assert found.counts[count] >= 1
    assert any(VIN in what for what in found.wrong[invariant])


def test_a_filled_gap_may_be_stored_late() -> None:
    stored = make_stored()
    stored.rows[KEY].append(stored.rows[KEY].pop(2))
    assert check.check_stored(make_ledger(), stored).wrong["I4"]
    stored.gaps[KEY].append(GapRow(3, 3, "filled", "missing"))
    assert not check.check_stored(make_ledger(), stored).wrong


def test_what_was_not_acknowledged_may_be_stored_or_not() -> None:
    ledger, stored = make_ledger(), make_stored()
    ledger.entries[0].acknowledged.pop()
    assert not check.check_stored(ledger, stored).wrong
    del stored.rows[KEY][-2:]
    assert not check.check_stored(ledger, stored).wrong


def test_an_acknowledged_record_of_a_form_client_has_its_row_once() -> None:
    entry = Entry(VIN, 0, [reading(1700000000000000)], [], [(1700000000000000, 1700000000000000)])
    ledger = Ledger("test", "test", EPOCH, begun=1000.0, entries=[entry])
    stored = Contents()
    assert check.check_stored(ledger, stored).counts["missing"] == 1
    stored.rows[VIN, 0] = [row(1700000000000000)]
    assert not check.check_stored(ledger, stored).wrong
    stored.rows[VIN, 0] *= 2
    assert check.check_stored(ledger, stored).counts["duplicates"] == 1


def test_what_is_unsent_or_unread_at_the_end_is_found() -> None:
    ledger = make_ledger()
    assert not check.check_drain(ledger).wrong
    ledger.undelivered = 3
    assert check.check_drain(ledger).wrong["I6"]
    ledger.undelivered, ledger.lag = 0, None
    assert check.check_drain(ledger).wrong["I6"]


def watched(ready: Callable[[float], bool | None]) -> Ledger:
    """A ledger of 100 s in which nothing was accepted from 20 to 60."""
    ledger = make_ledger()
    ledger.uploads = [(t, t + 0.1, 0, 503 if 20 <= t < 60 else 200) for t in range(100)]
    ledger.stored = [(t, 1, 1) for t in range(100)]
    ledger.polls = [(float(t), t + 0.1, "producer", ready(t), "") for t in range(100)]
    return ledger


@pytest.mark.parametrize(
    ("ready", "count"),
    [
        (lambda t: not 22 <= t < 61, None),
        (lambda t: True, "false_ready"),
        (lambda t: not 35 <= t < 61, "false_ready"),
        (lambda t: not 22 <= t < 75, "false_unready"),
        (lambda t: None if t == 5 else not 22 <= t < 61, "false_unready"),
    ],
)
def test_readiness_has_to_be_true_within_ten_seconds_both_ways(ready: Callable[[float], bool | None], count: str | None) -> None:
    fault = {"begun": 20.0, "settled": 61.0}
    found = check.check_readiness(watched(ready), [fault], {"producer"}, set())
    assert set(found.counts) == ({count} if count else set())


def test_who_was_asked_just_before_a_fault_may_not_answer() -> None:
    ledger = watched(lambda t: not 22 <= t < 61)
    ledger.polls.append((19.9, 21.0, "producer", None, ""))
    fault = {"begun": 20.0, "settled": 61.0}
    assert not check.check_readiness(ledger, [fault], {"producer"}, set()).counts
    ledger.polls.append((18.0, 19.0, "producer", None, ""))
    assert check.check_readiness(ledger, [fault], {"producer"}, set()).counts == {"false_unready": 1}


def test_secrets_and_stack_traces_are_found() -> None:
    ledger = make_ledger()
    assert not check.check_words(ledger, [], ["hunter2"], ["Traceback"]).wrong
    ledger.bodies = ["500 Traceback (most recent call last)", "400 the password hunter2"]
    lines = [{"container": "kafka", "what": "traces", "text": "at org.apache"}]
    assert check.check_words(ledger, lines, ["hunter2"], ["Traceback"]).counts == {"traces": 2, "secrets": 1}


def test_a_ledger_is_read_as_it_was_written(tmp_path: Path) -> None:
    ledger = watched(lambda t: True)
    ledger.save(tmp_path / "7.json")
    assert Ledger.load(tmp_path / "7.json") == ledger


def test_a_ledger_kept_before_polls_had_two_times_is_still_read(tmp_path: Path) -> None:
    ledger = watched(lambda t: True)
    ledger.save(tmp_path / "7.json")
    values = json.loads((tmp_path / "7.json").read_text())
    values["polls"] = [[asked, *rest] for asked, _, *rest in values["polls"]]
    (tmp_path / "7.json").write_text(json.dumps(values))
    assert Ledger.load(tmp_path / "7.json").polls == [(asked, asked, *rest) for asked, _, *rest in ledger.polls]


def test_recovery_is_counted_from_the_heal() -> None:
    ledger = watched(lambda t: True)
    [seconds] = check.accepted_again(ledger, 21.5)
    assert seconds == pytest.approx(38.6)
    ledger.stored = [(0.0, 5, 5), (10.0, None, 9), (20.0, 6, 20), (30.0, 9, 30), (40.0, 40, 40)]
    assert check.stored_again(ledger, 15.0) == 15.0


def test_the_speed_of_a_drain_is_a_ratio_to_the_making() -> None:
    ledger = make_ledger()
    ledger.rate = 10.0
    ledger.stored = [(0.0, 0, 0), (10.0, 0, 100), (11.0, 50, 110), (12.0, 110, 120), (13.0, 130, 130), (14.0, 140, 140)]
    assert check.drain_ratio(ledger, 10.0, 14.0) == 5.5
    ledger.stored = [(float(t), 10 * t, 10 * t) for t in range(20)]
    assert check.drain_ratio(ledger, 10.0, 14.0) is None


# The plan


def test_a_plan_is_the_same_for_the_same_seed_and_another_for_another() -> None:
    names = ["broker", "producer", "consumer", "nginx"] * 3
    assert plan(names, GROUPS, "1") == plan(names, GROUPS, "1")
    assert plan(names, GROUPS, "1") != plan(names, GROUPS, "2")


def test_victims_are_as_many_as_the_fault_says() -> None:
    faults = {fault.name: fault for fault in plan(["broker", "broker_two", "zookeeper", "zookeeper_quorum"], GROUPS, "1")}
    assert [len(faults[name].hosts) for name in ("broker", "broker_two", "zookeeper_quorum")] == [1, 2, 2]
    # Every member is asked whether it leads
    assert faults["zookeeper"].leader
    assert faults["zookeeper"].hosts == ("n1", "n2", "n3")


def test_a_plan_that_cannot_be_carried_out_names_everything_that_is_wrong() -> None:
    with pytest.raises(PlanError) as error:
        plan(["brokr", "postgres", "broker_two"], {**GROUPS, "kafka": ["n1"]}, "1")
    assert "did you mean broker?" in str(error.value)
    assert "broker_two needs 2 hosts in group kafka, which has 1" in str(error.value)


def test_all_rounds_are_planned() -> None:
    assert [fault.name for fault in plan(["broker", "nginx"], GROUPS, "1", rounds=2)] == ["broker", "nginx"] * 2


# The fleet


def test_looks_at_the_database_are_short_and_the_end_of_a_round_waits_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patience: list[int] = []

    def refuse(**arguments: Any) -> None:
        patience.append(arguments["connect_timeout"])
        raise psycopg2.OperationalError

    monkeypatch.setattr("proof.config.psycopg2.connect", refuse)
    (tmp_path / "password").write_text("word")
    config = Config("test", "1", 1, 0.0, 1, 1, [], [], [], "telemetry", {}, str(tmp_path / "password"))
    assert Drive(config, tmp_path).ask_database() is None
    with pytest.raises(psycopg2.OperationalError):
        config.connect()
    assert patience[0] <= 2
    assert patience[1] >= 20


def test_a_sender_keeps_what_it_sent_until_it_is_acknowledged() -> None:
    sender = Sender(0, Entry(VIN, EPOCH), "seed")
    for _ in range(60):
        sender.make(1000.0)
    items = sender.upload()
    assert len(items) == 50
    sender.acknowledged(items, 1001.0)
    assert sender.entry.acknowledged == [(1, 50)]
    assert len(sender.upload()) == 10


def test_a_round_has_what_it_plants_whatever_its_seed(tmp_path: Path) -> None:
    for seed in range(50):
        drive = Drive(Config("test", str(seed), 1, 0.0, 3, 1, [], [], [], "telemetry", {}, ""), tmp_path)
        # Whoever makes how much
        for turn in range(2000):
            drive.make(drive.senders[turn * seed % 4])
        counted = [entry for entry in drive.ledger.entries if entry.epoch]
        made = sum(len(entry.made) for entry in counted)
        dropped = sum(len(entry.gaps) for entry in counted)
        invalid = sum(item.speed < 0 for entry in counted for item in entry.made)
        assert made // 600 <= dropped
        assert (made - dropped) // 1000 <= invalid
        assert dropped + invalid < made / 20
        assert not drive.ledger.entries[3].gaps
        assert all(item.speed >= 0 for item in drive.ledger.entries[3].made)


def test_a_good_record_that_is_refused_is_a_finding_and_a_bad_one_is_not() -> None:
    entry = Entry(VIN, EPOCH)
    sender = Sender(0, entry, "seed")
    good, bad = reading(1), reading(2)._replace(speed=-1.0)
    sender.queue.extend([good, bad])
    sender.rejected([good, bad], [{"seq": 2}])
    assert entry.gaps == [(2, 2, "rejected")]
    assert not entry.unexpected
    sender.rejected([good], [{"seq": 1}])
    assert entry.unexpected == [{"seq": 1}]


def test_the_table_names_what_is_broken() -> None:
    given = dict.fromkeys(report.COUNTS, 0) | {
        "verdict": "failed", "void": ["broker"], "seed": "1", "epoch": 7, "vins": [VIN], "post_p99_ms": 12, "uploads": 3,
        "seconds": 1.0, "wrong": {"I1": [f"{VIN} seq 3 is gone"]},
        "earlier": [{"epoch": 6, "checked": True, "rows": 5, "wrong": {"I5": ["altered"]}}],
        "faults": [{"name": "broker", "hosts": ["n1"], "bit": False, "proof": "it was not running", "accepted_seconds": 31.0,
                    "target_seconds": 30, "stored_seconds": None, "drain_ratio": 3.5}],
    }  # fmt: skip
    text = report.table(given)
    for words in ("I1 broken: " + VIN, "6 I5 broken: altered", "NOT: it was not running", "slow 31 s", "3.5x", "did not bite"):
        assert words in text


def test_a_proof_that_cannot_read_the_rows_does_not_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "password").write_text("secret")
    config = {
        "instance": "test", "seed": "1", "records": 1, "rate": 1, "vehicles": 1, "forms": 0, "topic": "telemetry",
        "urls": [], "services": [], "consumers": [],
        # Where nobody listens
        "postgres": {"host": "127.0.0.1", "port": 1}, "password_file": str(tmp_path / "password"),
    }  # fmt: skip
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(config)))
    with pytest.raises(DriveError, match="postgres_reader_networks"):
        start(tmp_path / "ledgers")
    assert not (tmp_path / "ledgers" / "config.json").exists()


@pytest.mark.parametrize(
    ("arguments", "given", "status", "words"),
    [
        (["plan"], {"faults": ["brokr"], "groups": GROUPS, "seed": "1", "rounds": 1}, 2, "did you mean broker?"),
        (["plan"], {"faults": ["postgres"], "groups": GROUPS, "seed": "1", "rounds": 1}, 0, '"hosts": ["n1"]'),
        (["wait", "DIR", "--seconds", "0", "--since", "1.5", "--kafka", "{}"], {}, 1, "waiting for the first upload"),
        (["watch", "DIR", "--seconds", "0"], {}, 0, "0 records made"),
        (["finish", "DIR", "--seconds", "0"], {}, 1, "0 unsent"),
        (["note", "DIR"], {"name": "broker"}, 0, ""),
        (["judge", "DIR", "--report", "DIR/report"], {"lines": [], "secrets": [], "traces": []}, 2, "config.json"),
    ],
)
def test_a_command_says_by_its_status_how_it_went(
    arguments: list[str],
    given: dict[str, Any],
    status: int,
    words: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("sys.argv", ["proof", *(each.replace("DIR", str(tmp_path)) for each in arguments)])
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(given)))
    assert main() == status
    said = capsys.readouterr()
    assert words in said.out + said.err
