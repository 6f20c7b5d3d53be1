"""Requests that nobody sends by mistake, made from a seed: each is the bytes of one connection."""

import gzip
import json
import random
from collections.abc import Callable

import brotli
import zstandard

Random = random.Random
HUGE = (
    0,
    -1,
    2**31,
    2**53,
    2**63,
    2**64 - 1,
    2**64,
    10**30,
    "9" * 400,
    "1e9",
    "NaN",
    "",
    "١٢",
    "0x10",
)
ODD_TEXTS = (
    "", "\x00", "../../etc/passwd", "a" * 2000, "%00", "\ud800", "😀" * 500, "<script>", "\r\nX: y",
    "' OR 1=1 --", "${jndi:ldap://x}", "{{7*7}}", "\u202e", "prod", "*", "tags", "default",
)  # fmt: skip
METHODS = ("GET", "HEAD", "POST", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "CONNECT", "BREW")
PATHS = (
    "/tasks", "/tasks/{}", "/tasks/{}/versions", "/tasks/{}/versions/{}", "/tasks/{}/aliases",
    "/tasks/{}/aliases/{}", "/tasks/{}/traffic", "/tasks/{}:rollback", "/tasks/{}/predict",
    "/users/predict", "/tasks/{}/predict:batch", "/users/predict:batch", "/registry/events",
    "/registry/audit", "/keys", "/keys/{}", "/keys/{}:rotate",
    "/keys/{}/secrets/{}", "/tenants", "/tenants/{}", "/tenants/{}/usage", "/tenants/{}/keys",
    "/backbone", "/livez", "/readyz", "/openapi.json", "/docs", "/metrics", "/{}", "//", "*",
)  # fmt: skip
QUERIES = ("since", "limit", "format", "task", "alias", "validate_only", "after", "x")


def _value(rng: Random, depth: int = 0) -> object:
    """Return any JSON value."""
    kind = rng.randrange(9 if depth < 4 else 6)
    if kind == 0:
        return rng.choice([None, True, False, 0.5, -0.0, 1e308])
    if kind <= 2:
        return rng.choice([each for each in HUGE if isinstance(each, int)])
    if kind <= 5:
        return rng.choice(ODD_TEXTS)
    if kind == 6:
        return [_value(rng, depth + 1) for _ in range(rng.randrange(5))]
    return {str(rng.choice(ODD_TEXTS)): _value(rng, depth + 1) for _ in range(rng.randrange(5))}


def _dump(value: object) -> bytes:
    return json.dumps(value).encode()


def _prediction(rng: Random) -> bytes:
    """Return a body that has the form of a prediction, with anything in its places."""
    fields = ("history", "instances", "parameters", "user_id", "tasks", "candidates", "exclude")
    body = {name: _value(rng) for name in fields if rng.random() < 0.5}
    if rng.random() < 0.7:
        body["history"] = rng.choice([[1, "a"], ["x" * 5000], [2**70] * 50, [_value(rng)] * 20])
    return _dump(body)


BODIES: tuple[Callable[[Random], bytes], ...] = (
    _prediction,
    _prediction,
    lambda rng: _dump(_value(rng)),
    lambda rng: b"",
    lambda rng: b"[" * rng.choice([10, 1000, 100_000]),
    lambda rng: b'{"a":' * 20_000,
    lambda rng: b"[" + b"1," * rng.choice([1000, 900_000]) + b"1]",
    lambda rng: b'{"history": [' + b"{}," * 300_000 + b"{}]}",
    lambda rng: b'{"history": [' + b"9" * rng.choice([999, 1_000_000]) + b"]}",
    lambda rng: b'{"history": ["' + b"\xff\xfe" * rng.choice([1, 500_000]) + b'"]}',
    lambda rng: b'{"history": ["\\ud800"], "instances": [{"history": ["\\udfff"]}]}',
    lambda rng: b'{"instances": [' + b'{"history": ["\\ud800"]},' * 255 + b'{"history": [1]}]}',
    lambda rng: b'{"history": [1], "history": [2]}',
    lambda rng: b'{"%s": 1}' % (b"n" * 1_900_000),
    lambda rng: b'{"instances": [' + b'{"nam": 1},' * 60_000 + b'{"nam": 1}]}',
    lambda rng: b'{"tasks": [' + b'"t",' * 200_000 + b'"t"], "history": []}',
    lambda rng: _dump({"tasks": [f"n{at}" for at in range(512)], "history": [*range(10_000)]}),
    lambda rng: _dump({"instances": [{"history": ["y" * 60] * 110}] * 256}),
    lambda rng: _dump({"description": "d" * 60_000, "x" * 3000: 1}),
    lambda rng: _dump({f"unknown{at}": at for at in range(3000)}),
    lambda rng: rng.randbytes(rng.choice([10, 100_000])),
)
CODINGS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "br": lambda body: brotli.compress(body, quality=1),
    "zstd": lambda body: zstandard.ZstdCompressor().compress(body),
    "deflate": lambda body: body,
    "gzip, gzip": lambda body: gzip.compress(gzip.compress(body)),
}
BOMB = b"0" * 50_000_000


