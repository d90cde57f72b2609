"""The command line: one module per command, named for it; the only code that prints or exits.

This module knows the commands and their arguments, and is the last to see whatever goes wrong: every
failure becomes an exit code and lines on stderr, never a traceback.  A command's module is imported only
when it is called for, so that `portier status` is quick; it has one function, ``run(options) -> int``.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import os
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import NoReturn

from portier import __version__
from portier.cli import exits
from portier.cli.manual import MANUAL
from portier.errors import ConfigError, PortierError, Refused, printable
from portier.system.service import STDERR, is_journal

DEFAULT_CONFIG = Path("/etc/portier.yaml")
DEFAULT_RUNTIME_DIR = Path("/run/portier")

# Each in one line; the paragraph and the exit codes that its --help adds are in portier.cli.manual.
COMMANDS = {
    "run": "be the daemon, in the foreground",
    "check": "validate the configuration and say what it means",
    "plan": "show the steps that would be done now, doing none",
    "status": "show groups, ports, counters and what is wrong",
    "top": "show the status live, with rates",
    "neighbors": "list the hosts known",
    "watch": "show what happens, as it happens",
    "explain": "say why an address is answered for, or is not",
    "doctor": "look for what makes the proxy silently do nothing, and name the remedy",
    "reload": "have the daemon read its configuration again, and wait for the outcome",
    "lift": "end the hold-down of a port (mode relay)",
    "cleanup": "remove from the kernel all that a dead daemon left there",
    "schema": "print the JSON Schema of the configuration, or of what a command prints with --json",
    "import": "turn the configuration of ndppd, npd6 or pndpd into Portier's, on standard output",
    "demo": "show it work, in a lab of namespaces that touches nothing",
}


INTERVALS = (0.25, 3600.0)  # seconds between two looks of `top`, at least and at most
PRINTED = ("check", "plan", "status", "neighbors", "watch", "explain", "doctor")  # have --json, with a schema


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line ``argv`` (sys.argv's by default); the result is the exit code."""
    _open_streams()
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # any name can be shown on any terminal
    try:
        options = make_parser().parse_args(argv)
        options.named = options.config  # for what asks a daemon, which has a file of its own
        options.config = options.config or DEFAULT_CONFIG
        return _call(options)
    except SystemExit as end:  # argparse ends so, after help or a usage error
        return end.code if isinstance(end.code, int) else exits.OK
    except KeyboardInterrupt:
        return exits.INTERRUPTED


def _open_streams() -> None:
    """Have standard streams where the caller closed them (``>&-``), which lead nowhere: their descriptors
    would else be those of the next files and sockets to be opened, which whatever is said would go to."""
    for descriptor, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)
            if nowhere != descriptor:
                os.dup2(nowhere, descriptor)
                os.close(nowhere)
            setattr(sys, name, os.fdopen(descriptor, mode))


def _call(options: argparse.Namespace) -> int:
    """Run the command and turn its exceptions into exit codes and lines."""
    name: str = options.command
    try:
        code: int = importlib.import_module(f"portier.cli.{name}").run(options)
        sys.stdout.flush()
    except ConfigError as error:
        print_error(str(error))
        code = exits.CONFIG
    except PortierError as error:
        code = error.exit_code if isinstance(error, Refused) else exits.FAILED
        if code == exits.CONFIG:  # the daemon's word on a configuration: the same lines as above
            print_error(str(error))
        else:
            complain(name, str(error))
    except BrokenPipeError:  # whoever read our output has seen enough
        _discard_output()
        code = exits.PIPE
    except PermissionError as error:
        complain(name, f"{_reason(error)}: run as root")
        code = exits.NOT_PERMITTED
    except OSError as error:
        _discard_output()
        complain(name, _reason(error))
        code = exits.SYSTEM
    except Exception as error:  # noqa: BLE001  (the last resort: no traceback reaches a user)
        if os.environ.get("PORTIER_DEBUG"):
            traceback.print_exc()
        complain(
            name,
            f"internal error, {type(error).__name__}: {error}; please report it with what "
            f"`PORTIER_DEBUG=1 portier {name}` prints",
        )
        code = exits.BUG
    return code


def _reason(error: OSError) -> str:
    """What the kernel refused, and of which file where it is one."""
    reason = error.strerror or str(error)
    return f"{error.filename}: {reason}" if error.filename is not None else reason


def _discard_output() -> None:
    """Keep what could not be written from failing once more when the interpreter ends."""
    with contextlib.suppress(OSError, ValueError):
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def named_file(options: argparse.Namespace) -> dict[str, str]:
    """The configuration that the user named, as a parameter for a daemon, which refuses another than its
    own; nothing where none was named."""
    return {} if options.named is None else {"config": str(options.named.absolute())}


def complain(name: str, message: str) -> None:
    """Tell the user what is wrong, in one line on stderr."""
    print_error(f"portier {name}: {' '.join(message.split())}")


def print_error(lines: str) -> None:
    """Print what is wrong on stderr; in the journal each line is an error by its level too (sd-daemon(3))."""
    level = "<3>" if is_journal(STDERR, os.environ) else ""
    for line in lines.splitlines():
        print(f"{level}{printable(line)}", file=sys.stderr)


