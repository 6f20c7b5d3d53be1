"""Structured logs on stderr: one line for each event, also of libraries, as logfmt or as JSON."""

import logging
import os
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import structlog
from structlog.types import EventDict, Processor

Names = Callable[[], Mapping[str, str]]
"""Returns what names the request that a line belongs to; empty outside of requests."""


@dataclass(frozen=True, slots=True)
class LogStyle:
    """How lines are written: from which level on, and in which of ``RENDERERS``."""

    level: str
    format: str = "logfmt"


RENDERERS: Mapping[str, Processor] = {
    "logfmt": structlog.processors.LogfmtRenderer(
        key_order=["timestamp", "level", "process", "event"],
        drop_missing=True,
        bool_as_flag=False,
    ),
    "json": structlog.processors.JSONRenderer(default=str),
}


def no_names() -> Mapping[str, str]:
    """Name no request: there are none in this process."""
    return {}


def configure_logs(style: LogStyle, process: str, names: Names = no_names) -> None:
    """Write lines to stderr, each with the name of this process. Call it once.

    Warnings of Python and of libraries are no lines unless the level is debug: nobody who operates
    a server can act on them.
    """
    number = logging.getLevelNamesMapping()[style.level.upper()]
    renderer = RENDERERS[style.format]
    shared: list[Processor] = [
        _naming(process, names),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, renderer],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, renderer],
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)
    logging.captureWarnings(True)
    if number > logging.DEBUG:
        logging.getLogger("py.warnings").setLevel(logging.ERROR)
    os.environ.setdefault("GRPC_VERBOSITY", "NONE")  # else gRPC's core writes lines of its own


def _naming(process: str, names: Names) -> Processor:
    def name(logger: object, method: str, line: EventDict) -> EventDict:
        line["process"] = process
        for key, value in names().items():
            line.setdefault(key, value)
        return line

    return name
