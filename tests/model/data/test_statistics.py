"""Statistics of events and answers equal those counted by hand."""

import numpy as np
import pytest

from peterrec.model.data import statistics
from peterrec.model.data.histories import UserLabels
from peterrec.model.data.interactions import InteractionSource, read_events
from peterrec.model.data.missing import profile_table
from peterrec.model.data.statistics import clock_of, describe_answers, describe_events
from peterrec.model.data.tables import TableSource

TABLE = """who,what,at,rating
u,a,1700000000,5
u,b,1700086400,
u,a,1700086400,NaN
u,a,1700086400,1
v,a,1700345600,NULL
w,c,1700345600,2
w,c,1700345600,
w,d,1700345600,4
"""


def source(tmp_path, text: str = TABLE, order: str | None = "at", **given) -> InteractionSource:
    (tmp_path / "events.csv").write_text(text)
    table = TableSource(tmp_path / "events.csv", **given)
    return InteractionSource(table, "who", "what", order)


@pytest.fixture(params=[1 << 23, 1], ids=["at once", "user by user"])
def info(tmp_path, monkeypatch, request):
    monkeypatch.setattr(statistics, "BLOCK_EVENTS", request.param)
    return describe_events(read_events(source(tmp_path)))


def test_users_items_and_events_are_counted(info):
    assert (info.users, info.items, info.events) == (3, 4, 8)
    assert (info.single_event_users, info.single_event_items) == (1, 2)
    assert info.sparsity == pytest.approx(1 - 5 / 12)
    assert info.length_spread.largest == 4
    assert info.length_spread.mean == pytest.approx(8 / 3)


def test_repetitions_duplicates_and_ties_are_counted(info):
    assert info.repeated_share == pytest.approx(3 / 8)
    assert info.duplicate_events == 2  # the second (u, a) of a moment, and the second (w, c)
    assert info.times.tied_events == 6
    assert info.times.tied_share == pytest.approx(6 / 8)


def test_the_top_items_stand_with_their_numbers_and_shares(info):
    top = [(item.value, item.count, item.share) for item in info.top_items]
    assert top == [("a", 4, 0.5), ("c", 2, 0.25), ("b", 1, 0.125), ("d", 1, 0.125)]


def test_times_have_their_unit_zone_and_span(info):
    assert (info.times.unit, info.times.zone) == ("epoch seconds", "UTC")
    assert (info.times.first, info.times.last) == ("2023-11-14 22:13:20", "2023-11-18 22:13:20")
    assert (info.times.first_value, info.times.last_value) == ("1700000000", "1700345600")
    assert info.times.days == pytest.approx(4.0)
    assert sum(info.times.counts) == 8


def test_the_sample_is_the_history_of_a_user_of_median_length_in_order(info):
    assert info.sample.user == "w"
    assert sorted(event.item for event in info.sample.events) == ["c", "c", "d"]
    assert {event.time for event in info.sample.events} == {"2023-11-18 22:13:20"}


@pytest.mark.parametrize(
    ("times", "unit", "first"),
    [
        ((1700000000, 1700000001), "epoch seconds", "2023-11-14 22:13:20"),
        ((1700000000123, 1700000000124), "epoch milliseconds", "2023-11-14 22:13:20.123"),
        ((1700000000123456, 1700000000123457), "epoch microseconds", "2023-11-14 22:13:20.123456"),
        ((1, 2), "plain numbers", "1"),
        (("0.5", "1.5"), "plain numbers", "0.5"),
        (("2024-01-31", "2024-02-01"), "dates or times", "2024-01-31 00:00:00"),
        (("2024-01-31T23:59:59.5", "2024-02-01"), "dates or times", "2024-01-31 23:59:59.5"),
        (("2024-01-31T12:00:00+02:00",) * 2, "dates or times", "2024-01-31 10:00:00"),
    ],
)
def test_every_unit_of_time_is_recognised_and_shown_as_dates(tmp_path, times, unit, first):
    rows = "".join(f"u,{item},{time}\n" for item, time in zip("ab", times, strict=True))
    events = read_events(source(tmp_path, "who,what,at\n" + rows))
    found = describe_events(events).times
    assert found is not None
    assert (found.unit, found.first) == (unit, first)
    clock = clock_of(events)
    assert clock is not None
    assert (clock.zone is None) == (unit == "plain numbers")


def test_without_an_order_column_nothing_is_said_of_times(tmp_path):
    info = describe_events(read_events(source(tmp_path, order=None)))
    assert (info.times, info.duplicate_share, info.duplicate_events) == (None, None, None)
    assert info.sample is not None
    assert [event.item for event in info.sample.events] == ["c", "c", "d"]


def test_missing_values_are_counted_in_all_columns_of_a_small_table(tmp_path):
    table = source(tmp_path, TABLE.replace("v,a", " ,a"), missing=("NaN", "NULL")).table
    profile = profile_table(table, ["who", "what"])
    assert (profile.rows, profile.missing) == (8, {"who": 1, "what": 0, "at": 0, "rating": 4})


def test_in_a_large_table_only_the_columns_asked_for_are_counted(tmp_path, monkeypatch):
    monkeypatch.setattr("peterrec.model.data.missing.CHEAP_BYTES", 10)
    assert profile_table(source(tmp_path).table, ["who"]).missing == {"who": 0}


def test_missing_values_of_parquet_are_null_nan_and_blank(tmp_path):
    import pyarrow as pa
    import pyarrow.parquet as pq

    columns = {
        "who": pa.array(["u", " ", None]).dictionary_encode(),
        "x": [1.0, None, float("nan")],
        "n": pa.array([None, None, None], pa.int64()),
        "several": [["a"], None, []],
    }
    pq.write_table(pa.table(columns), tmp_path / "t.parquet")
    profile = profile_table(TableSource(tmp_path / "t.parquet"), ["who"])
    assert profile.missing == {"who": 2, "x": 2, "n": 3, "several": 1}


def test_answers_are_counted_with_those_who_have_a_history():
    answers = UserLabels({"u": ("x",), "v": ("y",), "w": ("x", "z"), "n": ()}, "labels")
    info = describe_answers("tag", answers, ["u", "w", "other"])
    assert (info.users, info.without_value, info.several, info.values) == (3, 1, 1, 3)
    assert (info.with_history, info.without_history) == (2, 1)
    assert [(v.value, v.count) for v in info.frequent] == [("x", 2), ("y", 1), ("z", 1)]
    assert info.numbers is None


def test_many_different_numbers_are_described_as_numbers():
    answers = UserLabels({str(n): (str(n / 2),) for n in range(101)}, "labels")
    info = describe_answers("spend", answers, [])
    assert info.numbers is not None
    assert (info.numbers["min"], info.numbers["median"], info.numbers["max"]) == (0.0, 25.0, 50.0)
    assert info.numbers["mean"] == pytest.approx(25.0)


def test_counting_by_blocks_of_users_equals_counting_at_once(tmp_path, monkeypatch):
    generator = np.random.default_rng(0)
    rows = generator.integers(0, [30, 20, 9], (3000, 3)).tolist()
    text = "who,what,at\n" + "".join(f"u{u},i{i},{t}\n" for u, i, t in rows)
    events = read_events(source(tmp_path, text))
    whole = describe_events(events).to_json()
    monkeypatch.setattr(statistics, "BLOCK_EVENTS", 250)
    assert describe_events(events).to_json() == whole
    assert whole["duplicate_events"] == len(rows) - len({tuple(row) for row in rows})
