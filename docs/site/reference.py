"""Pages of the site that are generated from the code each time it is built."""

import inspect
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import typer

import peterrec
from peterrec.service.cli.main import build_app
from peterrec.service.telemetry.metrics import Metrics

ROOT = Path(__file__).parents[2]

TERMINAL_COLUMNS = 100

Json = Mapping[str, Any]  # Any: an OpenAPI document


def pages() -> dict[str, str]:
    """Return the text of each page by its path in the site."""
    return {
        "reference/rest.md": rest(),
        "reference/commands.md": commands(),
        "reference/metrics.md": metrics(),
        "reference/python.md": python(),
        **errors(),
    }


def rest() -> str:
    """Every call, by the OpenAPI document that the tests compare with the application."""
    document = json.loads((ROOT / "tests/service/http/openapi.json").read_text(encoding="utf-8"))
    lines = [
        "# REST",
        "",
        "Generated from the OpenAPI document, which a running server gives at `/openapi.json` with "
        "the schemas of all bodies. What the calls mean: [HTTP API](../http-api.md).",
    ]
    for path, methods in document["paths"].items():
        for method, operation in methods.items():
            lines += ["", f"## `{method.upper()} {path}`", "", *_operation(operation)]
    return "\n".join(lines) + "\n"


def _operation(operation: Json) -> Iterator[str]:
    yield operation.get("description") or operation["summary"]
    parameters = operation.get("parameters", ())
    if parameters:
        yield from ("", "| parameter | in | | |", "|---|---|---|---|")
    for each in parameters:
        needed = "required" if each.get("required") else ""
        about = each.get("description") or each["schema"].get("description", "")
        yield f"| `{each['name']}` | {each['in']} | {needed} | {_cell(about)} |"
    yield ""
    answers = ", ".join(f"{status} {each['description']}" for status, each in _shown(operation))
    yield f"Answers: {answers}"


def _shown(operation: Json) -> list[tuple[str, Json]]:
    return [each for each in operation["responses"].items() if each[0].startswith(("2", "3"))]


def commands() -> str:
    """``--help`` of every command."""
    command = typer.main.get_command(build_app())
    lines = ["# Command line", "", "What `--help` says of each command, generated from the code."]
    for name, text in _helps(command, "peterrec"):
        lines += ["", f"## {name}", "", "```text", text.rstrip(), "```"]
    return "\n".join(lines) + "\n"


def _helps(command: Any, name: str, parent: Any = None) -> Iterator[tuple[str, str]]:
    # Any: typer's own classes
    context = command.make_context(name.split()[-1], [], parent=parent, resilient_parsing=True)
    context.terminal_width = context.max_content_width = TERMINAL_COLUMNS
    yield name, _plain_help(command, context, name)
    for inner_name, inner in getattr(command, "commands", {}).items():
        if not inner.hidden:
            yield from _helps(inner, f"{name} {inner_name}", context)


def _plain_help(command: Any, context: Any, name: str) -> str:  # Any: typer's own classes
    formatter = context.make_formatter()
    formatter.write_usage(name, " ".join(command.collect_usage_pieces(context)))
    command.format_help_text(context, formatter)
    rows = [
        record
        for parameter in command.get_params(context)
        if (record := parameter.get_help_record(context)) is not None
    ]
    if rows:
        with formatter.section("Options"):
            formatter.write_dl(rows)
    return str(formatter.getvalue())


def metrics() -> str:
    """Every series."""
    lines = [
        "# Metrics",
        "",
        "Generated from the code. What to do with them: [monitoring](../monitoring.md).",
        "",
        "| series | type | meaning |",
        "|---|---|---|",
    ]
    families = sorted(Metrics().registry.collect(), key=lambda family: family.name)
    for family in families:
        name = family.name + ("_total" if family.type == "counter" else "")
        lines.append(f"| `{name}` | {family.type} | {_cell(family.documentation)} |")
    return "\n".join(lines) + "\n"


def python() -> str:
    """What ``import peterrec`` gives."""
    lines = ["# Python", "", "Generated from the code. The guide is [Python](../python.md)."]
    for name in peterrec.__all__:
        value = getattr(peterrec, name)
        if inspect.ismodule(value) or isinstance(value, str):
            continue
        lines += ["", f"## `peterrec.{name}`", "", *_described(name, value)]
        if inspect.isclass(value):
            for inner, method in inspect.getmembers(value, inspect.isfunction):
                if not inner.startswith("_") and method.__module__.startswith("peterrec"):
                    lines += ["", f"### `{name}.{inner}`", "", *_described(inner, method)]
    return "\n".join(lines) + "\n"


def _described(name: str, value: Any) -> Iterator[str]:  # Any: a class or a function
    if inspect.isfunction(value):
        parameters = [str(each) for each in inspect.signature(value).parameters.values()]
        whole = f"{name}({', '.join(parameters)})"
        if len(whole) > TERMINAL_COLUMNS:
            whole = f"{name}(\n" + "".join(f"    {each},\n" for each in parameters) + ")"
        yield from ("```python", whole, "```", "")
    yield inspect.cleandoc(inspect.getdoc(value) or "").replace("``", "`")


def errors() -> dict[str, str]:
    """One page for each code, from the page of all codes, which is generated as well."""
    text = (ROOT / "docs/errors.md").read_text(encoding="utf-8")
    found = {}
    sections = re.split(r"^### (\w+)\n", text, flags=re.MULTILINE)[1:]
    for code, section in zip(sections[::2], sections[1::2], strict=True):
        body = re.split(r"^## ", section, flags=re.MULTILINE)[0].strip()
        body = (
            re.sub(r"\]\(#(\w+)\)", r"](\1.md)", body)
            .replace("](", "](../")
            .replace("](../http", "](http")
        )
        body = re.sub(r"\]\(\.\./(\w+)\.md\)", _beside, body)
        back = "All codes: [errors](../errors.md)."
        found[f"errors/{code}.md"] = f"# {code}\n\n{body}\n\n{back}\n"
    return found


def _beside(link: re.Match[str]) -> str:
    is_document = (ROOT / "docs" / f"{link.group(1)}.md").is_file()
    return link.group() if is_document else f"]({link.group(1)}.md)"


def _cell(text: str) -> str:
    return " ".join(text.split()).replace("|", "\\|")
