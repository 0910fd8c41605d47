"""Recipe documents of version 1, as they were written before the field's own words were taken, made version 2."""

from __future__ import annotations

import json
from typing import Any

_ROUNDING = {"nearest": "round_to_nearest", "compensated": "gptq"}


def upgraded(text: str | bytes) -> str | bytes:
    """The text of a recipe, converted where it is of version 1; what is no such document is left for its reader.

    `rounding` "nearest" became "round_to_nearest", "compensated" "gptq"; `spared` became `higher_precision`; the
    recipe's `evidence` became `analysis`.
    """
    try:
        document = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if not isinstance(document, dict) or type(document.get("version")) is not int or document["version"] != 1:
        return text
    found = {**_renamed(document, "evidence", "analysis"), "version": 2}
    components = found.get("components")
    if isinstance(components, dict):
        found["components"] = {name: _component(each) for name, each in components.items()}
    return json.dumps(found)


def _renamed(document: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    """With `old` called `new`; both at once are left for the reader to refuse."""
    return document if new in document else {new if key == old else key: each for key, each in document.items()}


def _component(component: Any) -> Any:
    if not isinstance(component, dict):
        return component
    found = dict(component)
    if "default" in found:
        found["default"] = _treatment(found["default"])
    if isinstance(found.get("layers"), dict):
        found["layers"] = {name: _treatment(each) for name, each in found["layers"].items()}
    return found


def _treatment(treatment: Any) -> Any:
    if not isinstance(treatment, dict):
        return treatment
    found = _renamed(treatment, "spared", "higher_precision")
    rounding = found.get("rounding")
    return {**found, "rounding": _ROUNDING.get(rounding, rounding)} if isinstance(rounding, str) else found
