"""Text for people: tables, wrapped lines, spans of time.  Pure functions; nothing here prints."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))


def width() -> int:
    """Columns to fit into: those of the terminal; without one, no limit worth the name."""
    if "COLUMNS" in os.environ or sys.stdout.isatty():
        return max(40, shutil.get_terminal_size().columns)
    return 10_000


def span(seconds: float | None) -> str:
    """A length of time in its two largest units: ``3 h 12 min``, ``40 s``, ``0.3 s``; ``-`` for None."""
    if seconds is None:
        return "-"
    if seconds < 1:
        return f"{seconds:.1f} s"
    left, said = int(seconds), []
    for name, size in _UNITS:
        count, left = divmod(left, size)
        if count:
            said.append(f"{count} {name}")
        elif said:
            break  # 1 d 4 s says no more than 1 d
    return " ".join(said[:2])


def plural(count: int, one: str, many: str = "") -> str:
    """``1 rule``, ``2 rules``."""
    return f"{count} {one if count == 1 else many or one + 's'}"


def wrap(line: str, columns: int, *, indent: int = 0, hang: int = 2) -> list[str]:
    """``line`` in lines of at most ``columns``, indented, what follows the first hanging deeper."""
    first, rest = " " * indent, " " * (indent + hang)
    return textwrap.wrap(
        line,
        max(columns, indent + hang + 10),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=False,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def table(rows: Iterable[Sequence[str]], columns: int, *, indent: int = 0) -> list[str]:
    """Rows as aligned columns; empty cells show as ``-``; empty columns are left out.  Where it does not
    fit, the last cell of a row goes on below itself."""
    cells = [[cell or "-" for cell in row] for row in rows]
    if not cells:
        return []
    kept = [
        column
        for column in range(len(cells[0]))
        if any(row[column] != "-" for row in cells[1:]) or len(cells) == 1
    ]
    cells = [[row[column] for column in kept] for row in cells]
    widths = [max(len(row[column]) for row in cells) for column in range(len(kept))]
    before = indent + sum(size + 2 for size in widths[:-1])
    lines: list[str] = []
    for row in cells:
        start = " " * indent + "".join(
            f"{cell:<{size}}  " for cell, size in zip(row[:-1], widths, strict=False)
        )
        room = max(columns - before, 20)
        last = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False) or [""]
        lines.append((start + last[0]).rstrip())
        lines += [" " * before + more for more in last[1:]]
    return lines
