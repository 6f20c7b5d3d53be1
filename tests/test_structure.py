"""The shape of the project: which way imports point, names, and what stays free of torch."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("model", "patches", "service")
CLIENT = ROOT / "clients" / "python" / "peterrec_client"
WORDS_THAT_SAY_NOTHING = frozenset({"util", "utils", "helper", "helpers", "manager", "common"})
TORCH_FREE = (
    "model.backbone_info",
    "model.errors",
    "model.spec",
    "service.app",
    "service.cli",
    "service.device_link",
    "service.task_table",
    "service.worker",
)


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def sources() -> dict[str, Path]:
    files = chain.from_iterable((ROOT / layer).rglob("*.py") for layer in LAYERS)
    return {name_of(path): path for path in files}


def imported_names(path: Path, package: str) -> Iterator[str]:
    """Absolute names imported anywhere in a file, inside functions too."""
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: 1 - node.level or None] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (f"{base}.{alias.name}" for alias in node.names)


def import_graph(files: dict[str, Path]) -> dict[str, set[str]]:
    """Modules of ours by name, each with the modules of ours it imports."""
    return {
        module: {
            target
            for name in imported_names(path, _package_of(module, path))
            if (target := _module_in(name, files)) is not None and target != module
        }
        for module, path in files.items()
    }


def _package_of(module: str, path: Path) -> str:
    return module if path.name == "__init__.py" else module.rpartition(".")[0]


def _module_in(name: str, files: dict[str, Path]) -> str | None:
    """The module that ``name`` is or belongs to."""
    while name and name not in files:
        name = name.rpartition(".")[0]
    return name or None


def cycle_in(graph: dict[str, set[str]]) -> list[str]:
    """One cycle of a graph as a path that ends where it began, empty if there is none."""
    done: set[str] = set()

    def walk(node: str, path: list[str]) -> list[str]:
        if node in path:
            return [*path[path.index(node) :], node]
        if node in done:
            return []
        found = next(filter(None, (walk(n, [*path, node]) for n in sorted(graph[node]))), [])
        done.add(node)
        return found

    return next(filter(None, (walk(node, []) for node in sorted(graph))), [])


def test_imports_point_from_service_to_patches_to_model() -> None:
    upward = [
        f"{module} imports {target}"
        for module, targets in import_graph(sources()).items()
        for target in targets
        if LAYERS.index(target.split(".")[0]) > LAYERS.index(module.split(".")[0])
    ]
    assert upward == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert cycle_in(import_graph(sources())) == []


def test_the_client_imports_no_server_code() -> None:
    imported = {
        name.split(".")[0]
        for path in CLIENT.rglob("*.py")
        for name in imported_names(path, "peterrec_client")
    }
    assert imported.isdisjoint({*LAYERS, "torch"})


def test_no_module_has_a_name_that_says_nothing() -> None:
    folders = [*LAYERS, "bench", "clients", "tests"]
    files = chain.from_iterable((ROOT / folder).rglob("*.py") for folder in folders)
    vague = [p for p in files if WORDS_THAT_SAY_NOTHING & set(p.stem.split("_"))]
    assert vague == []


def torch_free_modules() -> list[str]:
    files = sources()
    return [name for name in files if name in TORCH_FREE or name.startswith("patches")]


def test_patches_and_http_workers_import_no_torch() -> None:
    modules = torch_free_modules()
    program = (
        "import importlib, sys\n"
        "for name in sys.argv[1:]:\n"
        "    importlib.import_module(name)\n"
        "    assert 'torch' not in sys.modules, name + ' imports torch'\n"
    )
    command = [sys.executable, "-c", program, *sorted(modules)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import service.app", {"service.app"}),
        ("from service import app", {"service.app"}),
        ("def later():\n    from service.app import run", {"service.app"}),
        ("from . import spec", {"model.spec"}),
        ("from ..service.app import run", {"service.app"}),
        ("import numpy", set()),
    ],
)
def test_the_graph_sees_every_form_of_import(
    tmp_path: Path, source: str, expected: set[str]
) -> None:
    (tmp_path / "one.py").write_text(source)
    files = {"model.one": tmp_path / "one.py"}
    others = {"model.spec": tmp_path / "empty.py", "service.app": tmp_path / "empty.py"}
    (tmp_path / "empty.py").touch()
    assert import_graph({**files, **others})["model.one"] == expected


def test_a_circle_is_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]
