"""The client as a package: small, typed, complete."""

import inspect
import re
import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

import peterrec_client
from peterrec.service.errors import HTTP_STATUS
from peterrec_client import AsyncClient, Client, errors
from peterrec_client.codes import STATUS_BY_CODE
from peterrec_client.kinds.prediction import Reason
from tests.service import error_pages

ASYNCHRONOUS = re.compile(
    r" \| collections\.abc\.AsyncIterable\[(?:[^][]|\[[^]]*\])*\]|Async(?=Iterator)"
)
"""What may differ in a signature: sources and results that are iterated asynchronously."""

PROGRAM = """
import sys
import peterrec_client
heavy = {"torch", "numpy", "pydantic", "fastapi", "model", "patches", "service"}
print(sorted(heavy & {name.partition(".")[0] for name in sys.modules}))
"""


def test_importing_the_client_loads_no_torch_and_no_server_code():
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "[]"


def test_the_package_says_that_it_is_typed():
    assert (Path(peterrec_client.__file__).parent / "py.typed").exists()


def test_both_clients_have_the_same_methods_with_the_same_arguments():
    def methods(kind):
        members = inspect.getmembers(kind, inspect.isfunction)
        return {
            name: ASYNCHRONOUS.sub("", str(inspect.signature(method)))
            for name, method in members
            if not name.startswith("_") and name not in {"close", "aclose"}
        }

    assert methods(Client) == methods(AsyncClient)


@pytest.mark.parametrize("status", sorted(set(HTTP_STATUS.values()) - {500}))
def test_every_status_of_the_server_has_an_error_of_its_own(status):
    assert status in errors.BY_STATUS


def test_the_client_mirrors_every_error_code_of_the_server():
    assert error_pages.CODES.read_text(encoding="utf-8") == error_pages.render_codes(), (
        "Errors have changed: run `python -m tests.service.error_pages`."
    )
    for code, status in STATUS_BY_CODE.items():
        alone = errors.refused(Reason(code, "m", "h", True), "r")
        whole = msgspec.json.encode({"code": code, "detail": "m", "hint": "h", "request_id": "r"})
        of_answer = errors.refusal(status, whole, is_retryable=False)
        assert (type(alone), alone.status, str(alone)) == (type(of_answer), status, str(of_answer))


def test_everything_public_is_exported_and_described():
    for name in peterrec_client.__all__:
        thing = getattr(peterrec_client, name)
        assert not inspect.isclass(thing) or inspect.getdoc(thing), name
