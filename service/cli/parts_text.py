"""Which parts a task got and what the others would have earned, as text for people."""

from rich.console import Console
from rich.table import Table

from peterrec.model.documents import Document


def print_parts(record: Document) -> None:
    """Print every combination of parts that was tried, on held-out users, and the chosen one."""
    trials = record["trials"]
    chosen = "+".join(record["parts"]) or "head"
    if len({tuple(trial["parts"]) for trial in trials}) == 1:
        print(f"parts {chosen}, as asked for")
        return
    users = trials[-1]["users"]
    columns = ("parts", "users", "loss", "behind the best", "bytes", "")
    table = Table(*columns, title="Parts on held-out users")
    for trial in trials:
        name = "+".join(trial["parts"]) or "head"
        behind = f"{trial['behind']:.4f} ± {trial['error']:.4f}" if trial["behind"] else "best"
        mark = "chosen" if name == chosen and trial["users"] == users else ""
        loss, size = f"{trial['loss']:.4f}", f"{trial['size_bytes']:,}"
        table.add_row(name, f"{trial['users']:,}", loss, behind, size, mark)
    Console(highlight=False).print(table)
