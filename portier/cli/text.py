"""Text for people: tables, wrapped lines, colours, spans of time.  Nothing here prints."""

from __future__ import annotations

import os
import shutil
import sys
import textwrap
from collections.abc import Iterable, Sequence
from typing import Any, Final, NamedTuple

from portier.errors import printable

_UNITS = (("d", 86400), ("h", 3600), ("min", 60), ("s", 1))
_LAST: Final = 20  # columns that the last cell of a row has at least
_UNLIMITED: Final = 10_000  # columns or lines, where nothing has to fit

BAD, DOUBTFUL, GOOD, FAINT, BOLD, PLAIN = "31", "33", "32", "2", "1", ""  # ECMA-48 section 8.3.117


class Line(NamedTuple):
    """A line of a page, and how it is to look: BAD, DOUBTFUL, GOOD, FAINT, BOLD or PLAIN."""

    text: str
    style: str = PLAIN

    def painted(self, *, colours: bool) -> str:
        """As it goes to a terminal."""
        return f"\x1b[{self.style}m{self.text}\x1b[0m" if colours and self.style else self.text


def colours() -> bool:
    """Whether what is printed may have colours: on a terminal that has them, unless NO_COLOR is set."""
    return sys.stdout.isatty() and not os.environ.get("NO_COLOR") and os.environ.get("TERM") != "dumb"


def clean(value: Any) -> Any:
    """The same, `printable` in each string, in whatever lists and dictionaries it stands."""
    if isinstance(value, str):
        return printable(value)
    if isinstance(value, dict):
        return {clean(name): clean(inner) for name, inner in value.items()}
    return [clean(inner) for inner in value] if isinstance(value, list) else value


def width() -> int:
    """Columns to fit into: those of the terminal; without one, no limit worth the name."""
    if "COLUMNS" in os.environ or sys.stdout.isatty():
        return max(40, shutil.get_terminal_size().columns)
    return _UNLIMITED


def height() -> int:
    """Lines to fit into: those of the terminal, but one for the prompt; without one, no limit."""
    return max(4, shutil.get_terminal_size().lines - 1) if sys.stdout.isatty() else _UNLIMITED


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
    return f"{count:,} {one if count == 1 else many or one + 's'}"


def wrap(line: str, columns: int, *, indent: int = 0, hang: int = 2, split: bool = False) -> list[str]:
    """``line`` in lines of at most ``columns``, indented, what follows the first hanging deeper.  A word that
    is longer stays whole, to be copied, unless it is to be ``split``."""
    first, rest = " " * indent, " " * (indent + hang)
    return textwrap.wrap(
        line,
        max(columns, indent + hang + 10),
        initial_indent=first,
        subsequent_indent=rest,
        break_long_words=split,
        break_on_hyphens=False,
    ) or [first.rstrip()]


def table(
    rows: Iterable[Sequence[str]], columns: int, *, indent: int = 0, spare: Sequence[str] = ()
) -> list[str]:
    """Rows as aligned columns, the first one their names; empty cells show as ``-``; empty columns are left
    out.  Where it does not fit, the columns named in ``spare`` go, one after the other, and then the last
    cell of a row goes on below itself."""
    return [line for lines in grid(rows, columns, indent=indent, spare=spare) for line in lines]


def grid(
    rows: Iterable[Sequence[str]], columns: int, *, indent: int = 0, spare: Sequence[str] = ()
) -> list[list[str]]:
    """The same, the lines of each row by themselves."""
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
    for name in spare:
        if indent + sum(size + 2 for size in widths[:-1]) + min(widths[-1], _LAST) <= columns:
            break
        if name in cells[0]:
            place = cells[0].index(name)
            cells = [row[:place] + row[place + 1 :] for row in cells]
            del widths[place]
    before = indent + sum(size + 2 for size in widths[:-1])
    lines: list[list[str]] = []
    for row in cells:
        start = " " * indent + "".join(
            f"{cell:<{size}}  " for cell, size in zip(row[:-1], widths, strict=False)
        )
        room = max(columns - before, _LAST)
        last = textwrap.wrap(row[-1], room, break_long_words=False, break_on_hyphens=False) or [""]
        lines.append([(start + last[0]).rstrip(), *(" " * before + more for more in last[1:])])
    return lines


def count(number: int) -> str:
    """A number that can be read at a glance: ``12,034``."""
    return f"{number:,}"
