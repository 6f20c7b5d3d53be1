"""The type of JSON documents."""

from typing import Any

Document = dict[str, Any]  # Any: a JSON document
"""A JSON object whose fields are not known to the type checker, such as a training record."""
