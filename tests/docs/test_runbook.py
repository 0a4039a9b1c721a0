"""Every event, condition and error code has its section in the runbook."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from snippets import ROOT

from modelhost import errors

PAGE = ROOT / "docs" / "runbook.md"
#: Methods that add an event, with its kind as their first argument; `add` only where a cause is given.
_RECORD = {"record", "add", "_note_thrashing", "_note_growth"}


@cache
def sections() -> dict[str, frozenset[str]]:
    """Returns what has a section, by the part of the page that it stands in."""
    found: dict[str, set[str]] = {}
    part = ""
    for line in PAGE.read_text().splitlines():
        if line.startswith("## "):
            part = line[3:]
        elif line.startswith("### "):
            found.setdefault(part, set()).update(re.findall(r"`(\w+)`", line))
    return {part: frozenset(names) for part, names in found.items()}


@cache
def modules() -> tuple[ast.Module, ...]:
    return tuple(ast.parse(file.read_text()) for file in (ROOT / "modelhost").rglob("*.py"))


def texts(node: ast.expr, module: ast.Module) -> set[str]:
    """Returns the texts that an expression may be: itself, one of two, or a name that the module gives it."""
    match node:
        case ast.Constant(value=str(text)):
            return {text}
        case ast.IfExp(body=body, orelse=orelse):
            return texts(body, module) | texts(orelse, module)
        case ast.Name(id=name):
            given = [
                statement.value
                for statement in ast.walk(module)
                if isinstance(statement, ast.Assign | ast.AnnAssign)
                and statement.value is not None
                and any(
                    isinstance(target, ast.Name) and target.id == name
                    for target in (statement.targets if isinstance(statement, ast.Assign) else [statement.target])
                )
            ]
            return {text for value in given for text in texts(value, module)}
    return set()


def first_arguments(methods: set[str], *, of: str = "") -> set[str]:
    """Returns the texts that are given first to any of these methods; `of` is in what they are called on."""
    found = set()
    for module in modules():
        for call in ast.walk(module):
            if not isinstance(call, ast.Call) or not isinstance(call.func, ast.Attribute) or not call.args:
                continue
            is_event = call.func.attr != "add" or any(keyword.arg == "cause" for keyword in call.keywords)
            if call.func.attr in methods and is_event and of in ast.unparse(call.func.value):
                found |= texts(call.args[0], module)
    return found


def test_every_event_has_its_section() -> None:
    kinds = first_arguments(_RECORD)
    assert {"level", "recovery", "thrashing", "memory_readable", "worker_crash", "growth"} <= kinds
    assert kinds - sections()["Events"] == set(), "write down what it says, and what to do about it"
    assert sections()["Events"] - kinds == set(), "there is no such event"


def test_every_condition_has_its_section() -> None:
    names = first_arguments({"note"}, of="conditions")
    assert {"memory_critical", "artifacts_unwritten", "descriptors_used_up"} <= names | {"descriptors_used_up"}
    assert names - sections()["Conditions"] == set(), "write down what it says, and what to do about it"


def test_every_alert_has_its_line() -> None:
    rules = (ROOT / "deploy" / "prometheus" / "alerts.yml").read_text()
    alerts = set(re.findall(r"- alert: (\w+)", rules))
    part = PAGE.read_text().split("## Alerts")[1].split("## Events")[0]
    assert alerts == set(re.findall(r"`(Modelhost\w+)`", part))
    assert "ModelhostDown" in alerts


def subclasses(kind: type) -> Iterator[type]:
    yield kind
    for below in kind.__subclasses__():
        yield from subclasses(below)


@pytest.mark.parametrize("code", sorted({kind.code for kind in subclasses(errors.ModelHostError)} | {"http"}))
def test_every_error_code_has_its_section(code: str) -> None:
    assert code in sections()["Error codes"]
    if code not in ("config", "http", "internal"):
        assert f"`{code}`" in Path(ROOT / "docs" / "api.md").read_text()
