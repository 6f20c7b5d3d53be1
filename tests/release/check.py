"""``make release-check``: build both distributions and try them in a clean environment.

It builds a wheel and a source distribution of the server and of the client, and checks their
contents. It installs the wheels into a new virtual environment, together with another distribution
whose import name is ``service``. Then it runs the demo (train, push, serve, predict) in a folder
that has its own ``model.py`` and ``service/``. At last it serves the demo's backbone as a user
without a name or a home, on a root file system that can't be written, as a hardened container does.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import venv
import zipfile
from pathlib import Path

from tests import confined
from tests.e2e.running import Start, running_server

ROOT = Path(__file__).parents[2]
FOREIGN = "service==0.6.0"
"""A distribution on PyPI with the import name ``service``."""
TRAP = "raise SystemExit('a file of the current folder was imported')\n"


def main() -> None:
    """Build, install and try; exit with the status of the first step that fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--torch", default="torch", help="requirement that pip installs first")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="peterrec-release-") as folder:
        place = Path(folder)
        wheels = build(place / "dist")
        for wheel in wheels:
            require_own_names_only(wheel)
        require_console(wheels[-1])
        python = install(place / "env", wheels, options.torch)
        try_demo(python, place / "elsewhere")
        try_as_stranger(python, place / "elsewhere" / "demo-data", place / "stranger")
    print("release-check: 2 wheels and 2 source distributions built, installed and tried")


def build(out: Path) -> list[Path]:
    """Build the wheels of the client and the server, each from its source distribution."""
    for project in (ROOT / "clients" / "python", ROOT):
        run(sys.executable, "-m", "build", "--outdir", out, project)
    wheels, archives = sorted(out.glob("*.whl")), sorted(out.glob("*.tar.gz"))
    if (len(wheels), len(archives)) != (2, 2):
        raise SystemExit(f"expected two wheels and two archives: {sorted(out.iterdir())}")
    return wheels


def require_own_names_only(wheel: Path) -> None:
    """SystemExit if a wheel installs anything but its own package, or lacks the licence."""
    names = zipfile.ZipFile(wheel).namelist()
    own = "peterrec_client" if wheel.name.startswith("peterrec_client") else "peterrec"
    tops = {name.split("/")[0] for name in names}
    if {top for top in tops if not top.endswith(".dist-info")} != {own}:
        raise SystemExit(f"{wheel.name} installs {sorted(tops)}")
    if not any(name.endswith("licenses/LICENSE") for name in names):
        raise SystemExit(f"{wheel.name} has no licence")


def require_console(wheel: Path) -> None:
    """SystemExit if the server's wheel lacks a file of the pages that it shows."""
    names = set(zipfile.ZipFile(wheel).namelist())
    files = [path for path in (ROOT / "service" / "console").rglob("*.*") if path.suffix != ".pyc"]
    lacking = [path for path in files if f"peterrec/{path.relative_to(ROOT)}" not in names]
    if lacking or not files:
        raise SystemExit(f"{wheel.name} lacks {lacking}")


def install(environment: Path, wheels: list[Path], torch: str) -> Path:
    """Install the wheels and the foreign ``service`` in a new environment; return its Python."""
    venv.create(environment, with_pip=True)
    python = environment / "bin" / "python"
    lock = ["--constraint", ROOT / "requirements.lock"]
    run(python, "-m", "pip", "install", "--quiet", *lock, torch)
    run(python, "-m", "pip", "install", "--quiet", *lock, *wheels)
    run(python, "-m", "pip", "install", "--quiet", FOREIGN)
    return python


def try_demo(python: Path, folder: Path) -> None:
    """Train, push, serve and predict from a folder whose files would shadow careless imports."""
    (folder / "service").mkdir(parents=True)
    for trap in ("model.py", "patches.py", "service/__init__.py"):
        (folder / trap).write_text(TRAP, encoding="utf-8")
    run(python.with_name("peterrec"), "demo", "--once", cwd=folder)
    run(python, "-P", "-c", "from service import Service; import peterrec.service", cwd=folder)


def try_as_stranger(python: Path, demo: Path, folder: Path) -> None:
    """Serve, push and predict with one writable folder."""
    if reason := confined.why_not():
        print(f"not served as another user: {reason}")
        return
    for part in ("root", "data"):
        (folder / part).mkdir(parents=True)
    seen = [python.parents[1], Path(sys.base_prefix), demo]
    place = confined.stranger(folder / "root", seen, folder / "data")
    program = [*place, "env", "-u", "PYTHONPATH", str(python), "-P", "-m", "peterrec"]
    start = Start(program, within_s=300)
    with (
        running_server(demo / "backbone", folder, start=start, data_dir=folder / "data") as server,
        server.client() as client,
    ):
        bundle = (demo / "gender.bundle").read_bytes()
        client.post("/tasks/gender/versions", content=bundle).raise_for_status()
        asked = client.post("/tasks/gender/predict", json={"history": []})
    print(f"served as user {confined.STRANGER}: {asked.raise_for_status().text}")


def run(*command: object, cwd: Path = ROOT) -> None:
    """Run a command outside this checkout's environment; SystemExit if it fails."""
    hidden = {"PYTHONPATH", "VIRTUAL_ENV", "PYTHONHOME"}
    environment = {name: value for name, value in os.environ.items() if name not in hidden}
    words = [str(word) for word in command]
    print("$", *words, flush=True)
    done = subprocess.run(words, cwd=cwd, env=environment, check=False)
    if done.returncode != 0:
        raise SystemExit(f"release-check: status {done.returncode} of {' '.join(words)}")


if __name__ == "__main__":
    main()
