"""Structured logs: one line of key=value pairs on stderr for each event, also of libraries."""

import logging
import sys

import structlog
from structlog.types import EventDict, Processor

_RENDERER = structlog.processors.LogfmtRenderer(
    key_order=["timestamp", "level", "process", "event"], drop_missing=True, bool_as_flag=False
)


def configure_logs(level: str, process: str) -> None:
    """Write lines of at least ``level`` to stderr, each naming this process. Call it once."""
    number = logging.getLevelNamesMapping()[level.upper()]
    shared: list[Processor] = [
        _naming(process),
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
        structlog.processors.format_exc_info,
    ]
    structlog.configure(
        processors=[*shared, _RENDERER],
        wrapper_class=structlog.make_filtering_bound_logger(number),
        logger_factory=structlog.WriteLoggerFactory(sys.stderr),
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[structlog.stdlib.ProcessorFormatter.remove_processors_meta, _RENDERER],
        )
    )
    logging.basicConfig(level=max(number, logging.WARNING), handlers=[handler], force=True)


def _naming(process: str) -> Processor:
    def name(logger: object, method: str, line: EventDict) -> EventDict:
        line["process"] = process
        return line

    return name
