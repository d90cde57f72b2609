# GNU General Public License v2.0 or later (see https://www.gnu.org/licenses/old-licenses/gpl-2.0.txt)
"""Ansible module: Portier's main file and drop-ins, written as one change after Portier has judged them all.

It is no `template` with `validate:`, because Ansible validates nothing in check mode, and one file at a time
otherwise: a group that moves from the main file into a drop-in would be there twice, or not at all, between.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: portier_config
short_description: Writes Portier's configuration, if Portier finds it right
description:
  - Asks C(portier check) about all files together, named here or not, before it replaces any.
  - In check mode too, unless Portier is not installed yet, which is then said as a warning.
  - What Portier has to say about a configuration that is right is passed on as warnings when it changes.
options:
  path:
    description: The main file. Drop-ins lie beside it, in a directory of its name with the suffix C(.d).
    type: path
    default: /etc/portier.yaml
  main:
    description: The content of the main file, YAML. Left out, the file stays as it is.
    type: str
  drop_ins:
    description: Drop-ins to have, the name without C(.yaml) to the content. Others stay as they are.
    type: dict
    default: {}
  absent:
    description: Names, without C(.yaml), of drop-ins to remove.
    type: list
    elements: str
    default: []
extends_documentation_fragment: files
"""

EXAMPLES = r"""
- name: One group for the virtual machines
  portier_config:
    drop_ins:
      vms: "{{ {'groups': {'vms': {'upstream': 'eth0', 'downstream': 'virbr0'}}} | to_nice_yaml }}"
    absent: [containers]
"""

RETURN = r"""
changed_files:
  description: The files that were written or removed.
  type: list
  elements: str
  returned: success
"""

HEADER = "# Written by Ansible, which overwrites what is changed here by hand.\n"


def main() -> None:
    """Judge, then replace."""
    module = AnsibleModule(
        argument_spec={
            "path": {"type": "path", "default": "/etc/portier.yaml"},
            "main": {"type": "str"},
            "drop_ins": {"type": "dict", "default": {}},
            "absent": {"type": "list", "elements": "str", "default": []},
        },
        add_file_common_args=True,
        supports_check_mode=True,
    )
    wanted = _wanted(module)
    candidates = {
        path: _candidate(module, number, content) for number, (path, content) in enumerate(wanted.items())
    }
    warnings = _judge(module, candidates)

    before = {path: _content(path) for path in wanted}
    changed_files = [path for path in wanted if wanted[path] != before[path]]
    if not module.check_mode:
        # Without a pause: a daemon that watches its files reads them when they have been quiet for a while.
        for path in changed_files:
            _replace(module, path, candidates[path] if wanted[path] is not None else None)
    attributes = False
    for path in wanted:
        if wanted[path] is not None:
            arguments = module.load_file_common_arguments(module.params, str(path))
            attributes |= module.set_fs_attributes_if_different(arguments, changed=False)
    if changed_files:
        for warning in warnings:
            module.warn(f"portier check: {warning}")
    module.exit_json(
        changed=bool(changed_files) or attributes,
        changed_files=[str(path) for path in changed_files],
        diff=[
            {
                "before_header": str(path),
                "before": before[path] or "",
                "after_header": str(path),
                "after": wanted[path] or "",
            }
            for path in changed_files
        ],
    )


def _wanted(module: AnsibleModule) -> dict[Path, str | None]:
    """Each file that is spoken of, with its content to be; None for one that is to go."""
    main = Path(module.params["path"])
    drop_ins, absent = module.params["drop_ins"], module.params["absent"]
    for name in (*drop_ins, *absent):
        if Path(name).name != name or name.startswith("."):
            module.fail_json(msg=f"{name!r} is no name for a drop-in")
        if name in drop_ins and name in absent:
            module.fail_json(msg=f"the drop-in {name} is to be there and to be absent")

    directory = main.with_suffix(".d")
    wanted: dict[Path, str | None] = {
        directory / f"{name}.yaml": HEADER + content for name, content in drop_ins.items()
    }
    if module.params["main"] is not None:
        wanted[main] = HEADER + module.params["main"]
    return wanted | {directory / f"{name}.yaml": None for name in absent}


def _candidate(module: AnsibleModule, number: int, content: str | None) -> Path:
    """A temporary file with that content; an empty one is as good to Portier as no drop-in."""
    candidate = Path(module.tmpdir, f"{number}.yaml")
    candidate.write_text(content or "", encoding="utf-8")
    return candidate


def _content(path: Path) -> str | None:
    try:
        return path.read_bytes().decode(errors="replace")
    except FileNotFoundError:
        return None


def _judge(module: AnsibleModule, candidates: dict[Path, Path]) -> list[str]:
    """Have Portier look at the configuration as it would be. Fails with every error in it, each with its
    place, or gives the warnings."""
    portier = module.get_bin_path("portier", required=not module.check_mode)
    if portier is None:
        module.warn("Portier is not installed yet: the configuration has not been checked")
        return []
    code, out, err = module.run_command(
        [portier, "--config", module.params["path"], "check", "--json", *_replacements(candidates)]
    )
    if code != 0:
        module.fail_json(msg=f"refused by portier check, nothing is changed:\n{err.strip()}", rc=code)
    warnings: list[str] = json.loads(out)["warnings"]
    return warnings


def _replacements(candidates: dict[Path, Path]) -> Iterator[str]:
    for path, candidate in candidates.items():
        yield "--replace"
        yield f"{path}={candidate}"


def _replace(module: AnsibleModule, path: Path, candidate: Path | None) -> None:
    if candidate is None:
        path.unlink()
        return
    if not path.parent.is_dir():
        path.parent.mkdir()
        path.parent.chmod(0o755)  # whatever the umask, the daemon's user reads it
    module.atomic_move(str(candidate), str(path))


if __name__ == "__main__":
    main()