def _path(rng: Random) -> str:
    path = rng.choice(PATHS)
    while "{}" in path:
        name = rng.choice([str(rng.choice(ODD_TEXTS)), "tags", "ranking", str(rng.choice(HUGE))])
        quoted = "".join(f"%{byte:02X}" for byte in name.encode(errors="surrogatepass"))
        path = path.replace("{}", quoted if rng.random() < 0.9 else "%zz%c0%ae", 1)
    if rng.random() < 0.5:
        pairs = [f"{rng.choice(QUERIES)}={rng.choice(HUGE)}" for _ in range(rng.randrange(1, 4))]
        path += "?" + "&".join(pairs).encode().decode("latin-1")
    return path


def _fields(rng: Random, key: str) -> list[str]:
    fields = [f"X-API-Key: {key}"] if rng.random() < 0.8 else []
    odd = (
        "Authorization: Bearer prk_other", "Authorization: Basic eDp5", "X-API-Key: prk_other",
        f"X-Request-Timeout-Ms: {rng.choice(HUGE)}", f"X-Request-Id: {'r' * rng.choice([1, 500])}",
        f"If-Match: {rng.choice(HUGE)}", 'If-None-Match: "1"', f"Last-Event-ID: {rng.choice(HUGE)}",
        "Host: evil.example", "X-Forwarded-Host: evil.example", "Origin: https://evil.example",
        "Accept: application/x-nothing", "Accept-Encoding: *;q=0, gzip;q=nan", "Range: bytes=0-",
        "Content-Type: text/plain", "Content-Type: multipart/form-data; boundary=x", "TE: trailers",
        "Expect: 100-continue", "Connection: Upgrade", "Upgrade: websocket", "X-Priority: first",
        "A: " + "b" * 30_000, "Access-Control-Request-Method: BREW", "Cookie: " + "c=d; " * 500,
    )  # fmt: skip
    return fields + rng.sample(odd, rng.randrange(4))


def hostile_request(seed: int, key: str) -> bytes:
    """Return the bytes that one client sends: mostly one request, now and then several or half."""
    rng = Random(seed)
    fields = [*_fields(rng, key), "Connection: close"]
    method = rng.choice(METHODS if rng.random() < 0.4 else ("GET", "POST", "PUT"))
    body = rng.choice(BODIES)(rng) if method in ("POST", "PUT", "PATCH", "DELETE") else b""
    if body and rng.random() < 0.25:
        coding = rng.choice(list(CODINGS))
        body = CODINGS[coding](BOMB if rng.random() < 0.3 else body)
        body = body[: len(body) // 2] if rng.random() < 0.2 else body
        fields.append(f"Content-Encoding: {coding}")
    if rng.random() < 0.2:
        fields.append("Transfer-Encoding: chunked")
        body = (
            b"%x;ext=%s\r\n%s\r\n0\r\nTrailer: x\r\n\r\n" % (len(body), b"e" * 50, body)
            if body
            else b"0\r\n\r\n"
        )
    else:
        length = rng.choice([len(body)] * 9 + [len(body) + 5])
        fields.append(f"Content-Length: {length}")
    rng.shuffle(fields)
    head = "\r\n".join([f"{method} {_path(rng)} HTTP/1.1", "Host: x", *fields, "", ""])
    return head.encode("latin-1", errors="replace") + body
