"""`portier check` and `portier schema`: every error with its place, or what the file means."""

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from portier import config
from portier.cli import check
from portier.system import sysctl
from tests.cli.conftest import ROOT, Portier

EXAMPLES = sorted(file for file in (ROOT / "examples").iterdir() if file.suffix in {".yaml", ".toml"})
TWO_GROUPS = """\
version: 1
groups:
  red: {upstream: eth0, downstream: "red-*", prefixes: ["2001:db8:a::/64"], isolate: true}
  blue: {upstream: eth1, downstream: [blue0, "b?e"], prefixes: ["2001:db8:b::/64"]}
"""


def written(tmp_path: Path, text: str) -> Path:
    """A configuration file with this text."""
    file = tmp_path / "portier.yaml"
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("example", EXAMPLES, ids=lambda file: file.name)
def test_every_example_is_valid_and_explained(portier: Portier, tmp_path: Path, example: Path) -> None:
    """Each example passes, and what it means names each of its groups and rules."""
    file = tmp_path / example.name  # alone: one of them has a twin in TOML
    shutil.copy(example, file)
    done = portier("check", "-c", str(file))
    assert done.returncode == 0, done.stderr
    loaded = config.load(file).config
    for group in loaded.groups:
        assert f"group {group.name}, mode {group.mode}" in done.stdout
        for rule in group.rules:
            prefix = str(rule.prefix)
            assert prefix in done.stdout or (
                prefix.startswith("upstream") and "on-link upstream" in done.stdout
            )


def test_all_errors_at_once(portier: Portier, tmp_path: Path) -> None:
    """Three mistakes are three lines on stderr, each with file, line and column; exit 78."""
    file = written(
        tmp_path,
        "version: 1\ngroups:\n  guests:\n    upstraem: eth0\n    downstream: eth1\n    answer: perhaps\n"
        "    timers: {reachable: 30 parsecs}\n",
    )
    done = portier("check", "-c", str(file), lines=3)
    assert done.returncode == 78
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 3
    for line, number in zip(lines, (4, 6, 7), strict=True):
        assert line.startswith(f"{file}:{number}:")
    assert "upstream" in lines[0]  # did you mean


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\xfe\x00",
        b"\x00" * 100,
        b"version: 1\ngroups: [",
        b"a: &a [*a, *a]",
        b"{" * 5000,
        b"version: 99",
        b"- 1\n- 2\n",
        b"version: 1\ngroups: {a: !!python/object/apply:os.system ['touch /tmp/owned']}",
        b"&a a: *a\n",
        "version: 1\ngroups:\n  ä: {}\n".encode(),
    ],
)
def test_broken_files_are_located_errors(portier: Portier, tmp_path: Path, content: bytes) -> None:
    """Whatever is in the file, the outcome is 78 and lines that begin with its name."""
    file = tmp_path / "portier.yaml"
    file.write_bytes(content)
    done = portier("check", "-c", str(file), lines=10)
    assert done.returncode == 78, done.stdout + done.stderr
    assert done.stderr
    assert all(line.startswith(str(file)) for line in done.stderr.splitlines())


def test_a_missing_file_is_an_error_in_words(portier: Portier, tmp_path: Path) -> None:
    """No file is no configuration: 78, naming it."""
    done = portier("check", "-c", str(tmp_path / "none.yaml"))
    assert done.returncode == 78
    assert "none.yaml" in done.stderr


def test_replace_judges_a_candidate(portier: Portier, tmp_path: Path) -> None:
    """--replace judges the candidate in the file's place, and the file itself is not looked at."""
    file = written(tmp_path, TWO_GROUPS)
    candidate = tmp_path / "candidate"
    candidate.write_text("version: 1\ngroups: {red: {upstraem: eth0}}\n", encoding="utf-8")
    done = portier("check", "-c", str(file), "--replace", f"{file}={candidate}")
    assert done.returncode == 78
    candidate.write_text(TWO_GROUPS, encoding="utf-8")
    file.write_text("nonsense", encoding="utf-8")
    assert portier("check", "-c", str(file), "--replace", f"{file}={candidate}").returncode == 0


def test_replace_judges_several_candidates_together(portier: Portier, tmp_path: Path) -> None:
    """A group that moves from the file into a drop-in is defined twice on the way, and once at the end."""
    file = written(tmp_path, "version: 1\ngroups: {red: {upstream: eth0}}\n")
    drop_in = file.with_suffix(".d") / "red.yaml"
    bare, red = tmp_path / "bare", tmp_path / "red"
    bare.write_text("version: 1\n", encoding="utf-8")
    red.write_text("groups: {red: {upstream: eth0}}\n", encoding="utf-8")
    done = portier("check", "-c", str(file), "--replace", f"{drop_in}={red}")
    assert done.returncode == 78
    assert f"the group is defined in {file}:2 already" in done.stderr
    both = ("--replace", f"{drop_in}={red}", "--replace", f"{file}={bare}")
    assert portier("check", "-c", str(file), *both).returncode == 0


