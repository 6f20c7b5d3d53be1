"""The shape of the project: which way imports point, names, and what stays free of torch."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from itertools import chain
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
LAYERS = ("model", "patches", "service")
ROOMS = {
    "model": (
        "errors",
        "documents",
        "disk",
        "scratch",
        "insertions",
        "kinds",
        "spec",
        "progress",
        "network",
        "data",
        "files",
        "inference",
        "training",
        "parity",
        "study",
    ),
    "patches": ("errors", "identity", "interning", "bundle", "redis", "registry", "backup"),
    "service": (
        "errors",
        "system",
        "sources",
        "settings",
        "pages",
        "console",
        "protocol",
        "telemetry",
        "device",
        "predict",
        "open_inference",
        "sync",
        "http",
        "grpc",
        "webhooks",
        "processes",
        "jobs",
        "library",
        "cli",
    ),
}
"""Each package's folders and files of its first level, in the order in which they may import."""
CLIENT = ROOT / "clients" / "python" / "peterrec_client"
WORDS_THAT_SAY_NOTHING = frozenset({"util", "utils", "helper", "helpers", "manager", "common"})
TORCH_FREE = (
    "peterrec.model.files.backbone_info",
    "peterrec.model.errors",
    "peterrec.model.insertions",
    "peterrec.model.kinds",
    "peterrec.model.spec",
    "peterrec.service.http.app",
    "peterrec.service.grpc.server",
    "peterrec.service.cli.main",
    "peterrec.service.predict.device_link",
    "peterrec.service.predict.kinds",
    "peterrec.service.predict.task_table",
    "peterrec.service.processes.http_worker",
)


def name_of(path: Path) -> str:
    parts = ("peterrec", *path.relative_to(ROOT).with_suffix("").parts)
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


def room_of(module: str) -> tuple[int, int]:
    """The place of a module in the order of packages and their rooms; a package's own is last."""
    _, layer, *rest = module.split(".")
    place = ROOMS[layer].index(rest[0]) if rest else len(ROOMS[layer])
    return LAYERS.index(layer), place


def test_every_room_of_a_package_has_its_place() -> None:
    for layer, rooms in ROOMS.items():
        entries = {path.stem for path in (ROOT / layer).iterdir() if path.suffix in {"", ".py"}}
        assert entries - {"__init__", "__pycache__"} == set(rooms)


def test_imports_point_to_earlier_rooms_and_lower_packages() -> None:
    later = [
        f"{module} imports {target}"
        for module, targets in import_graph(sources()).items()
        for target in targets
        if room_of(target) > room_of(module)
    ]
    assert later == []


def test_nobody_imports_a_folder_by_its_own_name() -> None:
    """``model`` is found in a checkout only; in an installation it is ``peterrec.model``."""
    folders = [*LAYERS, "bench", "tests", "clients"]
    short = [
        f"{path}: {name}"
        for path in chain.from_iterable((ROOT / folder).rglob("*.py") for folder in folders)
        for name in imported_names(path, "peterrec")
        if name.split(".")[0] in LAYERS
    ]
    assert short == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert cycle_in(import_graph(sources())) == []


def test_the_client_imports_no_server_code() -> None:
    imported = {
        name.split(".")[0]
        for path in CLIENT.rglob("*.py")
        for name in imported_names(path, "peterrec_client")
    }
    assert imported.isdisjoint({"peterrec", "torch"})


def test_no_module_has_a_name_that_says_nothing() -> None:
    folders = [*LAYERS, "bench", "clients", "tests"]
    files = chain.from_iterable((ROOT / folder).rglob("*.py") for folder in folders)
    vague = [p for p in files if WORDS_THAT_SAY_NOTHING & set(p.stem.split("_"))]
    assert vague == []


def torch_free_modules() -> list[str]:
    files = sources()
    return [name for name in files if name in TORCH_FREE or name.startswith("peterrec.patches")]


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


def test_commands_start_without_the_engines_that_read_tables() -> None:
    program = (
        "import sys, peterrec.service.cli.main, peterrec.service.jobs.options\n"
        "assert not {'duckdb', 'pyarrow'} & {*sys.modules}, sorted(sys.modules)\n"
    )
    command = [sys.executable, "-c", program]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import peterrec.service.http.app", {"peterrec.service.http.app"}),
        ("from peterrec.service.http import app", {"peterrec.service.http.app"}),
        (
            "def later():\n    from peterrec.service.http.app import run",
            {"peterrec.service.http.app"},
        ),
        ("from . import spec", {"peterrec.model.spec"}),
        ("from ..service.http.app import run", {"peterrec.service.http.app"}),
        ("import numpy", set()),
    ],
)
def test_the_graph_sees_every_form_of_import(
    tmp_path: Path, source: str, expected: set[str]
) -> None:
    (tmp_path / "one.py").write_text(source)
    files = {"peterrec.model.one": tmp_path / "one.py"}
    others = {
        "peterrec.model.spec": tmp_path / "empty.py",
        "peterrec.service.http.app": tmp_path / "empty.py",
    }
    (tmp_path / "empty.py").touch()
    assert import_graph({**files, **others})["peterrec.model.one"] == expected


def test_a_circle_is_found() -> None:
    assert cycle_in({"a": {"b"}, "b": {"c"}, "c": {"b"}}) == ["b", "c", "b"]


PRIVATE_WORDS = frozenset(
    [
        "lanes",
        "slab",
        "slabs",
        "cone",
        "gang",
        "thinned",
        "thinning",
        "framed",
        "goal",
        "goals",
        "slope",
        "turned",
        "judge",
        "watch",
        "unwatched",
        "prove",
        "proved",
        "spool",
        "spooled",
        "parked",
        "speaker",
        "namings",
        "facts",
    ]
)
"""Words that once stood for what the field calls sequence, weight pool, receptive field, tile, item
dropout, collated, objective, gradient, transposed, predictions, on_progress, validate, upload,
pending, route, reference counts, metadata."""
OTHER_MEANINGS = {
    "model/inference/cpu/simd.py": {"lanes"},  # of a vector register
    "clients/python/peterrec_client": {"judge"},  # what a retry decides
    "service/sync": {"watch"},  # the guard's
}


Definition = ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef


def documented() -> Iterator[tuple[str, str, Definition]]:
    """Every definition of our code with its file."""
    for folder in (*LAYERS, "clients/python", "bench"):
        for path in sorted((ROOT / folder).rglob("*.py")):
            place = str(path.relative_to(ROOT))
            for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
                if isinstance(node, Definition):
                    yield place, node.name, node


def test_names_are_made_of_the_fields_words() -> None:
    private = {
        f"{place}: {name}"
        for place, name, _ in documented()
        for word in re.findall(r"[a-z]+|[A-Z][a-z]*", name)
        if word.lower() in PRIVATE_WORDS
        if not any(
            place.startswith(where) and word.lower() in words
            for where, words in OTHER_MEANINGS.items()
        )
    }
    assert private == set()


def test_a_docstring_can_be_read_without_the_one_above_it() -> None:
    leaning = [
        f"{place}: {name}"
        for place, name, node in documented()
        if (ast.get_docstring(node) or "").startswith(("The same", "As above", "Likewise", "Ditto"))
    ]
    assert leaning == []


def test_the_architecture_page_lists_every_room() -> None:
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(\w+)/` \|", page, flags=re.MULTILINE)
    folders = [
        room for layer, rooms in ROOMS.items() for room in rooms if (ROOT / layer / room).is_dir()
    ]
    assert rows == folders
