"""Commands that compare with the published code and import its checkpoints."""

import json
import math
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.table import Table

from peterrec.model.disk import require_writable_folder
from peterrec.service.cli.shared_options import AsJson, Quiet

if TYPE_CHECKING:
    from peterrec.model.parity.check import CaseReport, Quantity

Folder = Annotated[
    Path,
    typer.Argument(metavar="DIR", help="Folder of case_*.npz files, recorded from that code."),
]
Source = Annotated[
    Path,
    typer.Argument(
        metavar="FILE", help="Checkpoint: .safetensors, .npz, or the prefix of a TensorFlow one."
    ),
]
Out = Annotated[Path, typer.Option("--out", metavar="DIR", help="Backbone folder to write.")]
Vocabulary = Annotated[
    Path | None,
    typer.Option(
        metavar="FILE", help="Item ids, one per line; the first line is the model's id 1."
    ),
]
PadItem = Annotated[
    str | None,
    typer.Option(metavar="ID", help="Item with which short histories were padded on the left."),
]
MaxLen = Annotated[int, typer.Option(min=1, help="Number of items that histories were padded to.")]
Causal = Annotated[
    bool,
    typer.Option(
        "--causal/--no-causal",
        help="Whether the network reads earlier items only (causal) or both sides.",
    ),
]


def register(app: typer.Typer) -> None:
    """Add this group's commands."""
    app.command("check-golden")(check_golden)
    app.command("import-reference")(import_reference)


def check_golden(folder: Folder, as_json: AsJson = False, quiet: Quiet = False) -> None:
    """Compare this network with numbers that were recorded from the published code."""
    from peterrec.model.parity.check import check_folder
    from peterrec.service.jobs.progress_bar import ProgressBars

    reports = []
    with ProgressBars(quiet) as bars:
        for report in check_folder(folder, bars):
            reports.append(report)
            if not as_json:
                _show(report)
    if as_json:
        print(json.dumps(_document(folder, reports), indent=1))
    else:
        _summarise(reports)
    if not all(report.is_met for report in reports):
        raise typer.Exit(1)


def import_reference(
    source: Source,
    out: Out,
    vocabulary: Vocabulary = None,
    pad_item: PadItem = None,
    max_len: MaxLen = 50,
    causal: Causal = True,
    quiet: Quiet = False,
) -> None:
    """Convert a checkpoint of the published code into a backbone folder."""
    require_writable_folder(out)
    from peterrec.model.parity.import_checkpoint import ImportSettings
    from peterrec.model.parity.import_checkpoint import import_reference as write_folder
    from peterrec.model.progress import Progress
    from peterrec.service.jobs.progress_bar import ProgressBars

    settings = ImportSettings(is_causal=causal, max_len=max_len, pad_item=pad_item)
    with ProgressBars(quiet) as bars:
        bars(Progress("importing the checkpoint"))
        imported = write_folder(source, out, settings, vocabulary)
    spec = imported.spec
    print(f"Wrote {out}: {spec.item_count} items, {spec.channels} channels,")
    print(f"  dilations {', '.join(map(str, spec.dilations))}, kernel {spec.kernel_size},")
    print(f"  {'causal' if spec.is_causal else 'non-causal'}, fingerprint {imported.fingerprint}.")
    if imported.unused:
        print(f"  Not part of a backbone, left out: {', '.join(imported.unused)}.")


def _show(report: "CaseReport") -> None:
    console = Console(highlight=False, soft_wrap=True)
    if report.problem:
        console.print(f"[red]{report.case}[/red]: ", end="")
        console.print(report.problem, markup=False)
        return
    table = Table(title=report.case, title_justify="left")
    for column in ("quantity", "arrays", "relative error", "tolerance", "largest at", ""):
        table.add_column(column, overflow="fold")
    for kind, worst, count in _by_kind(report.quantities):
        verdict = "[green]met[/green]" if worst.is_met else "[red]MISSED[/red]"
        error, tolerance = f"{worst.error:.1e}", f"{worst.tolerance:.0e}"
        table.add_row(kind, str(count), error, tolerance, worst.name, verdict)
    console.print(table)
    if report.unchecked:
        console.print(f"  not checked, unknown arrays: {', '.join(report.unchecked)}", markup=False)


def _by_kind(quantities: Iterable["Quantity"]) -> list[tuple[str, "Quantity", int]]:
    """Each kind with its worst quantity and its number of arrays, in order of appearance."""
    kinds: dict[str, list[Quantity]] = defaultdict(list)
    for quantity in quantities:
        kinds[quantity.kind].append(quantity)
    return [(kind, max(own, key=_badness), len(own)) for kind, own in kinds.items()]


def _badness(quantity: "Quantity") -> float:
    return math.inf if math.isnan(quantity.error) else quantity.error


def _summarise(reports: list["CaseReport"]) -> None:
    console = Console(highlight=False, soft_wrap=True)
    for report in reports:
        for miss in report.misses:
            console.print(
                f"missed: {report.case} {miss.name}: relative error {miss.error:.2e}, "
                f"tolerance {miss.tolerance:.0e}",
                markup=False,
            )
        if report.problem:
            console.print(f"not run: {report.case}: {report.problem}", markup=False)
    met = sum(report.is_met for report in reports)
    console.print(
        f"{met} of {len(reports)} cases met.", style="green" if met == len(reports) else "red"
    )


def _document(folder: Path, reports: list["CaseReport"]) -> dict[str, object]:
    return {
        "folder": str(folder),
        "is_met": all(report.is_met for report in reports),
        "cases": [_case_document(report) for report in reports],
    }


def _case_document(report: "CaseReport") -> dict[str, object]:
    return {
        "case": report.case,
        "is_met": report.is_met,
        "problem": report.problem or None,
        "unchecked": list(report.unchecked),
        "quantities": [
            {
                "quantity": quantity.name,
                "kind": quantity.kind,
                "relative_error": quantity.error if math.isfinite(quantity.error) else None,
                "tolerance": quantity.tolerance,
                "is_met": quantity.is_met,
            }
            for quantity in report.quantities
        ],
    }
