"""The configurations of other proxies: what becomes of each shape, and that garbage is told in words."""

from __future__ import annotations

import ipaddress
import os
import random
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from portier.config import load
from portier.config.peers import PEERS, convert
from portier.config.peers.expressions import Addresses, Expressions, NoMaskError, both
from portier.core.model import Config
from portier.errors import ConfigError

GOLDEN = Path(__file__).parent.parent / "golden" / "import"
CASES = sorted(GOLDEN.glob("*/*.conf"))
SHAPES = [case for case in CASES if not case.name.startswith("refused-")]


def converted(case: Path) -> tuple[str | None, str]:
    """What a case becomes: the configuration, None where it is refused, and what is said of it."""
    try:
        imported = convert(case.parent.name, case.read_text(encoding="utf-8"), case.name)
    except ConfigError as error:
        return None, f"{error}\n"
    return imported.text, "".join(f"{remark}\n" for remark in imported.remarks)


def checked(text: str) -> Config:
    """The configuration that a text is; raises ConfigError."""
    with tempfile.TemporaryDirectory() as directory:
        file = Path(directory) / "portier.yaml"
        file.write_text(text, encoding="utf-8")
        return load(file).config


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case.parent.name}-{case.stem}")
def test_golden(case: Path) -> None:
    """Each case becomes what it became before, to the letter."""
    text, remarks = converted(case)
    expected, said = case.with_suffix(".yaml"), case.with_suffix(".remarks")
    if os.environ.get("PORTIER_GOLDEN") == "write":
        said.write_text(remarks, encoding="utf-8")
        if text is not None:
            expected.write_text(text, encoding="utf-8")
    assert (text is None) == case.name.startswith("refused-"), remarks
    assert remarks == said.read_text(encoding="utf-8")
    if text is not None:
        assert text == expected.read_text(encoding="utf-8")


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: f"{case.parent.name}-{case.stem}")
def test_each_shape_becomes_a_valid_configuration(case: Path) -> None:
    """`portier check` accepts what is made of it; every remark has its line, and stands in the text too."""
    imported = convert(case.parent.name, case.read_text(encoding="utf-8"), case.name)
    assert checked(imported.text).groups
    flat = " ".join(re.sub(r"^\s*#\s*", "", line) for line in imported.text.splitlines())
    for remark in imported.remarks:
        assert remark.line
        assert f"line {remark.line}: {remark.message}" in flat


@pytest.mark.parametrize(
    ("peer", "said", "labels"),
    [
        ("ndppd", "proxy venet0:0 {\n rule 2001:db8::/64 {\n  iface vmbr0:1\n }\n}\n", 2),
        ("npd6", "prefix=2001:db8:0:0:\ninterface=venet0:0\n", 1),
        ("pndpd", "proxy {\n ext-iface venet0:0\n int-iface vmbr0:1\n}\n", 2),
    ],
)
def test_labels_of_addresses_stand_for_their_interface(peer: str, said: str, labels: int) -> None:
    """The kernel takes `venet0:0` for venet0 where a peer asks it; here it is named so, and that is said."""
    text = convert(peer, said, "x.conf").text
    (group,) = checked(text).groups
    assert group.upstream == ("venet0",)
    assert group.downstream in ((), ("vmbr0",))
    assert text.count("is a label of addresses") == labels


def test_there_are_twenty_shapes_of_the_installed_peers() -> None:
    """Of ndppd and npd6 together there are at least twenty."""
    assert len([case for case in SHAPES if case.parent.name in ("ndppd", "npd6")]) >= 20


