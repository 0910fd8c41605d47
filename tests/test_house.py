"""The house as docs/design.md describes it: who may import whom."""

from __future__ import annotations

import ast
import re
from collections import defaultdict
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "sdhub"
OUTSIDE = {"hub"}  # a program of its own
DOORS = {"", "__main__"}  # the public verbs, and `python -m sdhub`


def name_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {name_of(path): path for path in sorted(PACKAGE.rglob("*.py"))}


def imports(path: Path) -> set[str]:
    """Modules of sdhub that a module imports, wherever in it."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom) and node.module and not node.level:
            for each in node.names:
                whole = f"{node.module}.{each.name}"
                found.add(whole if whole in MODULES else node.module)
        elif isinstance(node, ast.Import):
            found |= {each.name for each in node.names}
    return {name for name in found if name.split(".")[0] == "sdhub"}


GRAPH = {name: imports(path) & set(MODULES) - {name} for name, path in MODULES.items()}


def room(module: str) -> str:
    return module.split(".")[1] if "." in module else ""


def floors() -> dict[str, int]:
    """The floor of each room, lowest first, from the sentence of the design that says it."""
    text = " ".join((ROOT / "docs" / "design.md").read_text(encoding="utf-8").split())
    (sentence,) = re.findall(r"list of floors: (.+?)\. ", text)
    return {
        name: number
        for number, floor in enumerate(sentence.split(" → "))
        for name in re.findall(r"`(\w+)`", floor)
    }


def test_every_room_has_a_floor():
    rooms = {room(name) for name in MODULES} - OUTSIDE - DOORS
    assert rooms == set(floors())


@pytest.mark.parametrize("module", sorted(MODULES))
def test_no_import_runs_up_the_floors(module):
    floor, own = floors(), room(module)
    if own in DOORS | OUTSIDE:
        return
    for name in GRAPH[module]:
        other = room(name)
        if other in DOORS or other == own or (own, other) == ("cli", "hub"):
            continue
        assert other not in OUTSIDE, f"{module} speaks to the Hub by import: {name}"
        assert floor[other] < floor[own], f"{module} imports {name}, which stands no lower"


def test_the_embedded_hub_knows_none_of_the_rest():
    for module, known in GRAPH.items():
        if room(module) == "hub":
            assert {room(name) for name in known} <= {"hub"}, module


def test_compression_knows_errors_alone():
    for module, known in GRAPH.items():
        if room(module) == "compression":
            foreign = {name for name in known if room(name) != "compression"}
            assert foreign <= {"sdhub.core.errors"}, module


def test_no_backend_knows_another():
    for module, known in GRAPH.items():
        own = re.match(r"sdhub\.backends\.(coreml|openvino|svdquant|sdnq)\b", module)
        for name in known if own else ():
            other = re.match(r"sdhub\.backends\.(coreml|openvino|svdquant|sdnq)\b", name)
            assert other is None or other[1] == own[1], f"{module} imports {name}"


def test_no_circle_of_imports():
    """Tarjan 1972: every strongly connected component is one module."""
    index: dict[str, int] = {}
    low: dict[str, int] = {}
    stack: list[str] = []
    circles = []

    def visit(module: str) -> None:
        index[module] = low[module] = len(index)
        stack.append(module)
        for name in GRAPH[module]:
            if name not in index:
                visit(name)
                low[module] = min(low[module], low[name])
            elif name in stack:
                low[module] = min(low[module], index[name])
        if low[module] == index[module]:
            at = stack.index(module)
            if len(stack) - at > 1:
                circles.append(stack[at:])
            del stack[at:]

    for module in MODULES:
        if module not in index:
            visit(module)
    assert circles == []


def test_heavy_libraries_are_imported_where_they_are_used():
    heavy = {"torch", "diffusers", "transformers", "openvino", "coremltools", "nncf", "gradio", "peft"}
    light = defaultdict(set)
    for name, path in MODULES.items():
        if room(name) in {"core", "checkpoint", "recipes", "cli", "publishing", "watching", "spaces", "workflow"}:
            for node in ast.parse(path.read_text(encoding="utf-8")).body:
                if isinstance(node, ast.ImportFrom):
                    light[name].add((node.module or "").split(".")[0])
                elif isinstance(node, ast.Import):
                    light[name] |= {each.name.split(".")[0] for each in node.names}
    assert {name: found & heavy for name, found in light.items() if found & heavy} == {}


BACKENDS = ("coreml", "openvino", "svdquant", "sdnq", "nunchaku")
NAMED = {  # outside of the backends' packages, with the reason
    "sdhub.workflow.compiled": "sdhub compile is Core ML's own verb, and works on published repositories",
    "sdhub.cli.options": "--openvino-device is a device of that runtime, by OpenVINO's own names",
    "sdhub.hub.pages.view": "openvino is the tag and the file by which huggingface.co knows that library",
    "sdhub.compression.packing": "formats of the ecosystem, by their own names",
}


def spoken(tree: ast.Module) -> set[str]:
    """Texts of a module that it works with: no docstrings, no help, no examples."""
    prose: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            prose.add(id(node.value))
        elif isinstance(node, ast.Call):
            shown = [each.value for each in node.keywords if each.arg == "help"]
            if isinstance(node.func, ast.Name) and node.func.id == "examples":
                shown += node.args
            prose |= {id(part) for each in shown for part in ast.walk(each)}
    return {
        node.value
        for node in ast.walk(tree)
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in prose
    }


def test_nothing_outside_a_backend_asks_for_one_by_name():
    names = re.compile(rf"\b({'|'.join(BACKENDS)})\b")
    found = {}
    for module, path in MODULES.items():
        if re.match(rf"sdhub\.backends\.({'|'.join(BACKENDS)})\b", module):
            continue
        texts = spoken(ast.parse(path.read_text(encoding="utf-8"))) | imports(path)
        if named := sorted(text for text in texts if names.search(text)):
            found[module] = named
    assert set(found) == set(NAMED), found


def test_the_backends_are_those_that_are_installed():
    from sdhub.backends.base import backends

    assert set(backends()) == set(BACKENDS)
