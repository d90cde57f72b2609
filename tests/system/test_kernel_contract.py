"""The suite, against the real kernel and against the fake that the reconciler's tests use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from portier.core.model import HostRoute, ProxyEntry
from tests.fakes import FakeKernel, FakeRecord
from tests.system.kernel_contract import KernelContract
from tests.system.real_world import RealWorld, real_world


class FakeWorld:
    """The fake kernel, which is its own administrator."""

    def __init__(self) -> None:
        self.record = FakeRecord()
        self.kernel = FakeKernel(self.record)

    def add_link(self, name: str) -> None:
        """Make a link."""
        self.kernel.add_link(name)

    def set_link(self, name: str, *, up: bool) -> None:
        """Set a link up or down."""
        self.kernel.change_link(name, up=up)

    def rename_link(self, name: str, new: str) -> None:
        """Rename a link."""
        self.kernel.change_link(name, name=new)

    def remove_link(self, name: str) -> None:
        """Delete a link."""
        self.kernel.remove_link(name)

    def index(self, name: str) -> int:
        """The index of a link."""
        return self.kernel.index(name)

    def add_address(self, name: str, text: str) -> None:
        """Add an address."""
        self.kernel.add_address(name, text)

    def remove_address(self, name: str, text: str) -> None:
        """Take an address away."""
        self.kernel.remove_address(name, text)

    def add_host_route(self, route: HostRoute) -> None:
        """Make a route."""
        self.kernel.host_routes.append(route)

    def add_proxy(self, entry: ProxyEntry) -> None:
        """Make a proxy entry."""
        self.kernel.proxies.add(entry)

    def add_route(self, network: str, name: str, *, via: str | None = None) -> None:
        """Make a static route."""
        self.kernel.add_foreign_route(network, name, via=via)


class TestRealKernel(KernelContract):
    """The kernel that this machine runs."""

    @pytest.fixture
    def world(self, tmp_path: Path) -> Iterator[RealWorld]:
        """A namespace."""
        with real_world(tmp_path) as world:
            yield world


class TestFakeKernel(KernelContract):
    """The one of tests/fakes.py."""

    @pytest.fixture
    def world(self) -> FakeWorld:
        """A fake."""
        return FakeWorld()
