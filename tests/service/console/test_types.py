"""The console's modules fit together, as TypeScript's compiler sees them without a build step."""

import shutil
import subprocess
from pathlib import Path

import pytest

from peterrec.service.console.folders import CONSOLE

COMPILER = Path(__file__).parents[3] / "clients/typescript/node_modules/typescript/bin/tsc"
OPTIONS = (
    *("--noEmit", "--allowJs", "--checkJs", "--strict", "--skipLibCheck"),
    *("--noImplicitAny", "false", "--useUnknownInCatchVariables", "false"),
    *("--target", "es2023", "--lib", "es2023,dom,dom.iterable,dom.asynciterable"),
    *("--module", "esnext", "--moduleResolution", "bundler"),
)


@pytest.mark.skipif(
    shutil.which("node") is None or not COMPILER.exists(),
    reason="needs node, and `npm install` in clients/typescript",
)
def test_the_modules_of_the_console_have_no_mistake_of_types():
    command = ["node", str(COMPILER), *OPTIONS, str(CONSOLE / "app.js")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=100, check=False)
    assert (done.returncode, done.stdout) == (0, "")
