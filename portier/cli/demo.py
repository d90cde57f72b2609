"""`portier demo`: a lab of namespaces in which the real daemon runs on one of the examples, as it is.

Tells a story on stdout and ends with proof that nothing is left.  What it makes lives in namespaces of
this process, so nothing outside is touched and everything goes with it; no step waits for ever.
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import importlib.resources
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from pyroute2.netlink.exceptions import NetlinkError

import portier
from portier.cli import complain, exits
from portier.cli.lab import Lab, Node
from portier.errors import PortierError, Refused

EXAMPLE = "vms-and-containers.yaml"  # its interfaces are those that this lab makes
_TOPOLOGY = """\
    All of 2001:db8:7::/64 is on-link at the router; nothing is routed or delegated.

    router               portier                    vm
    2001:db8:7::1 ------ enp3s0   virbr0 ---------- 2001:db8:7:0:5054:ff:fe00:a
                                                    container
                                  lxc-web --------- 2001:db8:7::c
"""
_ROUTER, _VM, _CONTAINER = "2001:db8:7::1", "2001:db8:7:0:5054:ff:fe00:a", "2001:db8:7::c"
_DENIED = "2001:db8:7:0:1ab::1"  # by a rule of the example
_START_SECONDS = 20.0
_STOP_SECONDS = 10.0
_PING_SECONDS = 5.0
_SILENCE_SECONDS = 1.5  # how long "no answer" is waited for
_PR_SET_PDEATHSIG = 1


class _DemoError(PortierError):
    """The demo did not show what it should."""


def run(options: argparse.Namespace) -> int:
    """Play the demo; 0 when everything worked and nothing is left."""
    del options
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # ends like Ctrl-C: daemon and lab go first
    with contextlib.ExitStack() as stack:
        try:
            directory = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="portier-demo-")))
            example = _example(directory)
            lab = stack.enter_context(Lab("portier"))
            _play(lab, example, directory)
        except (_DemoError, NetlinkError) as error:
            complain("demo", str(error))
            return exits.FAILED
    return exits.OK


def _play(lab: Lab, example: Path, directory: Path) -> None:
    began = time.monotonic()
    _say("A lab of four hosts, each a network namespace of this process")
    print(_TOPOLOGY)
    router, vm, container = _build(lab)
    before = lab.traces()

    _say("Without Portier the router's questions end on its own link")
    _expect_silence(lab, router, "vm", _VM)

    _say(f"The configuration is examples/{example.name}, as it is")
    print("\n".join(f"    {line}" for line in _settings(example)))
    _show(["check", "-c", example.name], directory, exits.OK)
    _show(["plan", "-c", example.name], directory, exits.STEPS)

    _say(f"portier run -c {example.name}")
    with _daemon(example, directory) as process:
        lab.forget(router)  # who was not there is not asked for again at once
        _say("Everybody reaches everybody")
        for start, name, target in (
            (router, "vm", _VM),
            (router, "container", _CONTAINER),
            (vm, "router", _ROUTER),
            (container, "router", _ROUTER),
            (vm, "container", _CONTAINER),
            (lab.here, "vm", _VM),
        ):
            _expect_answer(lab, start, name, target)

        for command, code in (
            (["status"], exits.OK),
            (["neighbors"], exits.OK),
            (["explain", _VM], exits.OK),
            (["explain", _DENIED], exits.FAILED),
            (["reload"], exits.OK),
        ):
            _show(command, directory, code)

        _say("The daemon is told to stop")
        _stop(process)
    _show(["cleanup"], directory, exits.OK)

    _say("What is left of it in the kernel")
    left = before.differences(lab.traces())
    for difference in left:
        print(f"    {difference}")
    if left:
        raise _DemoError(f"the kernel is not as it was before: {len(left)} differences")
    print(
        f"    nothing: {len(before.routes)} routes, {len(before.rules)} rules, "
        f"{len(before.sysctls)} sysctls, {len(before.flags)} links and {len(before.multicast)} multicast\n"
        "    memberships are as they were before"
    )
    _expect_silence(lab, router, "vm", _VM)
    print(f"\nAll of it worked, in {time.monotonic() - began:.0f} seconds.")


def _say(title: str) -> None:
    print(f"\n== {title}", flush=True)


def _build(lab: Lab) -> tuple[Node, Node, Node]:
    """The topology, with every address ready for use."""
    here, router, vm, container = lab.here, lab.node("router"), lab.node("vm"), lab.node("container")
    lab.wire(here, "enp3s0", router, "eth0")
    lab.bridge(here, "virbr0")
    lab.wire(here, "vnet0", vm, "eth0", bridge="virbr0", far_mac="52:54:00:00:00:0a")
    lab.wire(here, "lxc-web", container, "eth0")
    lab.address(router, "eth0", f"{_ROUTER}/64")
    lab.address(here, "enp3s0", "2001:db8:7::2/64")
    lab.address(vm, "eth0", f"{_VM}/64")
    lab.address(container, "eth0", f"{_CONTAINER}/64")
    lab.default_route(here, _ROUTER)
    lab.settle(25)
    return router, vm, container


def _expect_answer(lab: Lab, start: Node, name: str, target: str) -> None:
    took = lab.ping(start, target, _PING_SECONDS)
    if took is None:
        raise _DemoError(f"{start.name} pings {name}, {target}: no answer within {_PING_SECONDS:g} s")
    print(
        f"    {start.name:<9} pings {name:<9}  {target:<28} answered after {took * 1000:.1f} ms", flush=True
    )


def _expect_silence(lab: Lab, start: Node, name: str, target: str) -> None:
    if lab.ping(start, target, _SILENCE_SECONDS) is not None:
        raise _DemoError(f"{start.name} reaches {name} without Portier: this lab proves nothing")
    print(f"    {start.name:<9} pings {name:<9}  {target:<28} no answer", flush=True)


def _example(directory: Path) -> Path:
    """A copy of the example, which is in the installed package or in the checkout it was started from.
    It is copied because its TOML twin lies beside it, and two files at once are an error."""
    package = importlib.resources.files("portier")
    for place in (package.joinpath("examples", EXAMPLE), package.joinpath("..", "examples", EXAMPLE)):
        if place.is_file():
            copy = directory / EXAMPLE
            copy.write_bytes(place.read_bytes())
            return copy
    raise Refused(f"the example {EXAMPLE} is not where the package was installed: install it again")


def _settings(example: Path) -> list[str]:
    """The file without its comments."""
    lines = example.read_text(encoding="utf-8").splitlines()
    return [line for line in lines if line.strip() and not line.lstrip().startswith("#")]


def _command(arguments: list[str], directory: Path) -> list[str]:
    return [sys.executable, "-m", "portier", "--runtime-dir", str(directory), *arguments]


def _environment() -> dict[str, str]:
    """The environment in which this very package is found, and no service manager."""
    environment = {key: value for key, value in os.environ.items() if key != "NOTIFY_SOCKET"}
    found = [str(Path(portier.__file__).resolve().parents[1]), environment.get("PYTHONPATH", "")]
    return environment | {"PYTHONPATH": os.pathsep.join(filter(None, found))}


def _die_with_parent() -> None:
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)


@contextlib.contextmanager
def _daemon(example: Path, directory: Path) -> Iterator[subprocess.Popen[bytes]]:
    """The real daemon, in a process of its own which never outlives this one, ready.  It is started as
    a service manager would: it says itself when it is ready."""
    notify = directory / "notify"
    with (directory / "log").open("wb") as log, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(str(notify))
        process = subprocess.Popen(
            _command(["run", "--config", str(example)], directory),
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env=_environment() | {"NOTIFY_SOCKET": str(notify)},
            preexec_fn=_die_with_parent,  # noqa: PLW1509  (there are no threads here)
        )
        try:
            _wait_until_ready(process, manager)
            yield process
        except Exception:
            print((directory / "log").read_text(encoding="utf-8", errors="replace"), file=sys.stderr)
            raise
        finally:
            if process.poll() is None:
                process.terminate()
                try:
                    process.wait(_STOP_SECONDS)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


def _wait_until_ready(process: subprocess.Popen[bytes], manager: socket.socket) -> None:
    manager.settimeout(0.1)
    deadline = time.monotonic() + _START_SECONDS
    while time.monotonic() < deadline:
        if process.poll() is not None:
            raise _DemoError(f"the daemon ended with {process.returncode}; its log is above")
        with contextlib.suppress(TimeoutError):
            said = manager.recv(4096).decode(errors="replace").splitlines()
            if "READY=1" in said:
                print(f"    process {process.pid} is ready")
                return
    raise _DemoError(f"the daemon was not ready within {_START_SECONDS:g} s; its log is above")


def _show(arguments: list[str], directory: Path, expected: int) -> None:
    """Run a command as a user would, and show what it prints."""
    _say(f"portier {' '.join(arguments)}")
    done = subprocess.run(
        _command(arguments, directory),
        cwd=directory,
        env=_environment(),
        capture_output=True,
        text=True,
        timeout=_START_SECONDS,
        check=False,
    )
    said = (done.stdout + done.stderr).replace(f"{directory}/", "")
    print("\n".join(f"    {line}".rstrip() for line in said.splitlines()), flush=True)
    if done.returncode != expected:
        raise _DemoError(f"portier {' '.join(arguments)} ended with {done.returncode}, not {expected}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        code = process.wait(_STOP_SECONDS)
    except subprocess.TimeoutExpired:
        raise _DemoError(f"the daemon did not stop within {_STOP_SECONDS:g} s") from None
    if code != 0:
        raise _DemoError(f"the daemon ended with {code}; its log is above")
    print("    it has ended, with 0")
