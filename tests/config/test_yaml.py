"""YAML as people write it: what it cannot carry unquoted is understood, or the error says to quote it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from hypothesis import given
from hypothesis import strategies as st

from portier.config import Loaded
from portier.config.nodes import Mapping, Scalar, plain_data
from portier.config.yamltext import STAND_INS, parse
from portier.core.model import Announce, Group, RouterAdvertisements, Switch

Loads = Callable[..., Loaded]
Problems = Callable[..., list[str]]


def the_group(loaded: Loaded) -> Group:
    (group,) = loaded.config.groups
    return group


@pytest.mark.parametrize(
    "written",
    [
        "[*]",
        "[ * , eth0]",
        "\n      - *",
        "[eth[0-9]*]",
        "[eth[0-9][0-9], eth1]",
        "[eth[!0-9], *[0-9]]",
        "[*.100, a?]",
        "\n      - eth[0-9]*   # all of them",
        "[eth0, !lxcbr0]",
        "\n      - virbr0\n      - !lxc*\n      - !eth[0-9]",
        "[no, 1:30, 0123, 1e3, 0x1f, on]",
        "\n      - off\n      - 12_0\n      - 2001-01-01\n      - .inf\n      - =",
        "eth[0-9]*",
        "*",
    ],
)
def test_names_mean_what_they_look_like(written: str, loads: Loads) -> None:
    """Unquoted names, globs and exclusions are read as the same ones quoted."""
    flat = written.replace("[", " [", 1).strip()
    items = (
        [line.split("#")[0].strip()[2:].strip() for line in written.strip().splitlines()]
        if written.startswith("\n")
        else [item.strip() for item in flat[1:-1].split(",")]
        if flat.startswith("[")
        else [written]
    )
    group = the_group(loads(f"version: 1\ngroups:\n  g:\n    downstream: {written}\n"))
    assert group.downstream == tuple(items)


@pytest.mark.parametrize(
    "written",
    [
        "[2001:db8:7::]",
        "\n      - 2001:db8:7::",
        "\n      - 2001:db8:7::   # a whole host",
        "\n      - allow: 2001:db8:7::",
        "[{allow: 2001:db8:7::}]",
        "[{allow: 2001:db8:7::, answer: resolve}]",
        "\n      - '2001:db8:7:': null",
        "\n      - {'2001:db8:7:': ~}",
        "\n      - allow: {'2001:db8:7:': null}",
        '["2001:db8:7::"]',
        "\n      - &a 2001:db8:7::",
    ],
)
def test_addresses_that_end_in_colons(written: str, loads: Loads) -> None:
    """`2001:db8:7::` is an address wherever it stands, however it was quoted or rendered."""
    group = the_group(loads(f"version: 1\ngroups:\n  g:\n    upstream: eth0\n    prefixes: {written}\n"))
    assert [str(rule.prefix) for rule in group.rules] == ["2001:db8:7::/128"]


def test_all_zeros_prefix(loads: Loads) -> None:
    """`::/0` and a pattern that ends in colons need no quotes."""
    group = the_group(
        loads(
            """
            version: 1
            groups:
              g:
                upstream: eth0
                prefixes:
                  - ::/0
                  - allow: 2001:db8::/32
                    host: ::53/::ffff:0:0:ff
                    askers: [fe80::/10, 2001:db8::]
            """
        )
    )
    first, second = group.rules
    assert str(first.prefix) == "::/0"
    assert second.host == (0x53, 0xFFFF_0000_0000_00FF)
    assert [str(asker) for asker in second.askers] == ["fe80::/10", "2001:db8::/128"]


def test_group_names_are_text(loads: Loads) -> None:
    """Names of groups are what is written, not what YAML makes of it."""
    config = loads(
        "version: 1\ngroups: {on: {}, 1e3: {}, 0123: {}, null: {}, ~: {}}".replace(", ~: {}", "")
    ).config
    assert [group.name for group in config.groups] == ["on", "1e3", "0123", "null"]


@pytest.mark.parametrize("word", ["true", "True", "yes", "on", "ON"])
def test_booleans(word: str, loads: Loads) -> None:
    """All spellings of YAML 1.1 are booleans where a boolean belongs."""
    assert the_group(loads(f"version: 1\ngroups: {{g: {{isolate: {word}}}}}")).isolate is True
    assert loads(f"version: 1\nwatch: {word}").config.watch is True


@pytest.mark.parametrize("word", ["off", "false", "no", "False", "'off'"])
def test_off(word: str, loads: Loads) -> None:
    """`off` may have become a boolean on its way through a tool."""
    text = (
        f"{{router_advertisements: {word}, announce: no, advertisement: {{router: {word}, override: yes}}}}"
    )
    group = the_group(loads(f"version: 1\ngroups: {{g: {text}}}"))
    assert group.router_advertisements is RouterAdvertisements.OFF
    assert group.announce is Announce.OFF
    assert (group.advertisement.router, group.advertisement.override) == (Switch.OFF, Switch.ON)


def test_anchors_and_merge_keys(loads: Loads) -> None:
    """Anchors, aliases and merge keys work; the mapping's own keys win, then the first merged."""
    config = loads(
        """
        version: 1
        defaults:
          limits: &small {neighbors: 10, per_port: 5}
        groups:
          a: &a
            upstream: &up eth0
            limits: {<<: *small, per_port: 6}
          b:
            <<: [{isolate: yes}, *a]
            upstream: eth1
            isolate: no
        """
    ).config
    a, b = config.groups
    assert a.upstream == ("eth0",)
    assert (a.limits.neighbors, a.limits.per_port) == (10, 6)
    assert b.upstream == ("eth1",)
    assert b.isolate is False
    assert b.limits == a.limits