@pytest.mark.parametrize(
    ("peer", "keys"),
    [
        (
            "ndppd",
            """route-ttl address-ttl proxy router timeout ttl deadtime autowire keepalive retries promiscuous
            rule static iface auto autovia outgoing valid-ttl invalid-ttl renew retrans-limit retrans-time
            use-kernel promisc target rewrite table""",
        ),
        (
            "npd6",
            """prefix interface listtype addrlist exprlist listlogging collectTargets linkOption ignoreLocal
            routerNA maxHops pollErrorLimit ralogging""",
        ),
        ("pndpd", "proxy responder ext-iface int-iface autosense filter monitor-changes iface debug"),
    ],
)
def test_every_option_is_in_some_shape(peer: str, keys: str) -> None:
    """Each option that a peer knows is imported at least once, and never taken for one that it ignores."""
    shapes = [case for case in SHAPES if case.parent.name == peer]
    text = "\n".join(case.read_text(encoding="utf-8") for case in shapes)
    for key in keys.split():
        assert re.search(rf"(?m)(^|[{{;]|\s){re.escape(key)}\b", text), key


# -- expressions ---------------------------------------------------------------------------------------


def matches(addresses: Addresses, address: int) -> bool:
    """Whether an address is in the set; it must not be there twice."""
    found = [pattern for pattern in addresses if address & pattern.mask == pattern.value]
    assert len(found) <= 1
    return bool(found)


@pytest.mark.parametrize(
    ("expression", "inside", "outside"),
    [
        ("HOST==5", ["::5"], ["::4", "::1:5"]),
        ("(HOST&0xffff)==0x10", ["::10", "::7:10"], ["::11"]),
        ("HOST&1", ["::1", "::3"], ["::2"]),
        ("!(HOST&1)", ["::2"], ["::1"]),
        ("~HOST&1", ["::2"], ["::1"]),
        ("(HOST>>8)==1", ["::100", "::1ff"], ["::200"]),
        ("(HOST%16)==3", ["::13"], ["::14"]),
        ("(HOST/256)!=0", ["::100", "::1:0"], ["::ff"]),
        ("(HOST^5)==0", ["::5"], ["::4"]),
        ("(HOST<5)||(HOST>=0xfff0)", ["::4", "::fff0"], ["::5", "::ffef"]),
        ("(PREFIX==0x20010db800070001)&&(HOST<=0xff)", ["2001:db8:7:1::ff"], ["2001:db8:7:2::ff", "::1"]),
        ("A=HOST&0xff;B=0x10;(A>=B)&&(A<0x20)", ["::10", "::1f", "::51f"], ["::20", "::f"]),
        ("(HOST&mask(7,0))==7", ["::7", "::107"], ["::8"]),
        ("HOST>5&&HOST<9", ["::1", "::ffff"], []),  # ((HOST>5)&&HOST)<9, as npd6 reads it
        ("(HOST==1)|(HOST==2)", ["::1", "::2"], ["::3"]),
        ("HOST==010", ["::8"], ["::10", "::a"]),
        ("5<HOST", ["::6"], ["::5"]),
        ("1;0", [], ["::", "::1"]),
        ("", [], ["::1"]),
    ],
)
def test_expressions(expression: str, inside: list[str], outside: list[str]) -> None:
    """An expression as masks matches what npd6 computes it to be not 0 for."""
    addresses = Expressions().addresses(expression)
    for address in inside:
        assert matches(addresses, int(ipaddress.IPv6Address(address))), address
    for address in outside:
        assert not matches(addresses, int(ipaddress.IPv6Address(address))), address


@pytest.mark.parametrize(
    "expression",
    [
        *("HOST+1", "HOST*3==6", "HOST%3", "host==1", "HOST==", "(HOST", "1/0", "HOST==PREFIX", "HOST<<64"),
        *("(HOST==1)+1", "HOST_A", "1 2", "09", "abs(HOST)", "mask(1)", "(" * 99, "~" * 99 + "1", "-HOST"),
        "(HOST*2)==HOST",
    ],
)
def test_what_is_no_mask_is_refused(expression: str) -> None:
    """What cannot be said in masks is refused in words."""
    with pytest.raises(NoMaskError, match=r"\w+"):
        Expressions().addresses(expression)


