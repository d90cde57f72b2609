"""Whatever a file holds, the outcome is a Config or located problems, never anything else."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from portier.config import load
from portier.errors import ConfigError

EXAMPLES = [path.read_bytes() for path in sorted((Path(__file__).parents[2] / "examples").iterdir())]
YAML_BITS = st.sampled_from(
    (
        *(
            "version: 1",
            "groups",
            "defaults",
            "g",
            "upstream",
            "downstream",
            "prefixes",
            "allow",
            "deny",
            "host",
        ),
        *(
            "routes",
            "limits",
            "timers",
            "reachable",
            "30s",
            "advertisement",
            "link_layer",
            "02:00:00:00:00:01",
        ),
        *(
            ":",
            ": ",
            "- ",
            "\n",
            "\n  ",
            "\n    ",
            "\n      ",
            "{",
            "}",
            "[",
            "]",
            ", ",
            "'",
            '"',
            "#",
            "|",
            ">",
        ),
        *(
            "*",
            "!",
            "&a ",
            "*a",
            "<<",
            "?",
            "%",
            "@",
            "\t",
            "---",
            "2001:db8::",
            "::",
            "/64",
            "fe80::/10",
            "~",
        ),
        *(
            "true",
            "off",
            "null",
            "1",
            "-1",
            "1e3",
            "9" * 25,
            "192.0.2.1",
            "\x85",
            "é",
            "\u2028",
            "::1/::1",
            "lo",
        ),
        *("neighbors", "table", "isolate", "askers", "answer", "always", "metrics", "listen", "log", "level"),
    )
)
TOML_BITS = st.sampled_from(
    (
        *(
            "version = 1\n",
            "[groups.g]\n",
            "[[groups]]\n",
            "groups",
            "upstream",
            "prefixes",
            "=",
            " = ",
            ".",
            ",",
        ),
        *(
            "[",
            "]",
            "[[",
            "]]",
            "{",
            "}",
            "'",
            '"',
            "'''",
            '"""',
            "\\",
            "#",
            "\n",
            "\r\n",
            "1",
            "-1.5",
            "inf",
        ),
        *("true", "1979-05-27", " 07:32:00", "é", "allow", "timers", "reachable", "30s", "upstream = 'a'\n"),
    )
)


def judge(content: bytes, suffix: str) -> None:
    """Load the content; every problem must be a line that stands in the file."""
    with tempfile.TemporaryDirectory() as directory:
        main = Path(directory) / f"portier{suffix}"
        main.write_bytes(content)
        lines = content.count(b"\n") + content.count(b"\r") + 1 + 2 * content.count(b"\xc2\x85")
        lines += content.count(b"\xe2\x80")
        try:
            load(main)
        except ConfigError as error:
            for problem in error.problems:
                assert problem.file == str(main)
                assert 0 <= problem.line <= lines + 1
                assert problem.message
                assert "\n" not in str(problem)


SUFFIXES = pytest.mark.parametrize("suffix", [".yaml", ".toml"])


@SUFFIXES
@given(content=st.binary(max_size=200))
@example(content=b"? \n")
@example(content=b"- - - -")
@example(content=b'version: 1\ngroups: {g: {downstream: ["a\\nb"]}}')
def test_bytes(suffix: str, content: bytes) -> None:
    """Random bytes."""
    judge(content, suffix)


@SUFFIXES
@given(content=st.text(max_size=200))
def test_text(suffix: str, content: str) -> None:
    """Random text."""
    judge(content.encode("utf-8", "surrogatepass"), suffix)


@given(bits=st.lists(YAML_BITS, max_size=30))
def test_yaml_bits(bits: list[str]) -> None:
    """What YAML and our keys are made of, in any order."""
    judge("".join(bits).encode(), ".yaml")


@given(bits=st.lists(YAML_BITS, max_size=20))
def test_yaml_bits_in_a_group(bits: list[str]) -> None:
    """The same, where a group's settings belong."""
    judge(b"version: 1\ngroups:\n  g:\n    " + "".join(bits).encode(), ".yaml")


@given(bits=st.lists(TOML_BITS, max_size=30))
def test_toml_bits(bits: list[str]) -> None:
    """What TOML and our keys are made of, in any order."""
    judge("".join(bits).encode(), ".toml")


@SUFFIXES
@settings(max_examples=300)
@given(
    content=st.sampled_from(EXAMPLES),
    cuts=st.lists(
        st.tuples(st.floats(0, 1), st.integers(0, 12), st.one_of(YAML_BITS, TOML_BITS)), max_size=4
    ),
)
def test_mutated_examples(suffix: str, content: bytes, cuts: list[tuple[float, int, str]]) -> None:
    """Examples with pieces cut out and others put in."""
    for where, length, bit in cuts:
        at = int(where * len(content))
        content = content[:at] + bit.encode() + content[at + length :]
    judge(content, suffix)
