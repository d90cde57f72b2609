"""What the tests of the configuration share: files in a directory of their own, and their problems."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from textwrap import dedent

import pytest

from portier.config import Loaded, load
from portier.errors import ConfigError


@pytest.fixture
def loads(tmp_path: Path) -> Callable[..., Loaded]:
    """Load a text as the main file; further files by name, like ``{"portier.d/x.yaml": "..."}``."""

    def loads(text: str, more: dict[str, str] | None = None, suffix: str = ".yaml") -> Loaded:
        main = tmp_path / f"portier{suffix}"
        for name, content in {main.name: text, **(more or {})}.items():
            path = tmp_path / name
            path.parent.mkdir(exist_ok=True)
            path.write_text(dedent(content))
        return load(main)

    return loads


@pytest.fixture
def problems(loads: Callable[..., Loaded], tmp_path: Path) -> Callable[..., list[str]]:
    """The problems that a text has, one line each, without the directory."""

    def problems(text: str, more: dict[str, str] | None = None, suffix: str = ".yaml") -> list[str]:
        try:
            loaded = loads(text, more, suffix)
        except ConfigError as error:
            return str(error).replace(f"{tmp_path}/", "").splitlines()
        return [f"warning: {problem}".replace(f"{tmp_path}/", "") for problem in loaded.warnings]

    return problems
