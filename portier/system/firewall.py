"""Reads the packet filters of this network namespace: nftables, and what is older.

By ``nft -j``, not by netlink: the kernel knows rules as programs for registers, and `nft` alone turns them
back into what a person wrote, which both the judgement and the evidence need.  It is there where somebody
uses nftables.  Statements that only iptables can say are read by ``iptables-save``, and so are the tables of
the older kernel interface (legacy).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Final

from portier.core import firewall
from portier.core.firewall import Chain, Ruleset
from portier.errors import PortierError

_PATIENCE: Final = 20.0  # seconds; a large ruleset is megabytes of JSON
_PATH: Final = "/usr/sbin:/sbin:/usr/bin:/bin"
_OF_FAMILY: Final = {"ip6": "ip6tables", "ip": "iptables"}


class UnreadableError(PortierError):
    """The packet filter cannot be read; the text says why."""


def read() -> Ruleset:
    """All rules there are.  Raises `UnreadableError` when they cannot be read, or only in part."""
    if shutil.which("nft", path=_PATH) is None:
        raise UnreadableError("nft is not installed (on Debian: apt install nftables)")
    try:
        objects = json.loads(_output(["nft", "-j", "list", "ruleset"]))["nftables"]
    except ValueError as error:
        raise UnreadableError(f"nft -j list ruleset: {error}") from error
    rules = firewall.from_nft(objects, _output(["nft", "-a", "list", "ruleset"]))
    chains = [*rules.chains, *_legacy()]
    foreign = firewall.foreign_tables(objects)
    for family in sorted({family for family, _ in foreign} & _OF_FAMILY.keys()):
        tool = _OF_FAMILY[family]
        saved = firewall.from_save(family, tool, _output([f"{tool}-nft-save"]))
        read_again = {table for of, table in foreign if of == family}
        chains = [c for c in chains if not (c.family == family and c.table in read_again and c.tool == "nft")]
        chains += [chain for chain in saved if chain.table in read_again]
    return replace(rules, chains=tuple(chains))


def _legacy() -> tuple[Chain, ...]:
    """The tables of the older kernel interface; asking makes none that are not there."""
    found: list[Chain] = []
    for family, tool in _OF_FAMILY.items():
        names = Path("/proc/net/ip6_tables_names" if family == "ip6" else "/proc/net/ip_tables_names")
        try:
            used = names.read_text()
        except FileNotFoundError:
            continue  # the module is not there
        except OSError as error:
            raise UnreadableError(f"{tool}: {error.strerror}: run as root") from error
        if used.strip():
            legacy = f"{tool}-legacy"
            found += firewall.from_save(family, legacy, _output([f"{legacy}-save"]))
    return tuple(found)


def _output(command: Sequence[str]) -> str:
    """What a program prints."""
    environment = {**os.environ, "PATH": _PATH, "LC_ALL": "C"}
    program = shutil.which(command[0], path=_PATH)
    if program is None:
        raise UnreadableError(f"{command[0]} is not installed")
    try:
        done = subprocess.run(
            [program, *command[1:]],
            check=False,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=_PATIENCE,
            env=environment,
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UnreadableError(f"{' '.join(command)}: {error}") from error
    if done.returncode != 0:
        said = done.stderr.strip().splitlines()
        hint = "" if os.geteuid() == 0 else ": run as root"
        raise UnreadableError(f"{' '.join(command)}: {said[0] if said else done.returncode}{hint}")
    return done.stdout