@given(
    st.lists(
        st.tuples(
            st.sampled_from(["<", "<=", ">", ">=", "==", "!="]), st.integers(0, 1000), st.integers(0, 1023)
        ),
        min_size=1,
        max_size=3,
    ),
    st.lists(st.sampled_from(["&&", "||"]), min_size=2, max_size=2),
    st.integers(0, 2**32),
)
@settings(max_examples=200)
def test_expressions_are_exact(tests: list[tuple[str, int, int]], joined: list[str], seed: int) -> None:
    """For comparisons joined by && and ||, the masks match exactly what the arithmetic says."""
    text = "".join(
        f"{'' if not index else joined[index - 1]}((HOST&{mask}){operator}{number})"
        for index, (operator, number, mask) in enumerate(tests)
    )
    try:
        addresses = Expressions().addresses(text)
    except NoMaskError:
        return  # too many masks
    for one in addresses:
        assert [other for other in addresses if both(one, other) is not None] == [one]
    numbers = random.Random(seed)
    for host in (0, 1, 1023, *(numbers.randrange(1024) for _ in range(40))):
        wanted: bool | None = None
        for index, (operator, number, mask) in enumerate(tests):
            value = host & mask
            outcome = {
                "<": value < number,
                "<=": value <= number,
                ">": value > number,
                ">=": value >= number,
                "==": value == number,
                "!=": value != number,
            }[operator]
            if wanted is None:
                wanted = outcome
            else:
                wanted = (wanted and outcome) if joined[index - 1] == "&&" else (wanted or outcome)
        assert matches(addresses, host) == wanted, (text, host)


# -- garbage -------------------------------------------------------------------------------------------

BITS = st.sampled_from(
    [
        *(
            "proxy",
            "rule",
            "eth0",
            "eth1",
            "lo",
            "{",
            "}",
            "\n",
            "\n",
            " ",
            "=",
            ";",
            "static",
            "auto",
            "iface",
        ),
        *(
            "2001:db8::/64",
            "2001:db8::1",
            "::/0",
            "ff02::1",
            "rewrite",
            "table",
            "router",
            "yes",
            "ttl",
            "30000",
        ),
        *("/*", "*/", "//", "#", '"', "'", "prefix", "interface", "listtype", "white", "black", "addrlist"),
        *(
            "exprlist",
            "HOST",
            "&",
            "0xff",
            "==",
            "<",
            "(",
            ")",
            "routerNA",
            "true",
            "ext-iface ",
            "int-iface ",
        ),
        *(
            "responder {\n",
            "proxy {\n",
            "filter ",
            "autosense ",
            "debug on",
            "\x00",
            "\ufffd",
            "\u0130",
            "2001:db8:1:",
        ),
        *(
            "proxy eth0 {\n",
            "rule 2001:db8::/64 {\n",
            "iface eth1\n",
            "\nprefix=2001:db8:1:\ninterface=eth0\n",
        ),
    ]
)


@pytest.mark.parametrize("peer", PEERS)
@given(text=st.one_of(st.text(max_size=200), st.lists(BITS, max_size=40).map("".join)))
@example(text="")
@example(text="{" * 5000)
@example(text="proxy eth0 {" * 5000)
@example(text="exprlist=" + "(" * 4000)
@settings(max_examples=150)
def test_garbage_is_told_in_words(peer: str, text: str) -> None:
    """Whatever the file holds: a configuration that is valid, or errors with file and line."""
    try:
        imported = convert(peer, text, "a.conf")
    except ConfigError as error:
        said = str(error)
    else:
        checked(imported.text)
        return
    assert said
    assert all(line.startswith("a.conf:") for line in said.splitlines())


@pytest.mark.parametrize("case", SHAPES, ids=lambda case: f"{case.parent.name}-{case.stem}")
def test_every_cut_of_a_shape_is_valid_or_told(case: Path) -> None:
    """A file that ends anywhere is read, or refused in words."""
    text = case.read_text(encoding="utf-8")
    for end in range(0, len(text), 7):
        try:
            imported = convert(case.parent.name, text[:end], "a.conf")
        except ConfigError:
            continue
        checked(imported.text)
