"""The demo: it works with root and without, and says what to do where it cannot."""

import os
import socket
import subprocess
import sys

import pytest

from .conftest import ROOT

NOBODY = 65534


def demo(*prefix: str, env: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    """Play the demo in a process of its own, started through ``prefix``."""
    return subprocess.run(
        [*prefix, sys.executable, "-m", "portier", "demo"],
        cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "PYTHONDONTWRITEBYTECODE": "1", **(env or {})},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def unprivileged() -> list[str]:
    """A prefix that gives all rights away; skips where the interpreter cannot be used without them."""
    if os.geteuid() != 0:
        return []
    prefix = ["setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups", "--inh-caps=-all"]
    try:
        able = subprocess.run(
            [*prefix, sys.executable, "-c", "import pyroute2, yaml"],
            cwd=ROOT,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
    except FileNotFoundError:
        pytest.skip("setpriv (util-linux) is not installed")
    if able.returncode != 0:
        pytest.skip(f"nobody cannot use {sys.executable}: its files are in a directory closed to others")
    return prefix


def worked(done: subprocess.CompletedProcess[str]) -> None:
    """The demo showed everything, and nothing was left."""
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for said in (
        "no answer",
        "router    pings vm        2001:db8:7::a  answered",
        "vm        pings container 2001:db8:7::b  answered",
        "portier is healthy",
        "nothing is left",
        "All of it worked",
    ):
        assert said in done.stdout


@pytest.mark.skipif(os.geteuid() != 0, reason="not root")
def test_as_root() -> None:
    """With root, in network namespaces of its own; the machine's own links are as before."""
    before = socket.if_nameindex()
    worked(demo())
    assert socket.if_nameindex() == before


def test_without_root() -> None:
    """Without root, in a user namespace."""
    worked(demo(*unprivileged()))


def test_where_namespaces_are_refused() -> None:
    """Where the machine allows no user namespaces: 77, and a line that says what to do."""
    # The limits of a user namespace are its own: setting them touches nothing outside.
    script = (
        "cd /proc/sys/user && echo 0 >max_user_namespaces && echo 0 >max_net_namespaces && cd - >/dev/null"
    )
    refusing = ["unshare", "--user", "--map-root-user", "sh", "-c", f'{script} && exec "$@"', "sh"]
    try:
        done = demo(*refusing)
    except FileNotFoundError:
        pytest.skip("unshare (util-linux) is not installed")
    if "write failed" in done.stderr or "unshare failed" in done.stderr or "cannot create" in done.stderr:
        pytest.skip(f"this machine refuses even to refuse: {done.stderr.strip()}")
    assert done.returncode == 77, done.stdout + done.stderr
    assert len(done.stderr.splitlines()) == 1
    assert "sysctl -w user.max_" in done.stderr
