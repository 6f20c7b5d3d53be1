"""Errors as HTTP: the table is total, the body is whole."""

import ast
import importlib
import pkgutil
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from peterrec import model, patches, service
from peterrec.model.errors import Category, PeterRecError
from peterrec.patches.errors import BundleRejected, CacheUnwritable, ReasonCode
from peterrec.service import errors
from peterrec.service.errors import (
    HTTP_STATUS,
    ROW_ERRORS,
    BundleNotReady,
    BundleUnservable,
    DeadlineExceeded,
    DeviceRefusal,
    ErrorBody,
    NotARankingTask,
    NothingAnswered,
    QueueFull,
    RowError,
    RowFailed,
    TaskNotActive,
    outcome_of,
    plain_problem,
    problem_of,
    push_error,
    retry_headers,
    row_error,
)
from peterrec.service.http.asgi import encode_json
from tests.service import error_pages

ROOT = Path(__file__).parents[2]
CODE = re.compile(r"`([a-z_]+)`")


def codes_in(document: str) -> set[str]:
    return set(CODE.findall((ROOT / "docs" / document).read_text(encoding="utf-8")))


def subclasses(parent: type[PeterRecError]) -> Iterator[type[PeterRecError]]:
    for child in parent.__subclasses__():
        yield child
        yield from subclasses(child)


def every_error() -> Iterator[type[PeterRecError]]:
    for package in (model, patches, service):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if "tensorflow" in module.name:
                continue
            try:
                importlib.import_module(module.name)
            except ModuleNotFoundError as error:
                if error.name != "ray":  # an extra that the tests do without
                    raise
    yield PeterRecError
    yield from subclasses(PeterRecError)


def test_every_category_has_a_status():
    assert set(HTTP_STATUS) == set(Category)


def test_every_error_has_a_status_and_a_code_in_snake_case():
    for error in every_error():
        assert error.category in HTTP_STATUS, error
        if isinstance(error.code, str):
            assert error.code.replace("_", "").isalnum(), error
            assert error.code == error.code.lower(), error


def test_every_error_of_the_service_is_defined_in_its_table_of_errors():
    # the command line's own client defines the errors of its calls
    elsewhere = [
        error
        for error in every_error()
        if error.__module__.startswith("peterrec.service.")
        and error.__module__ not in {errors.__name__, "peterrec.service.cli.api_client"}
    ]
    assert elsewhere == []


def test_every_error_of_a_row_is_found_by_the_code_that_is_sent():
    assert set(ROW_ERRORS.values()) == set(subclasses(RowError))
    for code, error in ROW_ERRORS.items():
        assert type(row_error(code)) is error
        assert row_error(code).code == code


def test_no_process_sends_a_code_that_is_not_taken_from_an_error_class():
    """Error codes of rows are written as ``SomeRowError.code``, never as text."""
    written = [
        f"{path}:{node.lineno}"
        for folder in ("device", "sync", "predict", "processes")
        for path in (ROOT / "service" / folder).rglob("*.py")
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call)
        for given in [*node.args, *(each.value for each in node.keywords)]
        if isinstance(given, ast.Constant) and given.value in ROW_ERRORS
        if not (isinstance(node.func, ast.Attribute) and ast.unparse(node.func).startswith("log."))
    ]
    assert written == []


def test_the_http_document_lists_every_code_of_a_row_and_of_a_refused_push():
    refused: list[type[PeterRecError]] = [BundleRejected, *subclasses(BundleRejected)]
    sent = [*subclasses(RowError), *refused]
    assert {error.code for error in sent} - codes_in("http-api.md") == set()


def test_the_documents_list_every_reason_of_a_refused_push():
    reasons: list[type[PeterRecError]] = [*subclasses(DeviceRefusal), CacheUnwritable]
    assert {error.code for error in reasons} - codes_in("http-api.md") == set()
    assert set(ReasonCode) - codes_in("bundle-format.md") == set()


def test_the_page_of_all_codes_is_generated_from_the_classes():
    assert error_pages.render() == error_pages.PAGE.read_text(encoding="utf-8"), (
        "Errors have changed: run `python -m tests.service.error_pages`."
    )
    assert all(text for _, text in re.findall(r"### (\w+)\n\n(.*)\n", error_pages.render()))


