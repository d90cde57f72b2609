"""TOML: the scanner that finds the places agrees with the standard library's parser about everything else."""

from __future__ import annotations

import tomllib
from collections.abc import Callable
from datetime import date
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portier.config import Loaded
from portier.config.nodes import Mapping, plain_data
from portier.config.tomltext import parse

Problems = Callable[..., list[str]]

SAMPLE = """\
# all of TOML's ways
version = 1
"quoted key" = 'literal \\ text' # comment
a.b . "c d" = \"\"\"
  several
  "" lines \\
  \\u00e9 \"\"\"\"\"
dotted.x = '''it's'' '''
numbers = [0x10, 1_000, -3.5e1, inf, true, false] # mixed
dates = [1979-05-27T07:32:00Z, 1979-05-27 07:32:00, 1979-05-27, 07:32:00.5]
nested = [ [1, 2,], # comment ]
  ["]", '}'],
  [], {}, { x = 1, y.z = [ { } ] } ]

[table]
x = ""
[table.inner."k.e.y"]
x = 1
[[array]]
name = "one"
[array.sub]
y = 2
[[array.more]]
z = 3
[[array]]
name = "two"
\t[ spaced . out ]
  z=1
"""


def values(node: Any) -> Any:
    return plain_data(node, {})


def test_sample() -> None:
    """Everything that TOML can write is read as tomllib reads it."""
    node, problems = parse(SAMPLE, "x")
    assert not problems
    assert values(node) == tomllib.loads(SAMPLE)


def test_line_endings() -> None:
    """Lines that end as on Windows have the same places."""
    node, _ = parse("version = 1\r\n[groups.g]\r\nupstream = 'a'\r\n", "x")
    assert isinstance(node, Mapping)
    group = node.entries["groups"].node
    assert isinstance(group, Mapping)
    assert group.entries["g"].place == ("x", 2, 9)


KEYS = st.text(st.sampled_from("ab-_. \"'#é"), min_size=1, max_size=4)
SCALARS = st.one_of(
    st.booleans(),
    st.integers(-(2**63), 2**63 - 1),
    st.floats(allow_nan=False),
    st.dates(min_value=date(1000, 1, 1)),
    st.text(st.characters(min_codepoint=32, max_codepoint=0x2FF, exclude_characters="\x7f"), max_size=8),
)
TREES = st.recursive(
    SCALARS,
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(KEYS, inner, max_size=3)),
    max_leaves=12,
)


def quoted(text: str) -> str:
    return '"' + text.replace("\\", "\\\\").replace('"', '\\"') + '"'


def written(value: Any) -> str:
    """The value as inline TOML."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, str):
        return quoted(value)
    if isinstance(value, list):
        return "[" + " , ".join(map(written, value)) + "]"
    if isinstance(value, dict):
        return "{" + ", ".join(f"{quoted(key)} = {written(inner)}" for key, inner in value.items()) + "}"
    return str(value)


@given(st.dictionaries(KEYS, TREES, max_size=4))
def test_scanner_agrees(tree: dict[str, Any]) -> None:
    """Any tree comes back as it was written, in tables and inline alike."""
    text = "".join(f"{quoted(key)} = {written(value)}\n" for key, value in tree.items())
    text += "".join(
        f"[T.{quoted(key)}]\n"
        + "".join(f"{quoted(name)}={written(inner)} # x\n" for name, inner in value.items())
        for key, value in tree.items()
        if isinstance(value, dict)
    )
    node, problems = parse(text, "x")
    assert not problems
    assert values(node) == tomllib.loads(text)


TEXT = """\
version = 1
log = { level = "loud" }

[groups.g]
upstream = "eth0"
prefixes = [
    "upstream",
    "2001:db8::/129",
    { allow = "2001:db8::/32", answr = "always" },
]
isolate = 1
limits.pending = "12"
[groups.g.timers]
reachable = 30
forget = 1979-05-27
"""


def test_places(problems: Problems) -> None:
    """Mistakes in TOML are told at their places too."""
    assert problems(TEXT, suffix=".toml") == [
        "portier.toml:2:17: log.level: must be one of debug, info, warning, error",
        "portier.toml:8:5: groups.g.prefixes[1]: the length of 2001:db8::/129 must be from 0 to 128",
        'portier.toml:9:32: groups.g.prefixes[2].answr: unknown key; did you mean "answer"?',
        "portier.toml:11:11: groups.g.isolate: must be true or false",
        "portier.toml:12:18: groups.g.limits.pending: must be a whole number; remove the quotes",
        "portier.toml:14:13: groups.g.timers.reachable: must be a duration such as 500ms, 30s, 10min or 1h",
        "portier.toml:15:10: groups.g.timers.forget: must be a duration such as 500ms, 30s, 10min or 1h",
    ]


def test_booleans_for_words(loads: Callable[..., Loaded]) -> None:
    """TOML's own booleans are taken where off or on is meant."""
    text = "version = 1\n[groups.g]\nannounce = false\nrouter_advertisements = false\n"
    (group,) = loads(text + "advertisement.router = true\n", suffix=".toml").config.groups
    assert (group.announce.value, group.router_advertisements.value) == ("false", "off")
    assert group.advertisement.router.value == "on"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("version = 1\nlog = [", "portier.toml:2:8: not valid TOML: "),
        ("version = 1\nlog.level = warning\n", "portier.toml:2:13: not valid TOML: "),
        ("version = 1\nversion = 1\n", "portier.toml:2:12: not valid TOML: "),
        (f"version = {'9' * 5000}", "portier.toml: not valid TOML: "),
        ("a = " + "[" * 5000 + "]" * 5000, "portier.toml: nested too deeply"),
        ("a" + ".a" * 5000 + " = 1", "portier.toml:1:"),
        ("a = " + "[" * 20 + "]" * 20, "portier.toml:1:21: nested too deeply"),
    ],
)
def test_syntax(text: str, expected: str, problems: Problems) -> None:
    """What is no TOML, or more than a configuration can be, is told where the parser gave up."""
    (line,) = problems(text, suffix=".toml")
    assert line.startswith(expected)
