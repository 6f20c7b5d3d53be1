"""Tables of options in the documents, written from the settings classes.

``python -m peterrec.service.cli.option_tables docs/training.md docs/compare.md`` writes each table
anew between ``<!-- options: NAME -->`` and ``<!-- end of options -->``.
"""

import re
import sys
from pathlib import Path
from typing import get_args

from peterrec.model.study.settings import Axes, ComparisonSettings, CutSettings
from peterrec.model.training.finetune.settings import FinetuneSettings
from peterrec.model.training.options import REQUIRED, Option
from peterrec.model.training.pretrain.settings import PretrainSettings
from peterrec.service.cli.settings_options import FieldsOf, comma_text

TABLES: dict[str, tuple[FieldsOf, ...]] = {
    "pretraining": (FieldsOf(PretrainSettings),),
    "patch": (FieldsOf(FinetuneSettings, of_panel="Model", without=frozenset({"kind"})),),
    "finetuning": (
        FieldsOf(FinetuneSettings, of_panel="Input"),
        FieldsOf(FinetuneSettings, of_panel="Training"),
    ),
    "comparison": (
        FieldsOf(ComparisonSettings, base=ComparisonSettings()),
        FieldsOf(CutSettings),
        FieldsOf(Axes, base=Axes()),
    ),
}
"""The name of each table, and the fields that it lists."""

_TABLE = re.compile(r"(<!-- options: (\w+) -->\n).*?(<!-- end of options -->)", re.DOTALL)


def with_tables(document: str) -> str:
    """The document with its tables as the settings classes have them now."""
    return _TABLE.sub(lambda found: f"{found[1]}{_table(found[2])}\n{found[3]}", document)


def _table(name: str) -> str:
    options = [option for chosen in TABLES[name] for option in chosen.options()]
    rows = [f"| {_names(o)} | {_default(o)} | {o.help} |" for o in options]
    return "\n".join(["| option | default | what |", "|---|---|---|", *rows])


def _names(option: Option) -> str:
    name = option.name.replace("_", "-")
    is_flag = bool in (option.type, *get_args(option.type))
    return f"`--{name}`, `--no-{name}`" if is_flag else f"`--{name}`"


def _default(option: Option) -> str:
    default = option.default
    if default is REQUIRED:
        return "(required)"
    if isinstance(default, bool):
        return "on" if default else "off"
    if isinstance(default, tuple):
        default = comma_text(default)
    return f"`{default}`" if default not in (None, "") else ""


if __name__ == "__main__":
    for path in map(Path, sys.argv[1:]):
        path.write_text(with_tables(path.read_text(encoding="utf-8")), encoding="utf-8")
