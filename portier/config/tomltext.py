"""TOML text to nodes: tomllib judges and decodes, a scanner of valid TOML finds the places.

tomllib keeps no positions, so the text that it has accepted is scanned once more for where each key and
value stands.  Because the text is known to be valid, the scanner need not check anything: it finds the
borders of tokens, and tomllib decodes them.  Errors of syntax have the place that tomllib gives, which is
where it gave up; everything after that has its exact place.
"""

from __future__ import annotations

import bisect
import re
import tomllib
from typing import Any

from portier.config.nodes import (
    MAX_DEPTH,
    MAX_NODES,
    Entry,
    Mapping,
    Node,
    Place,
    Scalar,
    Sequence,
    problem_at,
)
from portier.errors import Problem

_BLANK = re.compile(r"(?:[ \t\n]|#[^\n]*)*")
_SPACE = re.compile(r"[ \t]*")
_BARE_KEY = re.compile(r"[A-Za-z0-9_-]+")
_STRING = re.compile(
    r'"""(?:[^\\]|\\.)*?"{3,5}(?!")' r"|'''.*?'{3,5}(?!')" r'|"(?:[^"\\\n]|\\.)*"' r"|'[^'\n]*'", re.DOTALL
)
_OTHER = re.compile(r"[^\s,\]}#]+(?: [0-9]{2}:[^\s,\]}#]+)?")  # a date and a time may have a space between
_GAVE_UP = re.compile(r"(.*?) \(at (?:line ([0-9]+), column ([0-9]+)|end of document)\)", re.DOTALL)


def parse(text: str, file: str) -> tuple[Node | None, list[Problem]]:
    """The document in ``text``, None where it cannot be read, and the problem then (TOML has but one: its
    parser stops at the first).  ``file`` is the name that places bear."""
    text = text.replace("\r\n", "\n")
    try:
        tomllib.loads(text)
        return _Scanner(text, file).document(), []
    except RecursionError:
        return None, [Problem(file, 0, 0, "", "nested too deeply")]
    except _TooMuch as error:
        return None, [problem_at(error.place, (), "nested too deeply, or too many values")]
    except ValueError as error:  # also what int() says of a number with thousands of digits
        return None, [_syntax_problem(str(error), text, file)]


def _syntax_problem(message: str, text: str, file: str) -> Problem:
    found = _GAVE_UP.fullmatch(message)
    if found is None:
        return Problem(file, 0, 0, "", f"not valid TOML: {message}")
    if found[2]:
        line, column = int(found[2]), int(found[3])
    else:
        line, column = text.count("\n") + 1, len(text) - text.rfind("\n")
    return Problem(file, line, column, "", f"not valid TOML: {found[1]}")


class _TooMuch(Exception):  # noqa: N818  (told as a Problem at its place)
    """More levels or values than any configuration has."""

    def __init__(self, place: Place) -> None:
        self.place = place


class _Scanner:
    """One pass over valid TOML.  ``at`` is where it stands."""

    def __init__(self, text: str, file: str) -> None:
        self.text = text
        self.file = file
        self.at = 0
        self.count = 0
        self.starts = [0, *(match.end() for match in re.finditer("\n", text))]

    def document(self) -> Mapping:
        root = table = Mapping(Place(self.file, 1, 1))
        depth = 0
        while self.skip(_BLANK) < len(self.text):
            if not self.text.startswith("[", self.at):
                self.pair(table, depth)
                continue
            brackets = 2 if self.text.startswith("[[", self.at) else 1
            self.at += brackets
            parts = self.key()
            self.at += brackets
            depth = len(parts)
            table = self.descend(root, parts[:-1], 0)
            key, place = parts[-1]
            if brackets == 2:
                entry = table.entries.setdefault(key, Entry(place, Sequence(place)))
                table = Mapping(place)
                if isinstance(entry.node, Sequence):
                    entry.node.items.append(table)
            else:
                table = self.descend(table, parts[-1:], depth)
        return root

    def place(self) -> Place:
        line = bisect.bisect_right(self.starts, self.at)
        return Place(self.file, line, self.at - self.starts[line - 1] + 1)

    def skip(self, what: re.Pattern[str]) -> int:
        """Move past ``what``, and say where that is."""
        match = what.match(self.text, self.at)
        if match is not None:
            self.at = match.end()
        return self.at

    def token(self, what: re.Pattern[str]) -> str:
        start = self.at
        return self.text[start : self.skip(what)]

    def key(self) -> list[tuple[str, Place]]:
        """The parts of a key, ``a."b".c``, up to what follows it."""
        parts = []
        while True:
            self.skip(_SPACE)
            place = self.place()
            quoted = self.text[self.at] in "\"'"
            parts.append((_decode(self.token(_STRING)) if quoted else self.token(_BARE_KEY), place))
            self.skip(_SPACE)
            if not self.text.startswith(".", self.at):
                return parts
            self.at += 1

    def descend(self, table: Mapping, parts: list[tuple[str, Place]], depth: int) -> Mapping:
        """The table that the keys lead to, made where there is none yet; of an array of tables, the last."""
        for level, (key, place) in enumerate(parts, depth):
            if level >= MAX_DEPTH:
                raise _TooMuch(place)
            node = table.entries.setdefault(key, Entry(place, Mapping(place))).node
            if isinstance(node, Sequence):
                node = node.items[-1]
            if isinstance(node, Mapping):
                table = node
        return table

    def pair(self, table: Mapping, depth: int) -> None:
        parts = self.key()
        self.at += 1  # the equals sign
        self.skip(_SPACE)
        table = self.descend(table, parts[:-1], depth)
        key, place = parts[-1]
        table.entries[key] = Entry(place, self.value(depth + len(parts)))

    def value(self, depth: int) -> Node:
        place = self.place()
        self.count += 1
        if depth > MAX_DEPTH or self.count > MAX_NODES:
            raise _TooMuch(place)
        first = self.text[self.at]
        if first in "\"'":
            return Scalar(place, _decode(self.token(_STRING)), quoted=True)
        if first == "[":
            array = Sequence(place)
            self.at += 1
            while not self.ends("]"):
                array.items.append(self.value(depth + 1))
            return array
        if first == "{":
            table = Mapping(place)
            self.at += 1
            while not self.ends("}"):
                self.pair(table, depth)
            return table
        text = self.token(_OTHER)
        return Scalar(place, text, quoted=False, typed=(_decode(text),))

    def ends(self, bracket: str) -> bool:
        """Move past a comma, or past the closing bracket: say whether it was that."""
        if self.text[self.skip(_BLANK)] == ",":
            self.at += 1
        if self.text[self.skip(_BLANK)] == bracket:
            self.at += 1
            return True
        return False


def _decode(token: str) -> Any:
    if token[0] in "\"'" and "\\" not in token and token[:3] not in ('"""', "'''"):
        return token[1:-1]
    return tomllib.loads(f"it = {token}")["it"]