def test_a_problem_carries_all_a_caller_needs():
    problem = msgspec.json.decode(encode_json(problem_of(TaskNotActive("gender"), "id-1")))
    assert problem == {
        "type": "urn:peterrec:error:task_not_active",
        "title": "Task not active",
        "status": 409,
        "code": "task_not_active",
        "detail": "task 'gender' has no version named prod.",
        "hint": "PUT /tasks/gender/aliases/prod with the version that should serve.",
        "request_id": "id-1",
        "retryable": False,
        "error": problem["error"],
    }
    assert "task_not_active" in problem["error"]


@pytest.mark.parametrize(
    ("category", "status", "code"),
    [
        (Category.INCOMPATIBLE, 422, "bundle_rejected"),
        (Category.TOO_LARGE, 413, "bundle_too_large"),
        (Category.UNSAFE_FORMAT, 415, "bundle_unsafe"),
        (Category.NO_ROOM, 507, "head_budget_exceeded"),
        (Category.INTERNAL, 500, "bundle_not_judged"),
    ],
)
def test_a_refused_push_lists_every_reason(category, status, code):
    reasons = [ErrorBody("tensor_shape", "a is 3", "fix a"), ErrorBody("oversize", "b", "")]
    problem = problem_of(push_error(category, reasons), "x")
    assert (problem.status, problem.code, problem.reasons) == (status, code, reasons)


@pytest.mark.parametrize(
    ("errors", "code"),
    [
        ([TaskNotActive("a"), NotARankingTask("a", "value")], "task_not_active"),
        ([TaskNotActive("a"), QueueFull("full")], "queue_full"),
        ([DeadlineExceeded(), QueueFull("full")], "queue_full"),
        ([QueueFull("full"), RowFailed()], "row_failed"),
        ([BundleUnservable("a", 1, "x"), BundleNotReady("of a")], "bundle_not_ready"),
    ],
)
def test_of_several_errors_the_gravest_stands_for_all_and_the_first_before_its_equals(errors, code):
    problem = problem_of(NothingAnswered(dict(zip("ab", errors, strict=True))), "x")
    assert problem.code == code
    assert problem.status == next(HTTP_STATUS[e.category] for e in errors if e.code == code)


def test_a_bundle_that_can_not_be_loaded_counts_as_a_fault_and_not_as_the_callers_mistake():
    refused = BundleUnservable("a", 1, "backbone_mismatch")
    assert (HTTP_STATUS[refused.category], refused.is_retryable) == (409, False)
    assert outcome_of(refused) == outcome_of(NothingAnswered({"a": refused})) == "error"
    assert outcome_of(TaskNotActive("a")) == "client_error"


def test_a_call_that_answers_nothing_lists_the_error_of_each():
    errors = {"a": TaskNotActive("a"), "b": QueueFull("full")}
    problem = problem_of(NothingAnswered(errors), "x")
    assert problem.retryable is True
    assert isinstance(problem.errors, dict)
    assert {task: error.code for task, error in problem.errors.items()} == {
        "a": "task_not_active",
        "b": "queue_full",
    }


@pytest.mark.parametrize(
    ("code", "status"),
    [
        ("bundle_gone", 503),
        ("head_unreadable", 503),
        ("device_unavailable", 503),
        ("deadline_exceeded", 504),
        ("queue_full", 429),
        ("row_failed", 500),
        ("result_not_finite", 500),
        ("never_heard_of", 500),
    ],
)
def test_the_code_of_a_row_decides_its_status(code, status):
    problem = problem_of(row_error(code), "x")
    assert problem.status == status
    assert problem.retryable is (status in {429, 503, 504})


@pytest.mark.parametrize("status", [429, 503])
def test_a_repetition_is_invited_where_it_helps(status):
    assert retry_headers(status) == [(b"retry-after", b"1")]
    assert retry_headers(400) == []


def test_problems_of_http_itself_have_the_same_form():
    assert plain_problem(405, "no", "x").code == "method_not_allowed"
