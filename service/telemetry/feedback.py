"""Sums over outcomes that callers told, and how well confidence and outcomes agree."""

from peterrec.service.telemetry.events import FeedbackSums

TENTHS = 10


def note(sums: FeedbackSums, hit: float, confidence: float | None) -> None:
    """Add an answer that was right to this degree, 0 to 1, and its confidence if it has one."""
    sums.compared += 1
    sums.hits += hit
    if confidence is not None:
        count, sure, right = sums.bins.get(_tenth(confidence), (0, 0.0, 0.0))
        sums.bins[_tenth(confidence)] = (count + 1, sure + confidence, right + hit)


def note_error(sums: FeedbackSums, error: float) -> None:
    """Add the absolute error of a number."""
    sums.measured += 1
    sums.error += error


def add_bins(total: FeedbackSums, more: FeedbackSums) -> None:
    """Add the tenths of confidence of other sums."""
    for tenth, (count, sure, right) in more.bins.items():
        old = total.bins.get(tenth, (0, 0.0, 0.0))
        total.bins[tenth] = (old[0] + count, old[1] + sure, old[2] + right)


def calibration_error(sums: FeedbackSums) -> float:
    """The expected calibration error: the mean gap of confidence and hits in tenths of confidence.

    Guo et al., On Calibration of Modern Neural Networks, 2017, equation 3.
    """
    count = sum(each for each, _, _ in sums.bins.values())
    return sum(abs(sure - right) for _, sure, right in sums.bins.values()) / count if count else 0.0


def _tenth(confidence: float) -> int:
    return min(TENTHS - 1, max(0, int(confidence * TENTHS)))
