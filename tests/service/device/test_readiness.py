"""When what is loaded is enough to be sent requests."""

import pytest

from peterrec.patches.identity import Digest
from peterrec.service.device.readiness import BUNDLES_MISSING, NO_BUNDLE_FITS, EnoughLoaded
from peterrec.service.protocol.messages import ProdBundles, UnfitBundle

SOME = [UnfitBundle("acme", "gender", 1, Digest("ab"), ["backbone_mismatch"])]


@pytest.mark.parametrize(
    ("share", "registered", "answering", "unfit", "reason"),
    [
        (0.0, 0, 0, 0, ""),
        (1.0, 0, 0, 0, ""),
        (0.0, 2, 1, 1, ""),
        (0.0, 2, 0, 2, NO_BUNDLE_FITS),
        (0.0, 2, 0, 1, NO_BUNDLE_FITS),
        (0.0, 2, 0, 0, ""),
        (0.5, 4, 2, 2, ""),
        (0.5, 4, 1, 3, BUNDLES_MISSING),
        (1.0, 4, 3, 0, BUNDLES_MISSING),
        (1.0, 4, 4, 0, ""),
    ],
)
def test_a_server_is_ready_if_it_answers_something_and_the_share_that_was_asked_for(
    share: float, registered: int, answering: int, unfit: int, reason: str
) -> None:
    prod = ProdBundles(registered, answering, unfit, SOME[:unfit])
    assert EnoughLoaded(share).reason(prod, is_loaded=True) == reason


def test_once_ready_a_server_is_not_taken_away_by_what_is_registered_later() -> None:
    enough = EnoughLoaded(1.0)
    assert enough.reason(ProdBundles(1, 0), is_loaded=False) == BUNDLES_MISSING
    assert enough.reason(ProdBundles(1, 1), is_loaded=True) == ""
    assert enough.reason(ProdBundles(9, 1, 8, SOME), is_loaded=True) == ""
    assert enough.reason(ProdBundles(8, 0, 8, SOME), is_loaded=True) == NO_BUNDLE_FITS


def test_what_is_loaded_while_others_still_load_does_not_count_as_ready_once() -> None:
    enough = EnoughLoaded(0.5)
    assert enough.reason(ProdBundles(1, 1), is_loaded=False) == ""
    assert enough.reason(ProdBundles(4, 1, 3, SOME), is_loaded=True) == BUNDLES_MISSING
