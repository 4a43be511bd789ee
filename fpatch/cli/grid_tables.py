"""The table of the cells of a grid."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from rich.table import Table

from fpatch.cli.tables import percent

if TYPE_CHECKING:
    from fpatch.evaluation.grid import Cell


def cells_table(cells: Sequence["Cell"], num_rows: int = 12) -> Table:
    """Make a table of grid cells, weakest success first; the middle of a long list is omitted.

    Without a patch it is the share that is right, and the lowest comes first.

    Example:
        >>> import numpy as np
        >>> from fpatch.cli.grid_tables import cells_table
        >>> from fpatch.evaluation.grid import cells_of
        >>> table = {"image_id": np.arange(4), "found/none": np.array([True, True, False, True])}
        >>> cells = cells_of(table | {"grid/light/stops": np.array([0.0, 0.0, 1.0, 1.0])})
        >>> [list(column.cells) for column in cells_table(cells).columns]
        [['1', '0'], [' 50.0', '100.0'], ['2', '2']]
    """
    from fpatch.evaluation.grid import by_rate

    shown = sorted(cells, key=by_rate)
    attacked = bool(shown[0].success.rates)
    title = "success % by cell, weakest first" if attacked else "right % by cell, lowest first"
    table = Table(title=title, title_justify="left", title_style="bold")
    for path in shown[0].values:
        table.add_column(path, justify="right")
    headings = ("trained patch", "noise", "found without") if attacked else ("right", "rows")
    for heading in headings:
        table.add_column(heading, justify="right", no_wrap=True)
    half = num_rows // 2
    for i, cell in enumerate(shown):
        if len(shown) > num_rows and half <= i < len(shown) - half:
            if i == half:
                table.add_row(*("..." for _ in table.columns))
            continue
        rates, clean = cell.success.rates, cell.success.clean
        values = (f"{value:g}" for value in cell.values.values())
        if attacked:
            counted = f"{rates['patch'].count} of {clean.count}"
            table.add_row(*values, percent(rates["patch"]), percent(rates["noise"]), counted)
        else:
            table.add_row(*values, percent(clean), str(clean.count))
    bad = [cell.success.not_finite for cell in shown if cell.success.not_finite]
    asked = f"success: {shown[0].success.question}" if attacked else "right: without a patch"
    sentences = [f"{asked}; brackets are 95 % intervals over images"]
    if bad:
        condition, entry = next(iter(bad[0].items()))
        sentences.insert(
            0,
            f"{len(bad)} cells have rows that are not finite, and no rate; the first: condition "
            f"{condition!r}, {entry.count} of {entry.total} rows, first {entry.first}",
        )
    table.caption, table.caption_justify = "\n".join(sentences), "left"
    return table
