"""Whether a server that has loaded what it can answers enough to be sent requests."""

import structlog

from peterrec.service.protocol.messages import ProdBundles, UnfitBundle

log = structlog.get_logger()

NO_BUNDLE_FITS = "no_bundle_fits"
"""Nothing is answered, because the bundles that `prod` names are refused here."""

BUNDLES_MISSING = "bundles_missing"
"""Fewer tasks are answered than the settings ask for before the first readiness."""

HINT = "Serve the backbone that these bundles were made for, or push bundles for this one."


class EnoughLoaded:
    """Judges what is loaded. Used by the device thread only.

    ``least_share`` of the tasks with a `prod` must be answered at first. Once they were, it does
    not matter any more: what a tenant registers later must not take the server from the others.
    """

    def __init__(self, least_share: float) -> None:
        self._least_share = least_share
        self._was_enough = False
        self._told: tuple[str, int, list[UnfitBundle]] = ("", 0, [])

    def reason(self, prod: ProdBundles, *, is_loaded: bool) -> str:
        """Return why the server is not ready, or an empty text.

        ``is_loaded`` means that everything was loaded that can be. An empty registry is enough.
        """
        reason = self._judged(prod)
        self._was_enough |= is_loaded and not reason
        if is_loaded:
            self._tell(prod, reason)
        return reason

    def _judged(self, prod: ProdBundles) -> str:
        if prod.unfit and not prod.answering:
            return NO_BUNDLE_FITS
        needed = self._least_share * prod.registered
        return "" if self._was_enough or prod.answering >= needed else BUNDLES_MISSING

    def _tell(self, prod: ProdBundles, reason: str) -> None:
        """Log what is refused, once for each change of it."""
        news = (reason, prod.unfit, prod.some)
        is_told, self._told = news == self._told, news
        if is_told or not (prod.unfit or reason):
            return
        write = log.error if reason else log.warning
        named = ", ".join(map(_text, prod.some))
        more = prod.unfit - len(prod.some)
        write(
            reason or "bundles_unfit",
            registered=prod.registered,
            answering=prod.answering,
            unfit=prod.unfit,
            bundles=f"{named} and {more} more" if more else named,
            hint=HINT,
        )


def _text(each: UnfitBundle) -> str:
    return f"{each.tenant}/{each.task} version {each.version} ({' '.join(each.codes)})"
