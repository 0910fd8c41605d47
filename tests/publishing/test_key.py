"""The key under which an assembled repository is kept: any field of its publication changes it."""

from __future__ import annotations

import dataclasses
import math
from dataclasses import fields, replace
from pathlib import Path

import pytest

from sdhub.checkpoint.checkpoint import Checkpoint, Companion, Component, License, PinnedLora, Source
from sdhub.checkpoint.families import FAMILIES
from sdhub.checkpoint.said import Said
from sdhub.publishing.publication import Publication, Sibling
from tests.publishing.publications import checkpoint, publication

KEPT = Path("/nowhere/work")


def other(value, folder):
    """A value of the same kind that differs."""
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return f"{value}x"
    if isinstance(value, (int, float)):
        return value + 1
    if isinstance(value, Path):
        changed = folder / f"other-{value.name}"
        changed.mkdir() if value.is_dir() else changed.write_bytes(b"other")
        return changed
    if isinstance(value, dict):
        return {**value, "more": next(iter(value.values()), 1)}
    if isinstance(value, tuple):
        return (*value, value[0]) if value else ("more",)
    if isinstance(value, frozenset):
        return value | {"more"}
    raise AssertionError(f"say what another {type(value).__name__} is")


PUBLICATION = {  # what a field of the sample is None or empty for, or of more than a plain type
    "checkpoint": lambda _: checkpoint(id="someone/other"),
    "license": lambda _: License("mit"),
    "notices": lambda made: (made.license_file,),
    "bundles": lambda made: {"a.zip": made.folder / "unet"},
    "branch": lambda _: "int8",
    "siblings": lambda _: (Sibling("sdnq-int8", "local/x", {"psnr_db": 1.0}),),
    "hub": lambda _: "https://huggingface.co",
}
CHECKPOINT = {
    "source": Source("hub", "someone/else"),
    "family": FAMILIES["sdxl"],
    "components": (Component("unet", "diffusers", "UNet2DConditionModel", {"a": math.inf}),),
    "license": License("mit"),
    "size": 64,
    "steps": 4,
    "guidance": 1.0,
    "loras": (PinnedLora("a/b", 0.5, "c"),),
    "companions": (Companion("controlnet", "a/b", "", "0" * 40, {}, {}, 1),),
    "config": "a/b",
    "said": Said(zero_snr=True),
    "sha": "1" * 40,
}


@pytest.fixture
def made(tmp_path):
    return publication(tmp_path)


@pytest.mark.parametrize("name", [each.name for each in fields(Publication)])
def test_each_field_of_a_publication_changes_its_key(name, made, tmp_path):
    changed = PUBLICATION[name](made) if name in PUBLICATION else other(getattr(made, name), tmp_path)
    before, after = made.key(KEPT), replace(made, **{name: changed}).key(KEPT)
    assert {each for each in before if before[each] != after[each]} == {name}


@pytest.mark.parametrize("name", [each.name for each in fields(Checkpoint)])
def test_each_field_of_its_checkpoint_too(name, made, tmp_path):
    given = checkpoint()
    changed = CHECKPOINT[name] if name in CHECKPOINT else other(getattr(given, name), tmp_path)
    after = replace(made, checkpoint=replace(given, **{name: changed})).key(KEPT)
    same = name == "stamps"  # a file that was only touched: its content is in the identity
    assert (after == made.key(KEPT)) is same


def test_only_stamps_are_left_out():
    left = {
        f"{kind.__name__}.{each.name}"
        for kind in (Publication, Checkpoint, Sibling, License, Source, Component, PinnedLora, Companion, Said)
        for each in dataclasses.fields(kind)
        if not each.metadata.get("key", True)
    }
    assert left == {"Checkpoint.stamps"}


def test_files_count_by_their_content(made, tmp_path):
    key = made.key(KEPT)
    again = publication(tmp_path / "again").key(KEPT)
    assert again == key
    made.license_file.write_text("Other terms.\n")
    assert made.key(KEPT)["license_file"] != key["license_file"]
    (made.folder / "unet" / "openvino_model.xml").write_text("<net/>")
    assert made.key(KEPT)["folder"] != key["folder"]


def test_files_of_the_work_folder_are_not_read(made, tmp_path):
    key = made.key(tmp_path)
    for path in tmp_path.rglob("*"):
        if path.is_file():
            path.write_bytes(b"")
    assert made.key(tmp_path) == key
    assert replace(made, folder=tmp_path / "variant-2").key(tmp_path)["folder"] != key["folder"]
