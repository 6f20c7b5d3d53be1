"""All settings of the server, read once at startup from ``PETERREC_*`` and the command line."""

import ipaddress
import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from peterrec.service.errors import SettingsInvalid

PREFIX = "PETERREC_"

Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """The environment variable of a field is ``PETERREC_`` and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True
    )

    backbone_dir: Path = Field(description="Folder of the backbone that is served.")
    host: str = Field("127.0.0.1", description="Address that the API and the metrics listen on.")
    port: Port = Field(8000, description="Port of the API; 0 picks a free one.")
    metrics_port: Port = Field(9100, description="Port of /metrics; 0 picks a free one.")
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        0,
        description="HTTP worker processes. 0 takes one less than the cores, but 1 to 4.",
    )
    auth: Literal["on", "off"] = Field(
        "on",
        description="Whether requests need an API key. `off` is accepted only on a loopback host.",
    )
    data_dir: Path = Field(
        Path("data"),
        description="Folder of the embedded Redis, cached bundles and uploads in progress.",
    )
    redis_url: str | None = Field(
        None,
        description="URL of the registry's Redis. If unset, a private embedded Redis is started.",
    )
    redis_prefix: str = Field(
        "peterrec", min_length=1, description="Prefix of every key of the registry in Redis."
    )
    reconcile_interval_s: Annotated[float, Field(ge=0.05, le=3600)] = Field(
        1.0,
        description="Seconds between two reads of the registry's revision without a notification.",
    )
    kernel_cache_dir: Path | None = Field(
        None,
        description="Folder of compiled kernels, which only this user may write. If unset: beside "
        "the installed package, or in the user's cache, or else in `PETERREC_DATA_DIR`.",
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto",
        description="Device that computes predictions. `auto` takes the GPU if there is one.",
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Precision of the forward. A CPU without AMX always uses float32.",
    )
    patch_precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="Precision in which patches are kept on the device. `auto` is the same as "
        "`PETERREC_PRECISION`. bfloat16 halves the memory of a task.",
    )
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="Threads of one forward on the CPU. 0 takes every core."
    )
    max_batch_rows: Positive = Field(256, description="Maximum number of histories in one forward.")
    max_queue_rows: Positive = Field(
        8192,
        description="Maximum number of rows that wait at one time; more are refused with 429, and "
        "a call that has more by itself (up to 512) with 413. A long history for item tables takes "
        "the place of further rows, one per 500 items.",
    )
    max_explain_rows: Annotated[int, Field(ge=0)] = Field(
        512,
        description="Maximum number of rows that the explanations of one call may add; a call that "
        "needs more is refused with 413. 0 turns explanations off.",
    )
    request_timeout_ms: Annotated[int, Field(ge=1, le=600_000)] = Field(
        2000,
        description="Milliseconds that a prediction may take if X-Request-Timeout-Ms is absent.",
    )
    bundle_size_limit_bytes: Positive = Field(
        1 << 30, description="Size in bytes of the largest bundle that may be pushed."
    )
    trusted_keys: Path | None = Field(
        None,
        description="PEM file, or folder of *.pub files. If set, every bundle must be signed "
        "by one of these keys.",
    )
    head_limit_bytes: Positive = Field(
        4 << 30,
        description="Limit in bytes for the heads and item tables on the device. Beyond it, "
        "ranking heads and tables used least recently are evicted, and reloaded when a request "
        "needs them. Patches are never evicted.",
    )
    trunk_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        64 << 20,
        description="Bytes that cache the activations of recent histories below the patched "
        "blocks, on a CPU. If a history comes again, for a task with patches in the top blocks "
        "only, its forward continues from them. 0 turns the cache off.",
    )
    drain_delay_s: Annotated[float, Field(ge=0, le=600)] = Field(
        1.0, description="Seconds between turning unready and closing the port, after SIGTERM."
    )
    drain_timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        30.0, description="Seconds in which requests in progress may finish, after SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Lowest severity of the log lines that are written."
    )
    traceback: bool = Field(
        False,
        description="Whether failed commands also print the Python traceback of the failure.",
    )
    device_endpoint: str = Field(
        "", description="Socket of the device process; set by the supervisor."
    )
    metrics_endpoint: str = Field(
        "", description="Socket of the supervisor's metrics; set by the supervisor."
    )

    @model_validator(mode="after")
    def _agrees_with_itself(self) -> Self:
        contradictions = list(self._contradictions())
        if contradictions:
            raise ValueError("; ".join(contradictions))
        return self

    def _contradictions(self) -> Iterator[str]:
        if self.auth == "off" and not is_loopback(self.host):
            yield (
                f"auth is off but host {self.host} is reachable from outside; "
                "use host 127.0.0.1 or leave auth on"
            )
        if self.port == self.metrics_port != 0:
            yield f"the API and the metrics can't both listen on port {self.port}"
        if self.request_timeout_ms > 1000 * self.drain_timeout_s:
            yield (
                f"a request may take {self.request_timeout_ms} ms ({PREFIX}REQUEST_TIMEOUT_MS) but "
                f"a stop waits for it for {self.drain_timeout_s:g} s ({PREFIX}DRAIN_TIMEOUT_S) only"
            )

    @property
    def worker_count(self) -> int:
        """The number of workers to start: as set, or chosen by the number of cores."""
        cores = core_count()
        return self.workers or (1 if cores <= 2 else min(4, cores - 1))

    @property
    def upload_dir(self) -> Path:
        """Folder of uploads that are not validated yet; absolute for the device process."""
        return (self.data_dir / "spool").resolve()

    def to_environment(self) -> dict[str, str]:
        """Return the environment in which a child process reads exactly these settings."""
        ours = {
            PREFIX + name.upper(): str(value)
            for name, value in self.model_dump().items()
            if value is not None
        }
        theirs = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        return theirs | ours


def read_settings(**overrides: object) -> Settings:
    """Read the settings from the environment; ``overrides`` that are not None take precedence.

    Raises SettingsInvalid, which lists every bad value.
    """
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # checked by pydantic, listed below
    except ValidationError as error:
        problems = [_describe(problem["loc"], problem["msg"]) for problem in error.errors()]
        raise SettingsInvalid(
            "; ".join(problems) + ".", hint="docs/settings.md lists every setting."
        ) from error


def unknown_settings() -> Iterator[str]:
    """A sentence for each variable of the environment that looks like a setting and is none."""
    known = [PREFIX + name for name in (*map(str.upper, Settings.model_fields), *OTHER_VARIABLES)]
    for name in sorted(set(os.environ) - set(known)):
        if name.startswith(PREFIX):
            near = get_close_matches(name, known, 1)
            meant = f" Did you mean {near[0]}?" if near else ""
            yield f"{name} is no setting and has no effect.{meant}"


OTHER_VARIABLES = ("TRACEBACK", "URL", "API_KEY")
"""Variables of the commands, which the server does not read."""


def _describe(location: tuple[int | str, ...], message: str) -> str:
    text = message.removeprefix("Value error, ")
    return f"{PREFIX}{str(location[0]).upper()}: {text}" if location else text


def shows_tracebacks() -> bool:
    """Whether ``PETERREC_TRACEBACK`` asks for tracebacks; for commands that read no settings."""
    return os.environ.get(f"{PREFIX}TRACEBACK", "").lower() in ("1", "true", "yes", "on")


def is_loopback(host: str) -> bool:
    """True if only programs on this machine can connect to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def core_count() -> int:
    """Return the number of cores that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def render_settings() -> str:
    """Return the text of ``docs/settings.md``.

    ``python -m peterrec.service.settings`` prints it.
    """
    lines = [
        "# Settings",
        "",
        "The server reads these variables once at startup. `peterrec serve` has options for some "
        "of them, which take precedence.",
        "",
        "| variable | default | bounds | meaning |",
        "|---|---|---|---|",
    ]
    schema = Settings.model_json_schema()["properties"]
    for name, field in Settings.model_fields.items():
        default = "(required)" if field.is_required() else f"`{_shown(field.default)}`"
        bounds = _bounds(schema[name])
        lines.append(f"| `{PREFIX}{name.upper()}` | {default} | {bounds} | {field.description} |")
    return "\n".join(lines) + "\n"


def _shown(default: object) -> str:
    return "unset" if default is None or default == "" else str(default)


def _bounds(schema: dict[str, object]) -> str:
    if "enum" in schema:
        values = schema["enum"]
        assert isinstance(values, list)
        return " or ".join(f"`{value}`" for value in values)
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is not None and high is not None:
        return f"{low} to {high}"
    return f"at least {low}" if low is not None else ""


if __name__ == "__main__":
    print(render_settings(), end="")
