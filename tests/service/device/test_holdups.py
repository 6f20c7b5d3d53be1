"""What kept the device thread from running batches, by kind."""

from peterrec.service.device.holdups import HoldUps


def test_only_what_overlaps_the_wait_counts():
    holdups = HoldUps()
    holdups.note("swap", 1.0, 2.0)
    holdups.note("kernels", 3.0, 5.0)
    holdups.note("swap", 6.0, 7.0)
    assert holdups.between(1.5, 6.5) == {"swap": 1.0, "kernels": 2.0}
    assert holdups.between(7.0, 8.0) == {}


def test_a_short_pause_is_not_kept():
    holdups = HoldUps()
    with holdups.timing("swap"):
        pass
    assert holdups.between(0.0, float("inf")) == {}


def test_a_pause_that_ended_in_an_error_counts():
    holdups = HoldUps()
    try:
        with holdups.timing("swap"):
            holdups.note("kernels", 0.0, 1.0)
            raise RuntimeError
    except RuntimeError:
        pass
    assert holdups.between(0.0, 1.0) == {"kernels": 1.0}