LAUGHS = "version: 1\ngroups:\n  g:\n    downstream:\n" + "".join(
    f"      - &a{i} [{', '.join([f'*a{i - 1}'] * 9) if i else 'x'}]\n" for i in range(12)
)

SYNTAX = {
    "tab": ("version: 1\ngroups:\n\tg: {}", "portier.yaml:3:1: ", "indent with spaces, not with tabs"),
    "alias to nothing": (
        "version: 1\ngroups: {g: {downstream: *eth}}",
        "portier.yaml:2:26: groups.g.downstream: ",
        '*eth refers to nothing: a name or glob must be quoted, "*eth"',
    ),
    "glob that looks like an alias": (
        "version: 1\ngroups: {g: {downstream: [*eth*]}}",
        "portier.yaml:2:",
        "may have to be quoted",
    ),
    "set at the start": (
        "version: 1\ngroups:\n  g:\n    downstream:\n      - [ev]th0",
        "portier.yaml:5:",
        "quoted",
    ),
    "port of an IPv6 address": ("version: 1\nmetrics:\n  listen: [::1]:9846", "portier.yaml:3:", "quoted"),
    "percent": ("version: 1\ngroups: {g: {downstream: %d}}", "portier.yaml:2:26: ", "quoted"),
    "colon in a value": (
        "version: 1\nlog: {level: info}\ncontrol: group: adm",
        "portier.yaml:3:15: ",
        "not valid YAML",
    ),
    "unclosed": ("version: 1\ngroups: {g: {\n", "portier.yaml:3:1: ", "flow node"),
    "unclosed quote": ("version: 1\nlog: {level: 'info}\n", "portier.yaml:3:1: ", "quoted scalar"),
    "template": (
        "version: 1\ngroups:\n  g:\n    upstream: {{ uplink }}",
        "portier.yaml:4:16: groups.g.upstream: ",
        "was a template not rendered?",
    ),
    "template block": ("version: 1\n{% if x %}\n", "portier.yaml:2:2: ", "was a template not rendered?"),
    "tag": ("version: 1\nwatch: !!bool yes", "portier.yaml:2:8: watch: ", "tags are not supported"),
    "object": (
        "version: !!python/object:os.system x",
        "portier.yaml:1:10: version: ",
        "tags are not supported",
    ),
    "two documents": ("version: 1\n---\nversion: 1\n", "portier.yaml:2:1: ", "one document"),
    "duplicate": (
        "version: 1\nwatch: yes\n'watch': no",
        "portier.yaml:3:1: watch: ",
        "twice, first in line 2",
    ),
    "alias to itself": (
        "version: 1\ngroups: &g {g: *g}",
        "portier.yaml:2:16: groups.g: ",
        "refers to nothing",
    ),
    "merge of a word": (
        "version: 1\nlog: {<<: info}",
        "portier.yaml:2:11: log",
        "only mappings can be merged",
    ),
    "deep": ("version: 1\ngroups: " + "[" * 50_000, "portier.yaml:2:24: ", "nested too deeply"),
    "laughs": (LAUGHS, "portier.yaml:", "too many values"),
    "control character": ("version: 1\nlog: \x07", "portier.yaml:2:6: ", "U+0007 is not allowed"),
    "list as a key": ("version: 1\n? [a]\n: b", "portier.yaml:2:3: ", "a key must be plain text"),
}


@pytest.mark.parametrize("name", SYNTAX)
def test_syntax(name: str, problems: Problems) -> None:
    """What is no YAML of ours is told at its place, in words that help."""
    text, place, words = SYNTAX[name]
    found = problems(text)
    assert any(line.startswith(place) and words in line for line in found), found


def test_null_sections_are_empty(loads: Loads) -> None:
    """A section with everything in it commented out is an empty one."""
    config = loads("version: 1\ndefaults:\ngroups:\n  g:\n    limits:\nlog:\nmetrics:\n  listen:\n").config
    assert config.groups == (Group(name="g"),)


@given(st.text(st.sampled_from("*!&[]{}:,# '\"\\-?|>%@`ab1\n"), max_size=40))
def test_quoted_text_is_kept(text: str) -> None:
    """Whatever stands in quotes comes out as it went in, whatever it looks like."""
    quoted = text.replace("'", "''").replace("\n", "")
    node, problems = parse(f"a: '{quoted}'", "x")
    assert not problems
    assert isinstance(node, Mapping)
    value = node.entries["a"].node
    assert isinstance(value, Scalar)
    assert value.text == text.replace("\n", "")
    assert plain_data(value, {"type": "string"}) == value.text


def test_stand_ins_are_not_accepted(problems: Problems) -> None:
    """The characters that the reader uses for itself cannot be smuggled in."""
    for stand_in in STAND_INS.values():
        (line,) = problems(f"version: 1\nlog: {stand_in}")
        assert line == f"portier.yaml:2:6: the character U+{ord(stand_in):04X} is not allowed"
