"""Every kind of mistake, each with the exact lines that tell of it: the cases are in problems.txt, a name,
a main file and what is said of it each ("..." at the end of a line stands for words of the library's own).
"""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

Problems = Callable[..., list[str]]

CASES = {
    name: (text, expected.split("\n"))
    for name, text, expected in re.findall(
        r"^==== (.*?)\n(.*?)\n----\n(.*?)\n(?=\n====|\Z)",
        Path(__file__).with_name("problems.txt").read_text(),
        re.DOTALL | re.MULTILINE,
    )
}


@pytest.mark.parametrize("name", CASES)
def test_problem(name: str, problems: Problems) -> None:
    """Each mistake is told at its place, with nothing else beside it."""
    text, expected = CASES[name]
    found = problems(text)
    for i, line in enumerate(expected):
        if line.endswith("..."):
            found[i] = found[i][: len(line) - 3] + "..."
    assert found == expected


def test_all_at_once(problems: Problems) -> None:
    """Mistakes of every kind, in several files, come out together, in the order of the files."""
    assert problems(
        """
        version: 1
        groups:
          a:
            upstream: lo
            isolate: maybe
            prefixes: [2001:db8::/129, {deny: upstream, answr: always}]
          b: {upstream: eth0, upstream: eth1}
        """,
        {"portier.d/x.yaml": "groups:\n  c: {mode: bridge}\nlog: {level: debug}\n"},
    ) == [
        "portier.d/x.yaml:2:13: groups.c.mode: must be one of route, relay",
        "portier.d/x.yaml:3:1: log: a drop-in holds version and groups only: log belongs into portier.yaml",
        "portier.yaml:5:15: groups.a.upstream: lo is no link: nothing can be proxied to or from it",
        "portier.yaml:6:14: groups.a.isolate: must be true or false",
        "portier.yaml:7:16: groups.a.prefixes[0]: the length of 2001:db8::/129 must be from 0 to 128",
        'portier.yaml:7:49: groups.a.prefixes[1].answr: unknown key; did you mean "answer"?',
        "portier.yaml:8:23: groups.b.upstream: the key stands here twice, first in line 8",
    ]


def test_one_mistake_is_told_once(problems: Problems) -> None:
    """What cannot be read makes no second problem out of what depends on it."""
    text = "upstream: [eth*], downstream: [1 2], prefixes: [upstream, {allow: upstream, host: x}]"
    assert len(problems(f"version: 1\ngroups: {{g: {{{text}}}}}")) == 3


def test_no_flood_of_problems(problems: Problems) -> None:
    """A list of nothing but mistakes is cut off at a number that nobody reads to the end."""
    prefixes = "x, " * 20_000
    assert len(problems(f"version: 1\ngroups: {{g: {{prefixes: [{prefixes}]}}}}")) == 10_000
