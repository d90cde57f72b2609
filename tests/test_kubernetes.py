"""The manifest of `packaging/kubernetes` is what Kubernetes takes, and asks for no more than it says."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path, PurePosixPath
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[1]
MANIFEST = ROOT / "packaging/kubernetes/portier.yaml"
RESOURCES: dict[str, dict[str, Any]] = {
    resource["kind"]: resource for resource in yaml.safe_load_all(MANIFEST.read_text())
}
POD: dict[str, Any] = RESOURCES["DaemonSet"]["spec"]["template"]["spec"]
CONTAINER: dict[str, Any] = POD["containers"][0]


@pytest.mark.parametrize("version", ["1.25", "1.29", "1.33"])
@pytest.mark.parametrize("kind", RESOURCES)
def test_fits_the_schema(kind: str, version: str) -> None:
    """Every resource is valid by the schema of several releases, in which an unknown key is an error."""
    validator = pytest.importorskip("kubernetes_validate")
    validator.validate(RESOURCES[kind], version, strict=True)


def test_the_schema_finds_errors() -> None:
    """A key that is not there, in a place that only a strict schema guards, is found."""
    validator = pytest.importorskip("kubernetes_validate")
    wrong = yaml.safe_load(yaml.safe_dump(RESOURCES["DaemonSet"]))
    wrong["spec"]["template"]["spec"]["containers"][0]["securityContext"]["readOnlyRootFileSystem"] = True
    with pytest.raises(validator.ValidationError):
        validator.validate(wrong, "1.33", strict=True)


def test_its_configuration_is_good(tmp_path: Path) -> None:
    """`portier check` takes the ConfigMap's file, which does not want to write what it cannot."""
    data = RESOURCES["ConfigMap"]["data"]
    assert list(data) == ["portier.yaml"]
    config = tmp_path / "portier.yaml"
    config.write_text(data["portier.yaml"])
    command = [sys.executable, "-m", "portier", "check", "-c", str(config)]
    done = subprocess.run(
        command, check=False, capture_output=True, text=True, cwd=ROOT, env=os.environ, timeout=60
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert yaml.safe_load(config.read_text())["sysctls"] == "check"


def test_the_files_are_where_the_daemon_looks() -> None:
    """The configuration is a whole directory, so that it is updated; /run/portier is the node's."""
    mounts = {mount["name"]: mount for mount in CONTAINER["volumeMounts"]}
    volumes = {volume["name"]: volume for volume in POD["volumes"]}
    config = PurePosixPath(CONTAINER["args"][CONTAINER["args"].index("--config") + 1])
    assert str(config.parent) == mounts["config"]["mountPath"]
    assert "subPath" not in mounts["config"]
    assert volumes["config"]["configMap"]["name"] == RESOURCES["ConfigMap"]["metadata"]["name"]
    assert mounts["runtime"]["mountPath"] == "/run/portier"
    assert volumes["runtime"]["hostPath"] == {"path": "/run/portier", "type": "DirectoryOrCreate"}


def test_it_gets_no_more_than_it_needs() -> None:
    """Two capabilities, no token, nothing to write to but /run/portier; the node's network."""
    security = CONTAINER["securityContext"]
    assert security["capabilities"] == {"drop": ["ALL"], "add": ["NET_ADMIN", "NET_RAW"]}
    assert security["readOnlyRootFilesystem"] is True
    assert security["allowPrivilegeEscalation"] is False
    assert not security.get("privileged")
    assert POD["hostNetwork"] is True
    assert POD["automountServiceAccountToken"] is False
    namespaces = {resource["metadata"].get("namespace") for resource in RESOURCES.values()} - {None}
    assert namespaces == {RESOURCES["Namespace"]["metadata"]["name"]}
