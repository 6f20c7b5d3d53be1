"""Metrics of a task, shown as a table in a notebook."""

from peterrec.model.training.finetune.finetune import BASELINE_PREFIX
from peterrec.service.pages.page import Cell, Table, fragment


class Metrics(dict[str, float]):
    """A task's metrics by name, measured on ``users`` users.

    ``baseline_…`` are those of the best answer that ignores the history.
    """

    def __init__(self, values: dict[str, float], users: int | None = None) -> None:
        super().__init__(values)
        self.users = users

    def table(self) -> Table:
        """Each metric beside that of the best answer that ignores the history."""
        rows: list[tuple[Cell, ...]] = [
            (name, value, self.get(BASELINE_PREFIX + name))
            for name, value in self.items()
            if not name.startswith(BASELINE_PREFIX)
        ]
        caption = "Metrics" if self.users is None else f"Metrics of {self.users:,} users"
        return Table(caption, ("metric", "value", "no history"), rows)

    def _repr_html_(self) -> str:
        return fragment([self.table()])
