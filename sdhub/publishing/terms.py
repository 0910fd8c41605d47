"""The terms of a checkpoint with all that goes into its variants: LoRAs and ControlNets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sdhub.checkpoint.checkpoint import Checkpoint, License
from sdhub.core.errors import LicenseError
from sdhub.publishing.license import settle

# They allow what is made from them to come under any other terms. No other two are to be compared by their names.
PERMISSIVE = frozenset(
    [
        "cc0-1.0",
        "unlicense",
        "wtfpl",
        "0bsd",
        "pddl",
        "zlib",
        "mit",
        "mit-0",
        "apache-2.0",
        "bsd",
        "bsd-2-clause",
        "bsd-3-clause",
        "bsd-3-clause-clear",
        "isc",
        "afl-3.0",
        "bsl-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "ecl-2.0",
        "ncsa",
        "odc-by",
        "postgresql",
    ]
)


def settle_all(checkpoint: Checkpoint, override: str | None = None) -> License:
    """The licence to publish under: the terms of the checkpoint and of all that goes into its variants.

    Permissive terms give way to others. Of others there may be one, unless `override` says which of them holds;
    it speaks, too, for all that state nothing. Without it a local file that states nothing is its user's own and
    comes under the checkpoint's terms. Raises LicenseError where one of them is unknown, forbids derivatives, or
    two do not go together; UsageError as `settle`.
    """
    added = list(_added(checkpoint))
    chosen = override.strip().lower() if override else None
    try:
        own = settle(checkpoint.license, override, source=checkpoint.id)
    except LicenseError:
        if not any(stated is None or stated.id.lower() == chosen for _, stated, _ in added):
            raise
        own = settle(checkpoint.license, source=checkpoint.id)
    found = [(checkpoint.id, own)]
    for name, stated, local in added:
        if stated is None and local and override is None:
            continue
        terms = settle(stated, override if stated is None else None, source=name)
        # The checkpoint's texts come along beside terms that are not its own.
        found.append((name, replace(terms, file=None, notices=own.texts)))
    strict = [each for each in found if each[1].id not in PERMISSIVE]
    name, first = (strict or found)[0]
    other = next((each for each in strict if not _same(each[1], first)), None)
    if other is None:
        return first
    said = next((terms for _, terms in strict if terms.id == chosen), None)
    if said is not None:
        return said
    raise LicenseError(
        f"{other[0]} is licensed under {_said(other[1])}, {name} under {_said(first)}: "
        "their names do not tell which of them holds for both",
        hint=f"say which with --license {first.id} or --license {other[1].id}, if both let you",
    )


def _added(checkpoint: Checkpoint) -> Iterator[tuple[str, License | None, bool]]:
    """Name, stated licence, and whether it is a local file or folder."""
    for lora in checkpoint.loras:
        yield f"the LoRA {lora.name}", lora.license, lora.sha is None
    for each in checkpoint.companions:
        if each.kind == "controlnet":  # the safety checker is the checkpoint's own
            yield f"the ControlNet {each.name}", each.license, each.sha is None


def _same(one: License, other: License) -> bool:
    names = [(each.name or each.link or "").casefold() for each in (one, other)]
    return one.id == other.id and (one.id != "other" or names[0] == names[1])


def _said(license: License) -> str:
    return (license.name or license.id)[:80] if license.id == "other" else license.id
