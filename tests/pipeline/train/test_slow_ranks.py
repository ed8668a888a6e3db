"""A slow rank is named, with the part of its work that is slow; noise names nobody."""

from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.train.slow_ranks import WINDOWS, SlowRankDetector, Work, slowness

FACTOR = 1.5


@st.composite
def clusters(draw: st.DrawFn) -> tuple[int, list[list[Work]]]:
    """Number of ranks, and thirty windows in which every rank differs from a common pace by up to a fifth."""
    size = draw(st.sampled_from([2, 3, 4, 7, 16]))
    pace = st.floats(0.1, 10.0)
    noise = st.floats(0.9, 1.1)
    windows = []
    for _ in range(3 * WINDOWS):
        data, computing = draw(pace) / 10, draw(pace)
        windows.append([Work(data=data * draw(noise), computing=computing * draw(noise)) for _ in range(size)])
    return size, windows


@given(clusters(), st.data())
@settings(max_examples=20, deadline=None)
def test_noise_names_nobody_and_single_bad_windows_neither(cluster: tuple[int, list[list[Work]]], data: st.DataObject):
    size, windows = cluster
    # In any five windows of ten some ranks are disturbed, however much.
    for number in range(len(windows)):
        if number % 10 < 5:
            rank = data.draw(st.integers(0, size - 1))
            windows[number][rank] = Work(data=0.0, computing=windows[number][rank].seconds * 50)
    detector = SlowRankDetector(FACTOR)
    assert [change for window in windows for change in detector.add(window)] == []


@given(clusters(), st.data(), st.sampled_from(["data", "computing"]))
@settings(max_examples=20, deadline=None)
def test_a_rank_is_named_after_a_hundred_steps_and_well_again_later(
    cluster: tuple[int, list[list[Work]]], data: st.DataObject, part: str
):
    size, windows = cluster
    # Up to half of the ranks are slow, as those of one node of two.
    slow = data.draw(st.sets(st.integers(0, size - 1), min_size=1, max_size=size // 2))
    detector = SlowRankDetector(FACTOR)
    changes = []
    for number, window in enumerate(windows):
        if number < 2 * WINDOWS:
            for rank in slow:
                work = window[rank]
                more = 2 * work.seconds
                extra = (more, 0.0) if part == "data" else (0.0, more)
                window[rank] = Work(data=work.data + extra[0], computing=work.computing + extra[1])
        changes += [(number, change) for change in detector.add(window)]
    named = [(number, change.rank, change.part) for number, change in changes if change.is_slow]
    assert named == [(WINDOWS - 1, rank, part) for rank in sorted(slow)]
    assert {change.rank for _, change in changes if not change.is_slow} == slow
    assert all(change.ratio > 2 for _, change in changes if change.is_slow)


def test_short_steps_are_judged_by_windows_of_half_a_second():
    detector = SlowRankDetector(FACTOR)
    slow = [Work(data=0.0, computing=0.001), Work(data=0.0, computing=0.01)]
    named = [number for number in range(1, 101) if detector.add(slow)]
    # Five windows of ten steps of the slow rank take half a second.
    assert named == [5 * WINDOWS]


def test_slowness_by_hand():
    window = [Work(data=0.1, computing=0.1), Work(data=0.0, computing=0.4), Work(data=0.0, computing=0.3)]
    assert [round(slowness(window, rank), 6) for rank in range(3)] == [0.666667, 2.0, 1.5]
    idle = [Work(data=0.0, computing=0.0)] * 2
    assert slowness(idle, 0) == 1.0
