"""The walk against a model that knows nothing of gaps as ranges: one state a seq."""

from __future__ import annotations

from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from telemetry.consumer.progress import (
    DEAD_LETTER,
    DECLARED,
    FILLED,
    MISSING,
    UNDECLARED,
    Extent,
    Progress,
    Span,
    Step,
    lose,
    needed,
    walk,
)
from telemetry.record import Gap, Record


def record(seq: int) -> Record:
    return Record(seq=seq, timestamp=0, position_x=0, position_y=0, position_z=0, speed=0)


def step(progress: Progress, seqs: list[int], *gaps: tuple[int, int, str]) -> Step:
    return walk(progress, [record(seq) for seq in seqs], [Gap(*gap) for gap in gaps])


def inserted(found: Step) -> list[int]:
    return [each.seq for each in found.insert]


def repeated(found: Step) -> list[int]:
    return [each.seq for each in found.repeats]


def test_what_follows_is_inserted_and_advances() -> None:
    found = step(Progress(3), [4, 5])
    assert (inserted(found), repeated(found), found.progress) == ([4, 5], [], Progress(5))


def test_a_hole_before_opens_an_undeclared_gap() -> None:
    found = step(Progress(), [4])
    assert found.progress == Progress(4, (Span(1, 3, UNDECLARED, MISSING),))


def test_a_hole_within_opens_one_too() -> None:
    found = step(Progress(), [1, 4])
    assert (inserted(found), found.progress) == ([1, 4], Progress(4, (Span(2, 3, UNDECLARED, MISSING),)))


@pytest.mark.parametrize("seq", [2, 3, 4])
def test_a_record_in_an_open_gap_fills_its_seq(seq: int) -> None:
    found = step(Progress(9, (Span(2, 4, DECLARED, "dropped"),)), [seq])
    assert inserted(found) == [seq]
    assert found.filled == [Span(seq, seq, FILLED, "dropped")]
    assert [open_seq for span in found.progress.gaps for open_seq in range(span.first, span.last + 1)] == [
        each for each in (2, 3, 4) if each != seq
    ]
    assert all(span[2:] == (DECLARED, "dropped") for span in found.progress.gaps)


def test_neighbours_are_filled_as_one() -> None:
    assert step(Progress(9, (Span(2, 6, UNDECLARED, MISSING),)), [3, 4, 5]).filled == [Span(3, 5, FILLED, MISSING)]


def test_any_other_record_below_is_a_repeat() -> None:
    found = step(Progress(9, (Span(2, 4, UNDECLARED, MISSING),)), [5, 6])
    assert (inserted(found), repeated(found), found.filled) == ([], [5, 6], [])


def test_a_declared_gap_above_opens_and_advances_after_a_hole() -> None:
    found = step(Progress(2), [], (5, 7, "rejected"))
    assert found.progress == Progress(7, (Span(3, 4, UNDECLARED, MISSING), Span(5, 7, DECLARED, "rejected")))


def test_a_declared_gap_below_declares_what_is_undeclared_there_and_nothing_else() -> None:
    before = Progress(9, (Span(2, 4, UNDECLARED, MISSING), Span(6, 7, DECLARED, "rejected")))
    found = step(before, [], (3, 11, "dropped"))
    assert found.progress == Progress(
        11,
        (
            Span(2, 2, UNDECLARED, MISSING),
            Span(3, 4, DECLARED, "dropped"),
            Span(6, 7, DECLARED, "rejected"),
            Span(10, 11, DECLARED, "dropped"),
        ),
    )


def test_records_and_gaps_are_walked_in_the_order_of_seq() -> None:
    found = step(Progress(), [1, 4], (5, 5, "b"), (2, 3, "a"))
    assert (inserted(found), found.progress) == ([1, 4], Progress(5, (Span(2, 3, DECLARED, "a"), Span(5, 5, DECLARED, "b"))))


def test_a_lost_upload_opens_an_undeclared_gap_above_last_only() -> None:
    assert lose(Progress(4), 2, 4).progress == Progress(4)
    assert lose(Progress(4), 2, 6).progress == Progress(6, (Span(5, 6, UNDECLARED, DEAD_LETTER),))
    assert lose(Progress(4), 7, 8).progress == Progress(8, (Span(5, 6, UNDECLARED, MISSING), Span(7, 8, UNDECLARED, DEAD_LETTER)))


def test_gaps_that_touch_are_one_if_they_are_of_one_kind() -> None:
    found = step(Progress(), [], (1, 3, "a"), (4, 6, "a"), (7, 8, "b"))
    assert found.progress.gaps == (Span(1, 6, DECLARED, "a"), Span(7, 8, DECLARED, "b"))
    assert step(found.progress, [], (9, 9, "b")).progress.gaps[1:] == (Span(7, 9, DECLARED, "b"),)
    between = Progress(9, (Span(1, 3, DECLARED, "a"), Span(4, 5, UNDECLARED, MISSING), Span(6, 7, DECLARED, "a")))
    assert step(between, [], (4, 5, "a")).progress.gaps == (Span(1, 7, DECLARED, "a"),)
    assert lose(Progress(4, (Span(3, 4, UNDECLARED, MISSING),)), 7, 8).progress.gaps == (
        Span(3, 6, UNDECLARED, MISSING),
        Span(7, 8, UNDECLARED, DEAD_LETTER),
    )


@pytest.mark.parametrize(
    ("extents", "ranges"),
    [
        # What follows asks for nothing, however much of it there is
        ([Extent(10, 12, True), Extent(13, 20, True)], []),
        # What comes again asks for its own seqs, and the neighbours
        ([Extent(4, 6, True)], [(3, 7)]),
        ([Extent(8, 15, True), Extent(16, 16, True)], [(7, 10)]),
        # What opens a gap right above asks for the last seq: theirs may touch
        ([Extent(10, 10, False)], [(9, 10)]),
        ([Extent(12, 12, True), Extent(14, 14, True)], [(9, 10)]),
    ],
)
def test_what_a_walk_asks_for(extents: list[Extent], ranges: list[tuple[int, int]]) -> None:
    assert needed(9, extents) == ranges


