"""Where the files of the pages are."""

from importlib.resources import files
from pathlib import Path

CONSOLE = Path(__file__).parent / "static"
"""The console: one page, its style, and its scripts as ES modules."""

REFERENCE = Path(__file__).parent / "reference"
"""The pages ``/docs`` and ``/redoc``, and the scripts that start them."""


def find_viewers() -> Path:
    """Return the folder with Swagger UI and Redoc, as they lie in the wheel of fastapi-offline."""
    return Path(str(files("fastapi_offline"))) / "static"
