"""Options of the guard of canaries and shadows, for every command that sets them."""

from dataclasses import dataclass
from typing import Annotated

import typer

from peterrec.model.documents import Document

MaxErrorShare = Annotated[
    float | None,
    typer.Option(help="Guard: end the split if a larger share of requests fails, 0 to 1."),
]


@dataclass(frozen=True, slots=True)
class GuardOptions:
    """Bounds of a guard; without any there is none."""

    max_error_share: MaxErrorShare = None
    max_p99_ms: Annotated[
        float | None,
        typer.Option(help="Guard: end the split if the 99th percentile of latency is higher."),
    ] = None
    max_divergence: Annotated[
        float | None,
        typer.Option(help="Guard: end the split if answers differ more from prod's, 0 to 1."),
    ] = None
    max_hit_drop: Annotated[
        float | None,
        typer.Option(
            help="Guard: end the split if answers are right less often than prod's by more."
        ),
    ] = None
    min_requests: Annotated[
        int, typer.Option(min=1, help="Guard: requests in the window before it decides.")
    ] = 100
    window_s: Annotated[
        int, typer.Option(min=1, help="Guard: length of the sliding window, in seconds.")
    ] = 300

    def body(self) -> Document | None:
        """The guard as the server takes it; None without a bound."""
        bounds = {
            "max_error_share": self.max_error_share,
            "max_p99_ms": self.max_p99_ms,
            "max_divergence": self.max_divergence,
            "max_hit_drop": self.max_hit_drop,
        }
        if all(bound is None for bound in bounds.values()):
            return None
        return {**bounds, "min_requests": self.min_requests, "window_s": self.window_s}