@pytest.mark.parametrize("number", [100, 100_000])
def test_a_walk_asks_for_as_much_however_many_gaps_there_are(number: int) -> None:
    """A sender that declares every second seq: what the next upload must know of it does not grow."""
    last = 2 * number
    following, again = Extent(last + 1, last + 100, True), Extent(last - 99, last, True)
    asked = needed(last, [following, again])
    assert sum(end - first + 1 for first, end in asked) == 102


@st.composite
def uploads(draw: st.DrawFn) -> tuple[int, list[str]]:
    """(first seq, what each seq from there on is): a record, a seq of a gap by its reason, or the whole is a dead letter."""
    first = draw(st.integers(1, 25))
    kinds = draw(st.lists(st.sampled_from(["record", "record", "a", "b"]), min_size=1, max_size=8))
    if draw(st.integers(0, 9)) == 0:
        kinds = ["dead"] * len(kinds)
    return first, kinds


def spans_of(first: int, kinds: list[str]) -> list[tuple[int, int, str]]:
    """Neighbouring gap seqs of one reason as gaps."""
    found: list[tuple[int, int, str]] = []
    for seq, kind in enumerate(kinds, start=first):
        if kind == "record":
            continue
        if found and found[-1][1:] == (seq - 1, kind):
            found[-1] = (found[-1][0], seq, kind)
        else:
            found.append((seq, seq, kind))
    return found


def extent_of(first: int, kinds: list[str]) -> Extent:
    return Extent(first, first + len(kinds) - 1, kinds[0] == "record")


class Stored:
    """The table of open gaps: of a batch's uploads only those are read that they need, and what changed is written."""

    def __init__(self) -> None:
        self.last, self.gaps = 0, set[Span]()

    def read(self, batch: list[tuple[int, list[str]]]) -> Progress:
        ranges = needed(self.last, [extent_of(*each) for each in batch])
        found = {span for span in self.gaps for first, end in ranges if span.first <= end and span.last >= first}
        return Progress(self.last, tuple(sorted(found)))

    def write(self, before: Progress, after: Progress) -> None:
        self.last, self.gaps = after.last, self.gaps - set(before.gaps) | set(after.gaps)


@settings(max_examples=100)
@given(st.lists(uploads(), max_size=12), st.integers(1, 4))
def test_the_walk_agrees_with_a_model_of_single_seqs(sequence: list[tuple[int, list[str]]], size: int) -> None:
    """In batches of any size, of which each knows the gaps that it needs alone."""
    stored, rows, filled = Stored(), [], set()
    model: dict[int, tuple[str, str]] = {}
    for start in range(0, len(sequence), size):
        batch = sequence[start : start + size]
        before = progress = stored.read(batch)
        for first, kinds in batch:
            expected_insert, expected_repeat = tell(model, first, kinds)
            if kinds[0] == "dead":
                # What is below last is no news of a hole
                found = lose(progress, first, first + len(kinds) - 1)
            else:
                found = step(progress, [first + i for i, kind in enumerate(kinds) if kind == "record"], *spans_of(first, kinds))
            progress = found.progress
            rows += inserted(found)
            filled |= {seq for span in found.filled for seq in range(span.first, span.last + 1)}
            assert inserted(found) == expected_insert
            assert repeated(found) == expected_repeat
        stored.write(before, progress)

        spans = sorted(stored.gaps)
        open_seqs = [seq for span in spans for seq in range(span.first, span.last + 1)]
        assert sorted(rows + open_seqs) == list(range(1, stored.last + 1))
        assert not filled & set(open_seqs)
        assert filled <= set(rows)
        states = {seq: (span.state, span.reason) for span in spans for seq in range(span.first, span.last + 1)}
        assert states == {seq: state for seq, state in model.items() if state[0] != "row"}
        assert not any(one.last + 1 == two.first and one[2:] == two[2:] for one, two in pairwise(spans))


def tell(model: dict[int, tuple[str, str]], first: int, kinds: list[str]) -> tuple[list[int], list[int]]:
    """What a model of one state a seq says of an upload: the seqs to insert, and those that come again."""
    insert: list[int] = []
    repeat: list[int] = []
    # A loss is told for what is above last, a declaration for what is above last or undeclared
    for seq in range(max(model, default=0) + 1, first):
        model[seq] = (UNDECLARED, MISSING)
    for seq, kind in enumerate(kinds, start=first):
        state = model.get(seq)
        if kind == "record":
            (repeat if state and state[0] == "row" else insert).append(seq)
            model[seq] = ("row", "")
        elif kind == "dead":
            model.setdefault(seq, (UNDECLARED, DEAD_LETTER))
        elif state is None or state[0] == UNDECLARED:
            model[seq] = (DECLARED, kind)
    return insert, repeat


@settings(max_examples=50)
@given(st.integers(1, 30), st.lists(st.tuples(st.integers(1, 30), st.integers(1, 10)), max_size=10))
def test_any_cut_of_one_journey_stores_each_record_once(length: int, cuts: list[tuple[int, int]]) -> None:
    """A vehicle that sends overlapping parts, and at last everything from the start."""
    progress, rows = Progress(), []
    for first, size in [*cuts, (1, length)]:
        found = step(progress, list(range(min(first, length), min(first + size, length + 1))) or [length])
        progress = found.progress
        rows += inserted(found)
    assert sorted(rows) == list(range(1, length + 1))
    assert progress == Progress(length)
