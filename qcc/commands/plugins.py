"""``qcc passes`` and ``qcc targets``."""

from __future__ import annotations

import inspect
from typing import TYPE_CHECKING, Annotated, Any

import typer

from qcc.commands.console import err, out, print_json, print_table
from qcc.commands.options import JsonFlag
from qcc.errors import PluginError

if TYPE_CHECKING:
    from qcc.passmgr.base import Pass
    from qcc.passmgr.target import Target


def passes_command(
    name: Annotated[str | None, typer.Argument(help="Show this pass and its options.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the installed passes, or describe one.

    qcc passes

    qcc passes calibrate
    """
    from qcc.discovery import discover
    from qcc.passmgr.plugins import PASSES, load_pass

    if name is not None:
        _print_one(_pass_facts(load_pass(name)), as_json)
        return
    found = _load_all(sorted(discover(PASSES)), load_pass)
    if as_json:
        print_json([_pass_facts(p) for p in found])
        return
    rows = [(p.name, f"{p.accepts} → {p.yields}", _first_line(p)) for p in found]
    print_table("", ("pass", "stages", "what it does"), rows)


def targets_command(
    name: Annotated[str | None, typer.Argument(help="Show this target and its options.")] = None,
    as_json: JsonFlag = False,
) -> None:
    """List the installed targets, or describe one.

    qcc targets

    qcc targets cpu --json
    """
    from qcc.discovery import discover
    from qcc.passmgr.plugins import TARGETS, load_target

    if name is not None:
        _print_one(_target_facts(load_target(name)), as_json)
        return
    found = _load_all(sorted(discover(TARGETS)), load_target)
    if as_json:
        print_json([_target_facts(t) for t in found])
        return
    print_table("", ("target", "backend", "what it is"), [(t.name, t.backend, _first_line(t)) for t in found])


def _load_all(names: list[str], load: Any) -> list[Any]:
    """What loads; what does not is reported on stderr, and hides nothing else."""
    found = []
    for name in names:
        try:
            found.append(load(name))
        except PluginError as e:
            err().print(f"note: {e}", markup=False)
    return found


def _first_line(plugin: type) -> str:
    return (inspect.getdoc(plugin) or "").partition("\n")[0]


def _pass_facts(p: type[Pass]) -> dict[str, Any]:
    return {
        "name": p.name,
        "doc": inspect.getdoc(p) or "",
        "accepts": str(p.accepts),
        "yields": str(p.yields),
        "needs": [f.__name__ for f in p.needs],
        "gives": [f.__name__ for f in p.gives],
        "options": p.model_json_schema().get("properties", {}),
    }


def _target_facts(t: type[Target]) -> dict[str, Any]:
    schema = t.model_json_schema()
    required = bool(schema.get("required"))
    return {
        "name": t.name,
        "doc": inspect.getdoc(t) or "",
        "backend": t.backend,
        "options": schema.get("properties", {}),
        "capabilities": None if required else t().capabilities.model_dump(mode="json"),
    }


def _print_one(facts: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print_json(facts)
        return
    console = out()
    console.print(f"{facts['name']}\n\n{facts['doc']}\n", markup=False)
    for key in ("accepts", "yields", "needs", "gives", "backend", "capabilities"):
        value = facts.get(key)
        if value:
            console.print(f"{key:<13}{', '.join(value) if isinstance(value, list) else value}", markup=False)
    rows = [
        (name, _kind(o), o.get("default", "required"), o.get("description", "")) for name, o in facts["options"].items()
    ]
    if rows:
        console.print()
        print_table("", ("option", "type", "default", ""), rows)


def _kind(option: dict[str, Any]) -> str:
    if "enum" in option:
        return " | ".join(map(str, option["enum"]))
    if "anyOf" in option:
        return " | ".join(_kind(o) for o in option["anyOf"])
    return str(option.get("type", option.get("$ref", "object").rpartition("/")[2]))
