"""All settings of the server, read once at startup from ``PETERREC_*`` and the command line."""

import ipaddress
import os
from collections.abc import Iterator
from difflib import get_close_matches
from pathlib import Path
from typing import Annotated, Literal, Self
from urllib.parse import urlsplit

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from peterrec.patches.registry.acknowledgement import Acknowledgement
from peterrec.service.errors import SettingsInvalid, SourceInvalid
from peterrec.service.sources.address import parse_prefix
from peterrec.service.system.addresses import is_loopback

PREFIX = "PETERREC_"

MOST_BACKBONES = 8
"""Backbones that a server may have: an old one and a new one while tasks move, and some more."""

Port = Annotated[int, Field(ge=0, le=65535)]
Positive = Annotated[int, Field(ge=1)]


class Settings(BaseSettings):
    """The environment variable of a field is ``PETERREC_`` and its name in capitals."""

    model_config = SettingsConfigDict(
        env_prefix=PREFIX, frozen=True, extra="ignore", env_ignore_empty=True
    )

    backbone_dir: Annotated[tuple[Path, ...], NoDecode] = Field(
        min_length=1,
        max_length=MOST_BACKBONES,
        description="Folder of the backbone that is served. Several, separated by commas, are "
        "served side by side, each task by the one that it was fine-tuned on; the first is the one "
        "of user vectors without a task.",
    )
    host: str = Field("127.0.0.1", description="Address that the API listens on.")
    port: Port = Field(8000, description="Port of the API; 0 picks a free one.")
    grpc_port: Port | None = Field(
        None,
        description="Port of the Open Inference Protocol over gRPC; 0 picks a free one. If unset, "
        "there is no gRPC.",
    )
    root_path: str = Field(
        "",
        pattern=r"^((/[A-Za-z0-9._~-]+)+|)$",
        description="Path under which a proxy shows the API, such as `/peterrec`. Requests are "
        "understood with it and without, so the proxy may cut it off or leave it.",
    )
    metrics_host: str | None = Field(
        None, description="Address that /metrics listens on. If unset, `PETERREC_HOST`."
    )
    metrics_token: str | None = Field(
        None,
        min_length=16,
        pattern=r"^[\x21-\x7e]+$",
        repr=False,
        exclude=True,
        description="Bearer token that whoever reads /metrics must send. If unset, none is needed.",
    )
    metrics_port: Port = Field(9100, description="Port of /metrics; 0 picks a free one.")
    workers: Annotated[int, Field(ge=0, le=256)] = Field(
        0,
        description="HTTP worker processes. 0 takes one less than the cores, but 1 to 4.",
    )
    auth: Literal["on", "off"] = Field(
        "on",
        description="Whether requests need an API key. `off` is accepted only on a loopback host.",
    )
    peer_connections: Positive = Field(
        4096,
        description="Connections of one client address to one worker, and at most three quarters "
        "of all that its descriptors allow. At the limit, the one that has been idle for longest "
        "is closed.",
    )
    cors_origins: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Origins of web pages that may call the server from a browser, separated by "
        "commas, such as `https://shop.example`; `*` for all. If unset, browsers refuse.",
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
    ack_replicas: Annotated[int, Field(ge=0, le=16)] = Field(
        0,
        description="Replicas of Redis that must have a change before it is answered (`WAIT`), so "
        "that it survives a failover; a change that they do not confirm within 2 s gets 503. Not "
        "with a Redis Cluster.",
    )
    ack_disk: bool = Field(
        False,
        description="Whether a change must also be on the disk of Redis, and of as many replicas, "
        "before it is answered (`WAITAOF`). Needs Redis 7.2 or Valkey, with `appendonly`.",
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
    hang_limit_s: float = Field(
        6.0,
        ge=2,
        description="Seconds without progress after which a worker, the device process or the "
        "embedded Redis counts as hung and is replaced. A batch makes progress while it runs, and "
        "a start has ten minutes.",
    )
    ready_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.0,
        description="Share of the tasks that must be answered before the server is ready for the "
        "first time. Whatever it is, a server that refuses every registered bundle is not ready.",
    )
    max_batch_rows: Positive = Field(256, description="Maximum number of histories in one forward.")
    max_queue_rows: Positive = Field(
        8192,
        description="Maximum number of rows that wait at one time; more are refused with 429, and "
        "a call that has more by itself (up to 512) with 413. A long history for item tables takes "
        "the place of further rows, one per 500 items.",
    )
    sample_answers: Literal["on", "all", "off"] = Field(
        "on",
        description="Whether a sample of the answers is looked at for the metrics of quality: `on` "
        "leaves out tasks that are marked as sensitive, `all` does not.",
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
    request_timeout_limit_ms: Annotated[int, Field(ge=1, le=600_000)] = Field(
        30_000,
        description="Milliseconds that a prediction may take at most: a larger "
        "X-Request-Timeout-Ms counts as this. A prediction that takes longer than "
        "`PETERREC_DRAIN_TIMEOUT_S` does not survive a stop.",
    )
    bundle_size_limit_bytes: Positive = Field(
        1 << 30, description="Size in bytes of the largest bundle that may be pushed."
    )
    bundle_sources: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Prefixes of addresses from which this server fetches bundles when it is asked "
        "to, separated by commas, such as `s3://models/{tenant}/,https://artifacts.example/rec/`. "
        "`{tenant}` stands for the caller's tenant. If unset, it fetches none.",
    )
    bundle_source_timeout_s: Annotated[float, Field(ge=0.1, le=3600)] = Field(
        120.0, description="Seconds that fetching one bundle may take."
    )
    patch_work_limit: Annotated[float, Field(ge=0.01)] = Field(
        8.0,
        description="Largest work of a bundle's patch, as a multiple of the backbone's. All tasks "
        "run in the same batches, so a costly patch holds up the others.",
    )
    answer_limit_bytes: Positive = Field(
        4 << 20,
        description="Size in bytes of the largest answer for one history that a bundle may give, "
        "computed from its labels.",
    )
    trusted_keys: Path | None = Field(
        None,
        description="PEM file, or folder of *.pub files. If set, every bundle must be signed "
        "by one of these keys.",
    )
    oidc_issuer: str | None = Field(
        None,
        description="Issuer (`iss`) of tokens (JWT) that are accepted beside API keys. If set, "
        "`PETERREC_OIDC_AUDIENCE` and `PETERREC_OIDC_JWKS_URL` must be set, too.",
    )
    oidc_audience: str | None = Field(
        None, description="Audience (`aud`) that a token must name: this service."
    )
    oidc_jwks_url: str | None = Field(
        None,
        description="URL of the issuer's signing keys (JWKS): https, or http on a loopback host.",
    )
    oidc_tenant_claim: str = Field(
        "tenant", min_length=1, description="Claim of a token that names its tenant."
    )
    oidc_scope_claim: str = Field(
        "scope",
        min_length=1,
        description="Claim of a token with its scopes: a list, or words. Those that are no scopes "
        "of this service are ignored.",
    )
    oidc_refresh_s: Annotated[float, Field(ge=1, le=86_400)] = Field(
        300.0,
        description="Seconds between two fetches of the issuer's keys. A new key is fetched when a "
        "token names it; one that was withdrawn is accepted until the next fetch.",
    )
    head_limit_bytes: Positive = Field(
        4 << 30,
        description="Limit in bytes for the heads and item tables on the device. Beyond it, "
        "ranking heads and tables used least recently are evicted, and reloaded when a request "
        "needs them. Patches are never evicted.",
    )
    patch_limit_bytes: Positive = Field(
        8 << 30,
        description="Limit in bytes for the patches on the device, which are never evicted. A "
        "bundle beyond it is refused with 507; if the registry has more than fits, a server "
        "serves what it has loaded.",
    )
    trunk_cache_bytes: Annotated[int, Field(ge=0)] = Field(
        64 << 20,
        description="Bytes that cache the activations of recent histories below the patched "
        "blocks, on a CPU. If a history comes again, for a task with patches in the top blocks "
        "only, its forward continues from them. 0 turns the cache off.",
    )
    webhook_networks: Annotated[tuple[str, ...], NoDecode] = Field(
        (),
        description="Networks beside the public ones that webhooks may reach, separated by commas, "
        "such as `10.0.0.0/8,127.0.0.1`; there, http is allowed, too. If unset, none.",
    )
    webhook_give_up_days: Annotated[float, Field(gt=0, le=30)] = Field(
        3.0,
        description="Days without a single delivery after which a webhook that fails is disabled.",
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
    log_format: Literal["logfmt", "json"] = Field(
        "logfmt", description="Form of the log lines: `key=value`, or a JSON object per line."
    )
    slow_request_ms: Annotated[int, Field(ge=0, le=600_000)] = Field(
        0,
        description="Milliseconds from which on a prediction is logged with where its time went. "
        "0 turns this off.",
    )
    trace_endpoint: str | None = Field(
        None,
        description="URL of an OpenTelemetry collector that traces are sent to (OTLP over HTTP), "
        "such as `http://127.0.0.1:4318`. If unset, nothing is traced. Needs "
        "`peterrec-serving[tracing]`.",
    )
    trace_share: Annotated[float, Field(ge=0, le=1)] = Field(
        0.01,
        description="Share of the requests without `traceparent` that are traced. For those with "
        "one, the caller has decided.",
    )
    profiling: bool = Field(
        False,
        description="Whether operators may read where the processes spend their time, at "
        "`GET /debug/profile`. Needs `peterrec-serving[profiling]`.",
    )
    traceback: bool = Field(
        False,
        description="Whether failed commands also print the Python traceback of the failure.",
    )
    device_endpoint: Path = Field(
        Path("device"), description="Socket of the device process; set by the supervisor."
    )
    metrics_endpoint: Path = Field(
        Path("metrics"), description="Socket of the supervisor's metrics; set by the supervisor."
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
        yield from self._contradictions_of_oidc()
        yield from self._wrong_prefixes()
        if self.trace_endpoint and not is_http_url(self.trace_endpoint):
            yield f"{PREFIX}TRACE_ENDPOINT {self.trace_endpoint} is no URL of http or https"
        if self.port == self.metrics_port != 0 and self.metrics_host in (None, self.host):
            yield f"the API and the metrics can't both listen on port {self.port}"
        if self.grpc_port and self.grpc_port in (self.port, self.metrics_port):
            yield f"gRPC and HTTP can't both listen on port {self.grpc_port}"
        if self.request_timeout_ms > self.request_timeout_limit_ms:
            yield (
                f"a request may take {self.request_timeout_ms} ms ({PREFIX}REQUEST_TIMEOUT_MS), "
                f"but at most {self.request_timeout_limit_ms} ms "
                f"({PREFIX}REQUEST_TIMEOUT_LIMIT_MS)"
            )
        if self.request_timeout_ms > 1000 * self.drain_timeout_s:
            yield (
                f"a request may take {self.request_timeout_ms} ms ({PREFIX}REQUEST_TIMEOUT_MS) but "
                f"a stop waits for it for {self.drain_timeout_s:g} s ({PREFIX}DRAIN_TIMEOUT_S) only"
            )

    def _contradictions_of_oidc(self) -> Iterator[str]:
        together = ("oidc_issuer", "oidc_audience", "oidc_jwks_url")
        missing = [name for name in together if not getattr(self, name)]
        if 0 < len(missing) < len(together):
            names = ", ".join(PREFIX + name.upper() for name in missing)
            yield f"the settings of an issuer of tokens belong together; not set: {names}"
        if self.oidc_jwks_url and not _is_safe(self.oidc_jwks_url):
            yield (
                f"{PREFIX}OIDC_JWKS_URL {self.oidc_jwks_url} is not https: whoever can change the "
                "answer could sign tokens of any tenant"
            )

    def _wrong_prefixes(self) -> Iterator[str]:
        for prefix in self.bundle_sources:
            try:
                parse_prefix(prefix)
            except SourceInvalid as error:
                yield f"{PREFIX}BUNDLE_SOURCES: {error.message.rstrip('.')}"

    @property
    def acknowledgement(self) -> Acknowledgement | None:
        """What must confirm a change before it is answered; None if nobody must."""
        if not (self.ack_replicas or self.ack_disk):
            return None
        return Acknowledgement(self.ack_replicas, on_disk=self.ack_disk)

    @property
    def worker_count(self) -> int:
        """The number of workers to start: as set, or chosen by the number of cores."""
        cores = core_count()
        return self.workers or (1 if cores <= 2 else min(4, cores - 1))

    @property
    def quota_table(self) -> Path:
        """The file by which this server's processes count what tenants ask for."""
        return self.device_endpoint.with_name("quotas")

    @property
    def upload_dir(self) -> Path:
        """Folder of uploads that are not validated yet; absolute for the device process."""
        return (self.data_dir / "spool").resolve()

    @field_validator("cors_origins", "bundle_sources", mode="before")
    @classmethod
    def _split_list(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        return tuple(each.strip() for each in value.split(",") if each.strip())

    @field_validator("webhook_networks", mode="before")
    @classmethod
    def _check_networks(cls, value: object) -> object:
        if not isinstance(value, str):
            return value
        networks = tuple(network.strip() for network in value.split(",") if network.strip())
        for network in networks:
            ipaddress.ip_network(network)  # raises ValueError, which names the network
        return networks

    @field_validator("backbone_dir", mode="before")
    @classmethod
    def _split_folders(cls, value: object) -> object:
        """Split a list of folders; a text that names one folder is that folder, commas or not."""
        if isinstance(value, Path):
            return (value,)
        if not isinstance(value, str):
            return value
        if "," not in value or Path(value).exists():
            return (value,)
        return tuple(folder.strip() for folder in value.split(",") if folder.strip())

    def to_environment(self) -> dict[str, str]:
        """Return the environment in which a child process reads exactly these settings."""
        ours = {
            PREFIX + name.upper(): ",".join(map(str, value))
            if isinstance(value, tuple)
            else str(value)
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


def _is_safe(url: str) -> bool:
    """True if nobody on the way can change what this URL answers."""
    parts = urlsplit(url)
    is_local = parts.scheme == "http" and is_loopback(parts.hostname or "")
    return bool(parts.hostname) and (parts.scheme == "https" or is_local)


def is_http_url(url: str) -> bool:
    """True if a client of HTTP can be given this URL."""
    try:
        parts = urlsplit(url)
        return parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
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
    return "unset" if default is None or default in ("", ()) else str(default)


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
