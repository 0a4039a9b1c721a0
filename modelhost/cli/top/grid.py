"""The table of models as a widget: only what has changed is drawn again, and the cursor stays on its model."""

from __future__ import annotations

from rich.text import Text
from textual.coordinate import Coordinate
from textual.widgets import DataTable

from modelhost.cli.segments import Role, Segment
from modelhost.cli.top.models import Row, Table


class ModelGrid(DataTable[Text]):
    """Shows a table, whose cells are as wide as their columns. The view's thread."""

    def __init__(self, *, id: str) -> None:
        super().__init__(id=id, cursor_type="row", cell_padding=0)
        self._table: Table | None = None
        self._to_mark: str | None = None
        self._looks: dict[Role, str] = {}

    @property
    def marked(self) -> Row | None:
        """The model that the cursor is on; None where there is none."""
        rows = () if self._table is None else self._table.rows
        return rows[self.cursor_row] if 0 <= self.cursor_row < len(rows) else None

    def mark(self, name: str) -> None:
        """Puts the cursor on a model, as soon as it is there."""
        self._to_mark = name
        rows = () if self._table is None else self._table.rows
        for at, row in enumerate(rows):
            if row.name == name:
                self.move_cursor(row=at)
                self._to_mark = None
                return

    def show(self, table: Table, looks: dict[Role, str]) -> None:
        """Changes the cells that have changed; makes the table anew where rows, columns or looks have."""
        before, marked, at = self._table, self.marked, self.cursor_row
        is_new = before is None or before.heads != table.heads or looks is not self._looks
        self._table, self._looks = table, looks
        if is_new:
            self.clear(columns=True)
            for number, head in enumerate(table.heads):
                label = self._cell(head, number)
                self.add_column(label, width=label.cell_len, key=head.text.strip().lower())
        if is_new or before is None or [row.key for row in before.rows] != [row.key for row in table.rows]:
            self._fill(table)
            keys = [row.key for row in table.rows]
            stays = marked is not None and marked.key in keys
            self.move_cursor(row=keys.index(marked.key) if marked is not None and stays else min(at, len(keys) - 1))
            if self._to_mark is not None:
                self.mark(self._to_mark)
            return
        for row, (old, new) in enumerate(zip(before.rows, table.rows, strict=True)):
            for column, (was, cell) in enumerate(zip(old.cells, new.cells, strict=True)):
                if was != cell:
                    self.update_cell_at(Coordinate(row, column), self._cell(cell, column))

    def _fill(self, table: Table) -> None:
        self.clear()
        for row in table.rows:
            self.add_row(*(self._cell(cell, column) for column, cell in enumerate(row.cells)), key=row.key)

    def _cell(self, cell: Segment, column: int) -> Text:
        gap = self._table.gap if column and self._table is not None else ""
        return Text(gap + cell.text, style=self._looks[cell.role], no_wrap=True)
