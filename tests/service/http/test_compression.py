"""Bodies and answers in the codings of HTTP: what is accepted, refused, and produced on request."""

import gzip
import zlib
from collections.abc import Callable, Mapping

import brotli
import httpx
import pytest
import zstandard

from peterrec.service.errors import BodyTooLarge, EncodingUnsupported, MalformedRequest
from peterrec.service.http.encodings import (
    MIN_COMPRESSED_BYTES,
    choose_coding,
    decode_body,
    find_decoder,
)
from tests.service.http.application import make_application

LIMIT = 100_000
TEXT = b'{"history": [1193, 661, 914]}' * 50

ENCODE: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.compress,
    "x-gzip": gzip.compress,
    "deflate": zlib.compress,
    "br": brotli.compress,
    "zstd": zstandard.compress,
}
DECODE: Mapping[str, Callable[[bytes], bytes]] = {
    "gzip": gzip.decompress,
    "deflate": zlib.decompress,
    "br": brotli.decompress,
    "zstd": lambda body: zstandard.ZstdDecompressor().decompress(body),
}


async def decoded(coding: str, body: bytes) -> bytes:
    decoder = find_decoder(coding.encode())
    assert decoder is not None
    return await decode_body(decoder, body, LIMIT)


@pytest.mark.parametrize("coding", ENCODE)
async def test_a_body_in_a_known_coding_is_decoded(coding):
    assert await decoded(coding, ENCODE[coding](TEXT)) == TEXT
    assert await decoded(coding.upper(), ENCODE[coding](b"")) == b""
    assert len(await decoded(coding, ENCODE[coding](b"a" * LIMIT))) == LIMIT


async def test_parts_of_gzip_and_frames_of_zstd_may_follow_each_other():
    assert await decoded("gzip", gzip.compress(b"ab") + gzip.compress(b"cd")) == b"abcd"
    assert await decoded("zstd", zstandard.compress(b"ab") + zstandard.compress(b"cd")) == b"abcd"


@pytest.mark.parametrize("coding", ENCODE)
@pytest.mark.parametrize("size", [LIMIT + 1, 20_000_000])
async def test_a_body_that_expands_beyond_the_limit_is_refused(coding, size):
    parts = [b"\0" * 1_000_000] * (size // 1_000_000) + [b"\0" * (size % 1_000_000)]
    if coding == "br":
        packer = brotli.Compressor(quality=1)
        bomb = b"".join(map(packer.process, parts)) + packer.finish()
    elif coding == "zstd":
        stream = zstandard.ZstdCompressor(level=1).compressobj()
        bomb = b"".join(map(stream.compress, parts)) + stream.flush()
    else:
        deflate = zlib.compressobj(1, wbits=15 if coding == "deflate" else 31)
        bomb = b"".join(map(deflate.compress, parts)) + deflate.flush()
    with pytest.raises(BodyTooLarge):
        await decoded(coding, bomb)


@pytest.mark.parametrize("coding", ["gzip", "br", "deflate"])
async def test_a_body_that_breaks_off_is_refused(coding):
    with pytest.raises(MalformedRequest):
        await decoded(coding, ENCODE[coding](TEXT)[:-3])


@pytest.mark.parametrize("coding", ENCODE)
async def test_a_body_in_another_coding_than_it_says_is_refused(coding):
    with pytest.raises(MalformedRequest):
        await decoded(coding, TEXT)


@pytest.mark.parametrize("coding", ["lzma", "compress", "gzip, gzip", "a" * 10_000, "gzip;q=1"])
def test_any_other_coding_is_refused(coding):
    with pytest.raises(EncodingUnsupported) as refused:
        find_decoder(coding.encode())
    assert len(str(refused.value)) < 300


@pytest.mark.parametrize("coding", ["", "identity", " IDENTITY "])
def test_a_body_may_say_that_it_has_no_coding(coding):
    assert find_decoder(coding.encode()) is None


@pytest.mark.parametrize(
    ("accepted", "chosen"),
    [
        ("", ""),
        ("gzip", "gzip"),
        ("gzip, deflate, br, zstd", "zstd"),
        ("gzip;q=1.0, br;q=0.5", "gzip"),
        ("zstd;q=0, *", "br"),
        ("*;q=0", ""),
        ("identity", ""),
        ("gzip;q=nonsense", ""),
        ("GZIP", "gzip"),
        ("br ; q=0.1", "br"),
    ],
)
def test_an_answer_has_the_coding_that_its_client_likes_best(accepted, chosen):
    assert choose_coding(accepted.encode()) == chosen


async def ask(method: str, path: str, **headers: str) -> httpx.Response:
    transport = httpx.ASGITransport(make_application())
    async with httpx.AsyncClient(transport=transport, base_url="http://worker") as client:
        request = client.build_request(method, path, headers=headers)
        response = await client.send(request, stream=True)
        response._content = b"".join([part async for part in response.aiter_raw()])
        return response


@pytest.mark.parametrize("coding", DECODE)
async def test_a_large_answer_is_compressed_on_request(coding):
    plain = await ask("GET", "/openapi.json", **{"Accept-Encoding": "identity"})
    packed = await ask("GET", "/openapi.json", **{"Accept-Encoding": coding})
    assert "content-encoding" not in plain.headers
    assert packed.headers["content-encoding"] == coding
    assert packed.headers["vary"] == "accept-encoding"
    assert int(packed.headers["content-length"]) == len(packed._content) < len(plain._content) / 4
    assert DECODE[coding](packed._content) == plain._content


async def test_a_small_answer_stays_as_it_is():
    answer = await ask("GET", "/livez", **{"Accept-Encoding": "gzip"})
    assert "content-encoding" not in answer.headers
    assert len(answer._content) < MIN_COMPRESSED_BYTES


@pytest.mark.parametrize("path", ["/openapi.json", "/livez", "/docs"])
async def test_head_is_answered_like_get_without_the_body(path):
    plain = {"Accept-Encoding": "identity"}
    of_get, of_head = await ask("GET", path, **plain), await ask("HEAD", path, **plain)
    assert (of_head.status_code, of_head._content) == (200, b"")
    assert of_head.headers["content-length"] == of_get.headers["content-length"]


@pytest.mark.parametrize(
    ("path", "methods"),
    [
        ("/tasks/films", "DELETE, GET, HEAD, OPTIONS, PUT"),
        ("/tasks/films:rollback", "OPTIONS, POST"),
        ("/tasks/films/predict", "OPTIONS, POST"),
        ("/openapi.json", "GET, HEAD, OPTIONS"),
    ],
)
@pytest.mark.parametrize("method", ["OPTIONS", "PATCH", "TRACE"])
async def test_every_path_tells_all_its_methods(path, methods, method):
    answer = await ask(method, path)
    assert answer.status_code == (204 if method == "OPTIONS" else 405)
    assert answer.headers["allow"] == methods


async def test_a_path_that_does_not_exist_has_no_methods():
    assert (await ask("OPTIONS", "/nowhere")).status_code == 404


@pytest.mark.parametrize("path", ["/tasks/", "/tasks/films/", "/livez/"])
async def test_no_answer_redirects_to_the_host_that_a_request_names(path):
    answer = await ask("GET", path, Host="evil.example")
    assert answer.status_code == 404
    assert "location" not in answer.headers
    assert b"evil.example" not in answer._content
