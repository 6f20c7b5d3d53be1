"""The page of all error codes: ``python -m tests.service.error_pages`` writes ``docs/errors.md``.

What a code means is the docstring of its class; the message and the hint are those that the class
builds, or that the code which raises it gives, with … for what depends on the case.
"""

import ast
import importlib
import inspect
import pkgutil
import re
from collections import defaultdict
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from peterrec import model, patches, service
from peterrec.model.errors import RETRYABLE, PeterRecError
from peterrec.service.errors import HTTP_STATUS, RowError
from peterrec.service.grpc.statuses import STATUS
from peterrec_client import errors as of_client

ROOT = Path(__file__).parents[2]
PAGE = ROOT / "docs" / "errors.md"
MOST_TEXTS = 6
"""Messages of one code that the page shows: some codes are raised in many places."""

HEAD = """# Errors

Generated from the error classes by `python -m tests.service.error_pages`; a test compares them.

Every error has a stable code. Over HTTP it is `code` in `application/problem+json` (`type` is
`urn:peterrec:error:CODE`), the header `X-Error-Code` in answers of the Open Inference Protocol, and
the trailing metadata `x-error-code` over gRPC. Commands and `import peterrec` show the same codes.
Rely on codes, not on texts. *Again* means that the same call may succeed later without a change.

What the statuses mean, and which codes a call may be refused with: [http-api.md](http-api.md). How
to react in a product: [product-service.md](product-service.md).

Beside these there are `method_not_allowed` (405) of HTTP itself; the codes of reasons why a bundle
is refused ([bundle-format.md](bundle-format.md)); and the client's own: `client_timeout`,
`server_unreachable`, `unexpected_answer`, and `http_NNN` for an answer without a problem document,
which a proxy gave.

| code | HTTP | gRPC | again | in `peterrec-client` |
|---|---|---|---|---|
"""


def every_error() -> Iterator[type[PeterRecError]]:
    """Every error class that has a code of its own."""
    for package in (model, patches, service):
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}."):
            if module.name.endswith(".errors") or module.name == "peterrec.service.errors":
                importlib.import_module(module.name)
    yield from _below(PeterRecError)


def _below(parent: type[PeterRecError]) -> Iterator[type[PeterRecError]]:
    for child in parent.__subclasses__():
        if isinstance(child.code, str) and child.__module__.startswith("peterrec."):
            yield child
        yield from _below(child)


def classes_by_code() -> dict[str, list[type[PeterRecError]]]:
    """The classes of each code, those first that define it."""
    found: dict[str, list[type[PeterRecError]]] = defaultdict(list)
    for error in dict.fromkeys(every_error()):
        if "code" in vars(error):
            found[error.code].insert(0, error)
        elif error.code != "internal":
            found[error.code].append(error)
    return dict(sorted(found.items()))


def render() -> str:
    """The whole page."""
    codes = classes_by_code()
    rows = [_row(code, classes[0]) for code, classes in codes.items()]
    sections = [_section(code, classes) for code, classes in codes.items()]
    return HEAD + "".join(rows) + "\n" + "\n".join(sections)


def _row(code: str, error: type[PeterRecError]) -> str:
    status = HTTP_STATUS[error.category]
    again = "yes" if error.category in RETRYABLE else ""
    name = _client_class(code, status)
    return (
        f"| [`{code}`](#{code}) | {status} | {STATUS[error.category].name} | {again} | `{name}` |\n"
    )


def _client_class(code: str, status: int) -> str:
    fallback = of_client.ServerFailed if status >= 500 else of_client.UnexpectedAnswer
    found = of_client.BY_CODE.get(code) or of_client.BY_STATUS.get(status, fallback)
    return found.__name__


def _section(code: str, classes: list[type[PeterRecError]]) -> str:
    lines = [f"### {code}", ""]
    texts = [text for error in classes if (text := _docstring(error))]
    reasons = [str(error.reason) for error in classes if issubclass(error, RowError)]
    texts = texts or reasons or [_docstring(classes[0].__mro__[1])]
    lines += [" ".join(dict.fromkeys(texts)), ""]
    names = {error.__name__ for error in classes}
    said = [each for name in sorted(names) for each in _said().get(name, ())]
    for message, hint in list(dict.fromkeys(said))[:MOST_TEXTS]:
        lines += [f"- “{message}”" + (f" *{hint}*" if hint else "")]
    if len(dict.fromkeys(said)) > MOST_TEXTS:
        lines += ["- …"]
    return "\n".join(lines).rstrip() + "\n"


def _docstring(error: type) -> str:
    own = vars(error).get("__doc__")
    return " ".join(inspect.cleandoc(own).replace("``", "`").split()) if own else ""


@cache
def _said() -> dict[str, list[tuple[str, str]]]:
    """Messages and hints by the name of the class that says them."""
    found: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for folder in ("model", "patches", "service"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            tree = ast.parse(path.read_text(encoding="utf-8"))
            for node in ast.walk(tree):
                if isinstance(node, ast.Call) and isinstance(node.func, ast.Name):
                    _note(found, node.func.id, node)
                if isinstance(node, ast.ClassDef):
                    for inner in ast.walk(node):
                        if isinstance(inner, ast.Call) and ast.unparse(inner.func).startswith(
                            "super().__init__"
                        ):
                            _note(found, node.name, inner)
    return found


def _note(found: dict[str, list[tuple[str, str]]], name: str, call: ast.Call) -> None:
    message = _text(call.args[0]) if call.args else ""
    hint = next((_text(each.value) for each in call.keywords if each.arg == "hint"), "")
    if re.search(r"\w{3}", message) and message.rstrip().endswith((".", "…")):
        found[name].append((message, hint))


def _text(node: ast.expr) -> str:
    if isinstance(node, ast.Constant) and isinstance(node.value, str):
        text = node.value
    elif isinstance(node, ast.JoinedStr):
        parts = [each.value if isinstance(each, ast.Constant) else "…" for each in node.values]
        text = "".join(map(str, parts))
    else:
        return ""
    return " ".join(text.replace("*", "\\*").replace("<", "\\<").split())


CODES = Path(of_client.__file__).parent / "codes.py"


def render_codes() -> str:
    """The client's table of codes."""
    lines = [
        f'    "{code}": {HTTP_STATUS[classes[0].category]},'
        for code, classes in classes_by_code().items()
    ]
    return "\n".join(
        [
            '"""The HTTP status of every error code of the server; generated from its classes."""',
            "",
            "from collections.abc import Mapping",
            "",
            "STATUS_BY_CODE: Mapping[str, int] = {",
            *lines,
            "}",
            '"""``python -m tests.service.error_pages`` writes it."""',
            "",
        ]
    )


if __name__ == "__main__":
    CODES.write_text(render_codes(), encoding="utf-8")
    PAGE.write_text(render(), encoding="utf-8")
