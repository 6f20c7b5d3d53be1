"""Every setting of the server, read once at startup from ``PETERREC_*`` and the command line."""

import ipaddress
import os
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator
from pydantic_settings import BaseSettings, SettingsConfigDict

from peterrec.service.errors import SettingsInvalid

PREFIX = "PETERREC_"

Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """Field names in capitals after ``PETERREC_`` are the environment variables."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True
    )

    backbone_dir: Path = Field(description="Folder of the backbone to serve.")
    host: str = Field("127.0.0.1", description="Address that the API and the metrics listen on.")
    port: Port = Field(8000, description="Port of the API; 0 picks a free one.")
    metrics_port: Port = Field(9100, description="Port of /metrics; 0 picks a free one.")
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        0, description="HTTP worker processes; 0 is 1 on two cores, else up to 4."
    )
    auth: Literal["on", "off"] = Field(
        "on", description="Off answers everyone; accepted only on a loopback host."
    )
    data_dir: Path = Field(
        Path("data"), description="Embedded Redis, cached bundles and uploads in progress."
    )
    redis_url: str | None = Field(
        None, description="The registry's Redis; without it a private embedded one is started."
    )
    redis_prefix: str = Field(
        "peterrec", min_length=1, description="First part of every key of the registry."
    )
    reconcile_interval_s: Annotated[float, Field(ge=0.05, le=3600)] = Field(
        1.0, description="Seconds between two looks at the registry's revision without a hint."
    )
    device: Literal["auto", "cpu", "cuda"] = Field(
        "auto", description="Where forwards run; auto takes the GPU if there is one."
    )
    precision: Literal["float32", "bfloat16"] = Field(
        "float32",
        description="Arithmetic of the forward; a CPU without matrix units (AMX) keeps to float32.",
    )
    patch_precision: Literal["auto", "float32", "bfloat16"] = Field(
        "auto",
        description="How tasks' patches are kept; auto as `precision` says. bfloat16 halves a "
        "task's memory.",
    )
    threads: Annotated[int, Field(ge=0, le=1024)] = Field(
        0, description="Threads of one forward on the CPU; 0 takes every core."
    )
    max_batch_rows: Positive = Field(256, description="Most histories in one forward.")
    max_queue_rows: Positive = Field(
        8192, description="Most rows waiting at once; more are refused with 429."
    )
    request_timeout_ms: Annotated[int, Field(ge=1, le=600_000)] = Field(
        2000, description="Milliseconds a prediction may take if X-Request-Timeout-Ms is absent."
    )
    bundle_size_limit_bytes: Positive = Field(
        1 << 30, description="Largest bundle that may be pushed, in bytes."
    )
    trusted_keys: Path | None = Field(
        None, description="PEM file, or folder of *.pub files: bundles must be signed by one."
    )
    head_limit_bytes: Positive = Field(
        4 << 30,
        description="Bytes of heads on the device; beyond them the ranking heads used least "
        "recently leave and are read back when asked for. Patches always stay.",
    )
    trunk_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        64 << 20,
        description="Bytes of recent histories' states below the patched blocks, on a CPU; "
        "a history asked again for a task with patches in the top blocks goes on from them.",
    )
    drain_delay_s: Annotated[float, Field(ge=0, le=600)] = Field(
        1.0, description="Seconds between going unready and closing the port, after SIGTERM."
    )
    drain_timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        30.0, description="Seconds that requests in flight get to finish, after SIGTERM."
    )
    log_level: Literal["debug", "info", "warning", "error"] = Field(
        "info", description="Least severe log line that is written."
    )
    device_endpoint: str = Field(
        "", description="Socket of the device process; set by the supervisor."
    )
    metrics_endpoint: str = Field(
        "", description="Socket of the supervisor's metrics; set by the supervisor."
    )

    @model_validator(mode="after")
    def _auth_off_stays_on_this_machine(self) -> Self:
        if self.auth == "off" and not is_loopback(self.host):
            raise ValueError(
                f"auth is off but host {self.host} is reachable from outside; "
                "use host 127.0.0.1 or leave auth on"
            )
        return self

    @property
    def worker_count(self) -> int:
        """Workers to start: as set, or by the cores this process may use."""
        cores = core_count()
        return self.workers or (1 if cores <= 2 else min(4, cores - 1))

    @property
    def spool_dir(self) -> Path:
        """Where uploads lie until they are judged; absolute, the device process reads it too."""
        return (self.data_dir / "spool").resolve()

    def to_environment(self) -> dict[str, str]:
        """The environment that makes a child process read exactly these settings."""
        ours = {
            PREFIX + name.upper(): str(value)
            for name, value in self.model_dump().items()
            if value is not None
        }
        theirs = {key: value for key, value in os.environ.items() if not key.startswith(PREFIX)}
        return theirs | ours


def read_settings(**overrides: object) -> Settings:
    """Settings from the environment; ``overrides`` that are not None win. Lists every bad value."""
    given = {name: value for name, value in overrides.items() if value is not None}
    try:
        return Settings(**given)  # type: ignore[arg-type]  # checked by pydantic, listed below
    except ValidationError as error:
        problems = [_describe(problem["loc"], problem["msg"]) for problem in error.errors()]
        raise SettingsInvalid(
            "; ".join(problems) + ".", hint="docs/settings.md lists every setting."
        ) from error


def _describe(location: tuple[int | str, ...], message: str) -> str:
    text = message.removeprefix("Value error, ")
    return f"{PREFIX}{str(location[0]).upper()}: {text}" if location else text


def is_loopback(host: str) -> bool:
    """True if only programs on this machine can connect to ``host``."""
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def core_count() -> int:
    """Cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def render_settings() -> str:
    """Text of ``docs/settings.md``: ``python -m peterrec.service.settings`` prints it."""
    lines = [
        "# Settings",
        "",
        "Read once at startup. `peterrec serve` takes most of them as options too, which win.",
        "",
        "| variable | default | bounds | what |",
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
