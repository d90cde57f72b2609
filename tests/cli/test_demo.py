"""The demo: it works with root and without, and says what to do where it cannot."""

import os
import shutil
import socket
import subprocess
import sys
import sysconfig

import pytest

from tests.cli.conftest import ROOT

NOBODY = 65534


def demo(
    *prefix: str, python: str = sys.executable, path: str = str(ROOT)
) -> subprocess.CompletedProcess[str]:
    """Play the demo in a process of its own, started through ``prefix``."""
    return subprocess.run(
        [*prefix, python, "-m", "portier", "demo"],
        cwd="/",
        env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def without_root() -> subprocess.CompletedProcess[str]:
    """Play the demo as nobody.  Where this interpreter is closed to others (below /root), the system's
    with this one's packages does; skips where that cannot be either."""
    if os.geteuid() != 0:
        return demo()
    if not shutil.which("setpriv"):
        pytest.skip("setpriv (util-linux) is not installed")
    # The shell between them makes the interpreter's start one without rights, too.
    prefix = [
        "setpriv",
        f"--reuid={NOBODY}",
        f"--regid={NOBODY}",
        "--clear-groups",
        "sh",
        "-c",
        'exec "$@"',
        "sh",
    ]
    path = os.pathsep.join([str(ROOT), sysconfig.get_path("purelib")])
    for python in (sys.executable, "/usr/bin/python3"):
        able = subprocess.run(
            [*prefix, python, "-c", "import portier.cli, pyroute2, yaml, jsonschema, watchdog"],
            cwd="/",
            env={**os.environ, "PYTHONPATH": path, "PYTHONDONTWRITEBYTECODE": "1"},
            capture_output=True,
            timeout=60,
            check=False,
        )
        if able.returncode == 0:
            return demo(*prefix, python=python, path=path)
    pytest.skip(f"nobody can use neither {sys.executable} nor its packages: they are closed to others")


def worked(done: subprocess.CompletedProcess[str]) -> None:
    """The demo showed everything, and nothing was left."""
    if done.returncode == 77:
        pytest.skip(done.stderr.strip())
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stderr == ""
    for said in (
        "no answer",
        "router    pings vm         2001:db8:7:0:5054:ff:fe00:a  answered",
        "vm        pings container  2001:db8:7::c                answered",
        "container pings router     2001:db8:7::1                answered",
        "portier is healthy",
        "    nothing: ",
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
    worked(without_root())


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
