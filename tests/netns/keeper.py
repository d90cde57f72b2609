"""Keeps the network namespaces of a lab, and opens packet sockets inside them.

Runs as a program of its own, single-threaded and started by `lab.Keeper`, as root or inside a fresh
user namespace.  It is asked over a socket (one JSON object a datagram) and answers the same way; a
packet socket travels back as a descriptor.  Every namespace is held by a child that only sleeps; all
of them die with this process, and this process ends when the other side of the socket is gone.
It imports the standard library only, to start fast.
"""

from __future__ import annotations

import array
import ctypes
import json
import os
import signal
import socket
import sys
from pathlib import Path
from typing import Any, NoReturn

CLONE_NEWNET = 0x40000000
PR_SET_PDEATHSIG = 1
SO_RCVBUFFORCE = 33
SO_TIMESTAMPNS = 35
LIBC = ctypes.CDLL(None, use_errno=True)


def must(result: int, what: str) -> None:
    """Raise OSError where a call into the C library failed."""
    if result != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"{what}: {os.strerror(number)}")


def sleep_for_ever(parent: int, ready: int) -> NoReturn:
    """Hold a new network namespace until killed, or until the keeper is gone."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    must(LIBC.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0), "prctl")
    must(LIBC.unshare(CLONE_NEWNET), "unshare")
    if os.getppid() != parent:
        os._exit(0)
    os.write(ready, b"1")
    os.close(ready)
    while True:
        signal.pause()


def hold() -> int:
    """Start a holder of a new network namespace; returns its process id."""
    reading, writing = os.pipe()
    parent = os.getpid()
    pid = os.fork()
    if pid == 0:
        try:
            os.close(reading)
            sleep_for_ever(parent, writing)
        finally:
            os._exit(1)
    os.close(writing)
    ready = os.read(reading, 1)
    os.close(reading)
    if not ready:
        raise OSError(f"no network namespace: holder {pid} failed")
    return pid


def packet_socket(pid: int, interface: str, protocol: int) -> socket.socket:
    """Open an AF_PACKET socket on an interface of the namespace that ``pid`` holds, and stay there."""
    with Path(f"/proc/{pid}/ns/net").open("rb") as namespace:
        must(LIBC.setns(namespace.fileno(), CLONE_NEWNET), "setns")
    opened = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, 0)
    try:
        opened.setsockopt(socket.SOL_SOCKET, SO_RCVBUFFORCE, 8 << 20)
    except PermissionError:  # not root outside: as much as the system allows
        opened.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 8 << 20)
    opened.setsockopt(socket.SOL_SOCKET, SO_TIMESTAMPNS, 1)
    opened.bind((interface, protocol))
    return opened


def hand_over(control: socket.socket, request: dict[str, Any]) -> NoReturn:
    """In a child of the keeper, which may not come home from a namespace of its own: reply and end."""
    try:
        opened = packet_socket(request["pid"], request["interface"], request["protocol"])
        descriptors = array.array("i", [opened.fileno()])
        control.sendmsg([b"{}"], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, descriptors)])
    except OSError as error:
        control.send(json.dumps({"error": f"packet socket on {request['interface']}: {error}"}).encode())
    finally:
        os._exit(0)


def answer(control: socket.socket, request: dict[str, Any]) -> None:
    """Do what is asked and send the reply."""
    if request["do"] == "hold":
        control.send(json.dumps({"pid": hold()}).encode())
    elif request["do"] == "packet":
        if os.fork() == 0:
            hand_over(control, request)
    elif request["do"] == "drop":
        os.kill(request["pid"], signal.SIGKILL)
        control.send(b"{}")


def main() -> None:
    """Serve until the other side closes."""
    signal.signal(signal.SIGCHLD, signal.SIG_IGN)  # children are reaped by the kernel
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for pytest, which then closes the socket
    control = socket.socket(fileno=int(sys.argv[1]))
    control.send(b"{}")
    while request := control.recv(65536):
        try:
            answer(control, json.loads(request))
        except (OSError, KeyError) as error:
            control.send(json.dumps({"error": str(error)}).encode())


if __name__ == "__main__":
    main()