def test_json_of_a_good_file(portier: Portier, tmp_path: Path) -> None:
    """--json gives the whole resolved configuration, addresses as text and enumerations as words."""
    file = written(
        tmp_path,
        "version: 1\ngroups: {g: {upstream: eth0, downstream: eth1, prefixes: "
        "[{allow: '2001:db8::/64', host: '::5054:ff:fe00:0/::ffff:ffff:ff00:0'}]}}\n",
    )
    done = portier("check", "-c", str(file), "--json")
    assert done.returncode == 0
    answer: dict[str, Any] = json.loads(done.stdout)
    assert answer["valid"] is True
    assert answer["files"] == [str(file)]
    group = answer["config"]["groups"][0]
    assert group["name"] == "g"
    assert group["timers"]["reachable"] == 30.0
    rule = group["rules"][0]
    assert (rule["prefix"], rule["answer"]) == ("2001:db8::/64", "resolve")
    assert rule["host"] == "::5054:ff:fe00:0/::ffff:ffff:ff00:0"


def test_json_of_a_bad_file(portier: Portier, tmp_path: Path) -> None:
    """--json gives each error with its place, and stderr has them as ever."""
    file = written(tmp_path, "version: 1\ngroups: {g: {upstraem: eth0}}\n")
    done = portier("check", "-c", str(file), "--json")
    assert done.returncode == 78
    answer = json.loads(done.stdout)
    assert answer["valid"] is False
    (error,) = answer["errors"]
    assert (error["file"], error["line"]) == (str(file), 2)
    assert error["message"] in done.stderr


def test_separation_is_told(portier: Portier, tmp_path: Path) -> None:
    """Two groups, or isolate, come with the nftables lines that keep their packets apart; globs that
    nftables does not know are left out of them."""
    done = portier("check", "-c", str(written(tmp_path, TWO_GROUPS)))
    assert """'iifname { "red-*" } oifname { "red-*" } drop'""" in done.stdout
    assert """'iifname { "eth0" } oifname { "blue0" } drop'""" in done.stdout
    assert """'iifname { "red-*" } oifname { "eth1" } drop'""" in done.stdout
    assert "name those interfaces in a rule of your own" in done.stdout


def test_scope_group_needs_no_separation(portier: Portier, tmp_path: Path) -> None:
    """What comes from the ports of a group with a table of its own stays within it; what comes from others'
    does not."""
    text = TWO_GROUPS.replace("isolate: true", "isolate: true, scope: group")
    done = portier("check", "-c", str(written(tmp_path, text)))
    assert "a table of the group's own" in done.stdout
    assert 'iifname { "red-*" }' not in done.stdout
    assert 'oifname { "red-*" }' in done.stdout


def test_separation_spares_the_upstream(tmp_path: Path) -> None:
    """Traffic between a group's upstream and its downstreams is never cut, however wide the globs are."""
    text = "version: 1\ngroups:\n  a: {upstream: eth0, downstream: ['e*', '!ethx', 'tap*'], isolate: true}\n"
    lines = list(check.separation(config.load(written(tmp_path, text)).config))
    others = '!= { "ethx", "eth0" }'
    tied = [f'{way} {{ "e*", "tap*" }} {way} {others}' for way in ("iifname", "oifname")]
    assert lines[-1] == f"nft add rule ip6 portier forward '{' '.join(tied)} drop'"