class _Parser(argparse.ArgumentParser):
    """argparse with one-line errors and EX_USAGE."""

    def error(self, message: str) -> NoReturn:
        """End with one line that names the way to help."""
        print(f'{self.prog}: {message}; see "{self.prog} --help"', file=sys.stderr)
        raise SystemExit(exits.USAGE)


def _replacement(text: str) -> tuple[Path, Path]:
    """``FILE=CANDIDATE`` of ``check --replace``."""
    file, equals, candidate = text.partition("=")
    if not (file and equals and candidate):
        raise argparse.ArgumentTypeError(f"{text!r} is not like FILE=CANDIDATE")
    return Path(file), Path(candidate)


def _interval(text: str) -> float:
    """Seconds between two looks."""
    try:
        seconds = float(text)
    except ValueError:
        seconds = 0.0
    if not INTERVALS[0] <= seconds <= INTERVALS[1]:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0.25 to 3600")
    return seconds


def _global_options(parser: argparse.ArgumentParser, *, inherit: bool) -> None:
    """The options that may stand before the command or after it.  After it they have no defaults of
    their own (``inherit``), or those would override what was given before."""
    parser.add_argument(
        "-c",
        "--config",
        type=Path,
        metavar="FILE",
        default=argparse.SUPPRESS if inherit else None,
        help=f"the configuration (default {DEFAULT_CONFIG})",
    )
    parser.add_argument(
        "--runtime-dir",
        type=Path,
        metavar="DIR",
        default=argparse.SUPPRESS if inherit else DEFAULT_RUNTIME_DIR,
        help=f"where the daemon keeps its socket and its record (default {DEFAULT_RUNTIME_DIR})",
    )


def make_parser() -> argparse.ArgumentParser:
    """The commands with their arguments and help: what is parsed by, and what portier(8) and the
    completions of shells are made from."""
    parser = _Parser(
        prog="portier",
        description="Make hosts on one link reachable as if they sat on another (Neighbor Discovery proxy).",
        epilog="Exit codes besides a command's own: 64 wrong usage, 77 not permitted, 4 no daemon runs, "
        "78 the configuration is wrong.",
    )
    _global_options(parser, inherit=False)
    parser.add_argument("--version", action="version", version=f"portier {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True, parser_class=_Parser)
    made = {}
    for name, meaning in COMMANDS.items():
        entry = MANUAL[name]
        command = commands.add_parser(
            name,
            help=meaning,
            description=f"{meaning[0].upper()}{meaning[1:]}. {entry.text}",
            epilog="Exit codes: " + ", ".join(f"{code} {what}" for code, what in entry.exits.items()) + ".",
        )
        _global_options(command, inherit=True)
        made[name] = command
    made["check"].add_argument(
        "--replace",
        type=_replacement,
        action="append",
        default=[],
        metavar="FILE=CANDIDATE",
        help="judge the whole as if CANDIDATE were in FILE's place; may be given several times, and an empty "
        "candidate is as good as no drop-in",
    )
    pictures = made["status"].add_mutually_exclusive_group()
    pictures.add_argument(
        "--format",
        choices=("text", "dot", "svg"),
        default="text",
        help="svg or dot: a picture of groups, ports and hosts, upstream on the left, red where something is "
        "wrong; svg for a browser, dot for graphviz",
    )
    for printed in (pictures, *(made[name] for name in PRINTED if name != "status")):
        printed.add_argument("--json", action="store_true", help="JSON, for programs")
    made["status"].add_argument("--strict", action="store_true", help="waiting ports count as degraded")
    made["top"].add_argument(
        "-i",
        "--interval",
        type=_interval,
        default=2.0,
        metavar="SECONDS",
        help="how long between two looks (default 2)",
    )
    made["explain"].add_argument("address", metavar="ADDR", help="the address that somebody asks for")
    made["explain"].add_argument("--on", metavar="PORT", help="the interface on which it is asked for")
    made["doctor"].add_argument(
        "--probe",
        metavar="ADDR",
        help="follow a solicitation for ADDR, as the router would send it, and packets through the proxy",
    )
    made["doctor"].add_argument(
        "--on", metavar="PORT", help="with --probe: the interface on which it is asked for (the upstream)"
    )
    watch = made["watch"]
    for name, meaning in (
        ("group", "only what is about this group"),
        ("port", "only what is about this interface"),
        ("address", "only what is about this address, or this prefix"),
        ("kind", "only events of this kind: learned, moved, lost, conflict, packet and so on"),
    ):
        watch.add_argument(f"--{name}", action="append", default=[], metavar=name.upper(), help=meaning)
    watch.add_argument("--packets", action="store_true", help="each solicitation too, with its verdict")
    watch.add_argument(
        "--write", type=Path, metavar="FILE", help="write the solicitations to FILE, a pcap; means --packets"
    )
    made["schema"].add_argument(
        "of",
        nargs="?",
        choices=("config", *PRINTED, "probe"),
        default="config",
        help="of the configuration (the default), or of what that command prints with --json",
    )
    made["lift"].add_argument("port", metavar="PORT", help="the interface, as `portier status` names it")
    made["import"].add_argument("peer", choices=("ndppd", "npd6", "pndpd"), help="whose configuration it is")
    made["import"].add_argument("file", metavar="FILE", help="the file; - for standard input")
    return parser
