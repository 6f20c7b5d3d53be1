"""Makes the Prometheus operator's object of the rules that a Prometheus without it reads as files.

`python -m tests.deploy.rules` writes it.
"""

import yaml

from tests.deploy.manifests import FOLDER, Document
from tests.docker.queries import RULES

FILE = FOLDER / "components" / "monitoring" / "rules.yaml"
HEAD = "# Made of docker/prometheus/rules: python -m tests.deploy.rules\n"


def rules_object() -> Document:
    """The PrometheusRule with all groups."""
    files = [yaml.safe_load(path.read_text(encoding="utf-8")) for path in RULES]
    return {
        "apiVersion": "monitoring.coreos.com/v1",
        "kind": "PrometheusRule",
        "metadata": {"name": "peterrec"},
        "spec": {"groups": [group for file in files for group in file["groups"]]},
    }


def text() -> str:
    """The file's text."""
    return HEAD + yaml.safe_dump(rules_object(), sort_keys=False, allow_unicode=True, width=100)


if __name__ == "__main__":
    FILE.write_text(text(), encoding="utf-8")