def test_separation_is_right(tmp_path: Path) -> None:
    """The tool takes the lines as they are printed."""
    if not shutil.which("nft", path="/usr/sbin:/sbin:/usr/bin:/bin"):
        pytest.skip("nft (nftables) is not installed")
    every = TWO_GROUPS + "  green: {upstream: eth2, downstream: ['*']}\n"
    said = check.separation(config.load(written(tmp_path, every)).config)
    lines = [line for line in said if line.startswith("nft ")]
    script = "PATH=$PATH:/usr/sbin:/sbin; set -e; nft list tables || exit 77; " + "; ".join(lines)
    try:
        done = subprocess.run(
            ["unshare", "--user", "--map-root-user", "--net", "sh", "-c", script],
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("unshare (util-linux) is not installed")
    if done.returncode == 77 or "unshare" in done.stderr:
        pytest.skip(f"no nftables in a namespace here: {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr


RELAY = "version: 1\ngroups:\n  hotspot: {mode: relay, upstream: eth0, downstream: 'wlan*'}\n"


def test_relay_is_put_into_words(portier: Portier, tmp_path: Path) -> None:
    """Of a relay group check says what is relayed and what is not, and what ends a loop; it has no rules."""
    said = " ".join(portier("check", "-c", str(written(tmp_path, RELAY))).stdout.split())
    for words in (
        "group hotspot, mode relay upstream eth0 downstream wlan* relayed everything IPv6: the ports are one",
        "not relayed IPv4",
        "puts its port into hold-down for 1 h",
        "host routes table 254, metric 4389, protocol 135, for the traffic of this host itself",
    ):
        assert words in said
    for words in ("whatever else", "besides", "not active yet", "separates"):
        assert words not in said


def test_relay_needs_no_separation_from_others(tmp_path: Path) -> None:
    """The kernel forwards nothing that comes in by a relay's ports; to them it would."""
    both = RELAY + "  guests: {upstream: eth1, downstream: tap0}\n"
    lines = [line for line in check.separation(config.load(written(tmp_path, both)).config) if "iif" in line]
    assert [line.split(" 'iifname ")[1] for line in lines] == [
        """{ "eth1" } oifname { "eth0" } drop'""",
        """{ "eth1" } oifname { "wlan*" } drop'""",
        """{ "tap0" } oifname { "eth0" } drop'""",
        """{ "tap0" } oifname { "wlan*" } drop'""",
    ]


FOUR = (
    "version: 1\ngroups:\n  four: {upstream: eth0, downstream: 'tap*', isolate: true, multicast: router, "
    "announce: solicit, prefixes: [{allow: 192.0.2.0/24, host: 0.0.0.5/0.0.0.255}]}\n"
)


def test_ipv4_is_put_into_words(portier: Portier, tmp_path: Path) -> None:
    """Patterns are on IPv4 addresses, and the nftables lines are for IPv4."""
    file = str(written(tmp_path, FOUR))
    said = " ".join(portier("check", "-c", file).stdout.split())
    assert "only addresses like 0.0.0.5/0.0.0.255" in said
    assert "announced hosts learned or moved, on the other ports: a router by a solicitation" in said
    assert "multicast drawn by advertising a multicast router on every port (RFC 4286)" in said
    assert "nft add rule ip portier forward" in said
    assert "ip6" not in said
    (rule,) = json.loads(portier("check", "--json", "-c", file).stdout)["config"]["groups"][0]["rules"]
    assert rule["host"] == "0.0.0.5/0.0.0.255"


def test_relayed_router_advertisements_are_put_into_words(portier: Portier, tmp_path: Path) -> None:
    """And that DHCPv6 is not relayed with them."""
    text = "version: 1\ngroups: {g: {upstream: eth0, downstream: tap0, router_advertisements: relay}}\n"
    said = " ".join(portier("check", "-c", str(written(tmp_path, text))).stdout.split())
    assert "routers Router Advertisements are passed on to the downstreams" in said
    assert "DHCPv6 is not" in said


def test_scope_in_defaults_is_not_for_relay_groups(portier: Portier, tmp_path: Path) -> None:
    """Like all that mode relay has no use for, it is passed over where only defaults name it."""
    text = RELAY.replace(
        "groups:", "defaults: {scope: group}\ngroups:\n  other: {upstream: e1, downstream: e2}"
    )
    said = " ".join(portier("check", "-c", str(written(tmp_path, text))).stdout.split())
    other, _, relay = said.partition("group hotspot, mode")
    assert "a table of the group's own" in other
    assert "scope" not in relay


def test_neighbor_limit_of_the_kernel(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where the kernel keeps fewer neighbors than the file allows, check says so with the sysctl line."""
    loaded = config.load(written(tmp_path, TWO_GROUPS)).config
    four = config.load(written(tmp_path, FOUR)).config
    monkeypatch.setattr(sysctl, "_ROOT", tmp_path)
    assert not list(check.limit_warnings(loaded)), "the kernel does not tell"
    for version in (4, 6):
        limit = tmp_path / f"net/ipv{version}/neigh/default/gc_thresh3"
        limit.parent.mkdir(parents=True)
        limit.write_text("1024\n", encoding="ascii")
    (warning,) = check.limit_warnings(loaded)
    assert "sysctl -w net.ipv6.neigh.default.gc_thresh3=8192" in warning
    (warning,) = check.limit_warnings(four)
    assert "1024 IPv4 neighbors" in warning
    assert "sysctl -w net.ipv4.neigh.default.gc_thresh3=8192" in warning
    limit.write_text("100000\n", encoding="ascii")
    assert not list(check.limit_warnings(loaded))


def test_schema_is_printed_as_shipped(portier: Portier) -> None:
    """`portier schema` prints the published schema."""
    done = portier("schema")
    assert done.returncode == 0
    assert done.stdout == (ROOT / "schema" / "portier.schema.json").read_text(encoding="utf-8")
    assert json.loads(done.stdout)["$schema"] == "https://json-schema.org/draft/2020-12/schema"
