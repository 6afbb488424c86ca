"""Names and values under a title: a table on a terminal, plain lines elsewhere."""

import sys
from collections.abc import Iterable


def show_sheet(title: str, rows: Iterable[tuple[str, str]]) -> None:
    """Print them."""
    if not sys.stdout.isatty():
        print(title)
        for name, value in rows:
            print(f"  {name}: {value}")
        return
    from rich.box import SIMPLE
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(box=SIMPLE, title=Text(title), title_justify="left", show_header=False)
    for name, value in rows:
        table.add_row(Text(name), Text(value))
    Console().print(table)
