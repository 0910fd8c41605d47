"""The terms of a checkpoint with all that goes into its variants: LoRAs and ControlNets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from sdhub.checkpoint.checkpoint import Checkpoint, License
from sdhub.core.errors import LicenseError
from sdhub.publishing.license import settle

# From few conditions to many. What is in neither is stricter than both, and not to be compared with another such.
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
        "artistic-2.0",
        "bsl-1.0",
        "cc-by-2.0",
        "cc-by-2.5",
        "cc-by-3.0",
        "cc-by-4.0",
        "cdla-permissive-1.0",
        "cdla-permissive-2.0",
        "ecl-2.0",
        "ms-pl",
        "ncsa",
        "odc-by",
        "postgresql",
    ]
)
RAIL = frozenset(
    ["openrail", "openrail++", "creativeml-openrail-m", "bigscience-openrail-m", "bigscience-bloom-rail-1.0"]
)


def settle_all(checkpoint: Checkpoint, override: str | None = None) -> License:
    """The licence to publish under: the strictest of the checkpoint's and of all that goes into its variants.

    `override` speaks for all of them that state nothing. Without it a local file that states nothing is its user's
    own and comes under the checkpoint's terms. Raises LicenseError where one of them is unknown, forbids
    derivatives, or two are strict in different ways; UsageError as `settle`.
    """
    added = list(_added(checkpoint))
    speaks = checkpoint.license is not None and any(stated is None for _, stated, _ in added)
    strictest = settle(checkpoint.license, None if speaks else override, source=checkpoint.id)
    for name, stated, own in added:
        if stated is None and own and override is None:
            continue
        terms = settle(stated, override if stated is None else None, source=name)
        strictest = _stricter(strictest, terms, checkpoint.id, name)
    return strictest


def _added(checkpoint: Checkpoint) -> Iterator[tuple[str, License | None, bool]]:
    """Name, stated licence, and whether it is a local file or folder."""
    for lora in checkpoint.loras:
        yield f"the LoRA {lora.name}", lora.license, lora.sha is None
    for each in checkpoint.companions:
        if each.kind == "controlnet":  # the safety checker is the checkpoint's own
            yield f"the ControlNet {each.name}", each.license, each.sha is None


def _stricter(ours: License, theirs: License, source: str, name: str) -> License:
    if _rank(theirs) < 2 and _rank(theirs) <= _rank(ours):
        return ours
    if _rank(theirs) > _rank(ours):
        # The checkpoint's texts come along beside the terms that are stricter.
        return replace(theirs, file=None, notices=ours.texts)
    if _rank(theirs) < _rank(ours) or _same(ours, theirs):
        return ours
    raise LicenseError(
        f"{name} is licensed under {_said(theirs)}, {source} under {_said(ours)}: neither is the stricter one",
        hint="publish without it, or from copies whose cards state terms that go together",
    )


def _rank(license: License) -> int:
    return 0 if license.id in PERMISSIVE else 1 if license.id in RAIL else 2


def _same(one: License, other: License) -> bool:
    names = [(each.name or each.link or "").casefold() for each in (one, other)]
    return one.id == other.id and (one.id != "other" or names[0] == names[1])


def _said(license: License) -> str:
    return (license.name or license.id)[:80] if license.id == "other" else license.id
