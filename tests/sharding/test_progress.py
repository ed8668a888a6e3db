"""The rates and the time left in a progress line."""

from sharding.progress import Progress


def test_shards_finished_earlier_do_not_count_in_the_rate():
    with Progress("x", 30) as progress:
        progress.add(10, 1000, written=False)
        assert "no rate yet" in progress.line(1.0)
        progress.add(10, 1000, written=True)
        assert progress.line(2.0) == "x: 20 of 30 images, 5 images/s, 0 MB/s, 2 s left"
