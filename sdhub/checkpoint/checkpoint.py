"""What a source resolves to: everything known from JSON and safetensors headers alone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any, Literal

from sdhub.checkpoint.families import Family
from sdhub.checkpoint.said import NOTHING, Said

Kind = Literal["controlnet", "safety_checker"]


@dataclass(frozen=True)
class Lora:
    """A LoRA to fuse: a Hub id (`org/name[@revision]`) or a `.safetensors` file, and its scale.

    `inside` is a file or folder in the Hub's repository, where one is named.
    """

    ref: str
    scale: float = 1.0
    inside: str = ""


@dataclass(frozen=True)
class Source:
    """What the user named.

    `ref` is a Hub id for kind "hub", an absolute path for "folder" and "file"; `revision` is a branch, tag or
    commit of the Hub, None for its default. `config` says where the configs and tokenizers of a single file are:
    a diffusers folder or a Hub id with optional `@revision`; None is the family's own repository. `controlnets`,
    each a folder's absolute path or a Hub id with optional `@revision`, and the safety checker, where it is asked
    for, go along into variants that have room for them. `file` is the path of a single file in a repository of the
    Hub.
    """

    kind: Literal["hub", "folder", "file"]
    ref: str
    revision: str | None = None
    loras: tuple[Lora, ...] = ()
    config: str | None = None
    controlnets: tuple[str, ...] = ()
    safety_checker: bool = False
    file: str | None = None

    @property
    def single(self) -> bool:
        """Whether a single file is meant, on this machine or on the Hub."""
        return self.kind == "file" or self.file is not None

    @property
    def is_local(self) -> bool:
        """Whether all that it takes to know it lies on this machine."""
        return self.kind == "folder" and not self.loras and not self.controlnets

    @property
    def text(self) -> str:
        """What to type for it."""
        from sdhub.demo import emoji_sd

        if self.kind != "hub":
            return "demo" if self.ref == str(emoji_sd()) else self.ref
        place = f"{self.ref}/{self.file}" if self.file else self.ref
        return f"{place}@{self.revision}" if self.revision else place


@dataclass(frozen=True)
class PinnedLora:
    """A LoRA resolved: `file` lies in the Hub's `ref` at the commit `sha`, or is an absolute path (`sha` None).

    `restricted`: its repository is private or gated. `license` is what its card, or the file itself, states.
    `stamps` tell a local file, and its settings beside it, from later ones of the same name.
    """

    ref: str
    scale: float
    file: str
    sha: str | None = None
    bytes: int = 0
    restricted: bool = False
    license: License | None = None
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What may be published of it: the Hub id, or the file's name without its folder."""
        return self.ref if self.sha else PurePath(self.file).name


@dataclass(frozen=True)
class Companion:
    """A model that goes along with a checkpoint and takes no part in drawing.

    It lies in `folder` ("" is the root) of the Hub's `ref` at the commit `sha`, or of the local folder `ref`
    (`sha` None). `sizes`: bytes of its files by path, the config first. `restricted`: its repository is private or
    gated. `stamps` tell local files from later ones of the same name.
    """

    kind: Kind
    ref: str
    folder: str
    sha: str | None
    sizes: Mapping[str, int]
    config: Mapping[str, Any]
    parameters: int
    restricted: bool = False
    license: License | None = None
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def name(self) -> str:
        """What may be published of it: the Hub id, or the folder's name."""
        return self.ref if self.sha else PurePath(self.ref).name


@dataclass(frozen=True)
class Component:
    """One entry of `model_index.json`.

    `files` are the weight files, as paths inside the checkpoint; components without weights (scheduler,
    tokenizer) have none, zero parameters and an empty dtype. `dtype` is torch's name of the type that holds
    most bytes ("float16").
    """

    name: str
    library: str
    class_name: str
    config: Mapping[str, Any] = field(default_factory=dict)
    files: tuple[str, ...] = ()
    parameters: int = 0
    bytes: int = 0
    dtype: str = ""


@dataclass(frozen=True)
class License:
    """A licence as a Hub card states it.

    `file` is the licence text inside the checkpoint, if it has one; `notices` are the notices and policies beside
    it that copies have to carry.
    """

    id: str
    name: str | None = None
    link: str | None = None
    file: str | None = None
    notices: tuple[str, ...] = ()

    @property
    def texts(self) -> tuple[str, ...]:
        """Files of the checkpoint that come along, the licence first."""
        return (*([self.file] if self.file else []), *self.notices)


@dataclass(frozen=True)
class Checkpoint:
    """A source resolved.

    `id` is the Hub id, or the name of the folder or file; `name` the part of it that names repositories.
    `sha` is the pinned commit of a Hub source and None for local ones, whose identity is the hash of their
    bytes (`sdhub.checkpoint.fetch.fingerprint`). `traits` are words from `sdhub.checkpoint.families.TRAITS`.
    `files` are all paths that sdhub will read, relative to the checkpoint, and `sizes` their bytes; the safety
    checker and image processors are listed in `components` without files, since they are not read. `size` is the
    side in pixels that the denoiser was made for (its `sample_size` times the VAE's scale). `prompts`, `steps` and
    `guidance` are what the author's card shows the model with (`widget` texts, `inference.parameters`), where it
    does. `config` is where the configs of a single file come from: an absolute path or `org/name[@revision]`.
    `gate` is what the author's card asks of those who want access (`extra_gated_prompt` and its like). `said` is
    what a single file says of its sampling. `notes` say where the checkpoint is taken for something else than it
    calls itself, a plain sentence each. `left_out` says, a line for each file, which of its keys no library gets
    to read. `stamps` tell local files from later ones of the same name (`sdhub.checkpoint.tree.stamp`).
    """

    source: Source
    id: str
    name: str
    sha: str | None
    family: Family
    pipeline: str
    components: tuple[Component, ...]
    prediction_type: str
    license: License | None
    gated: bool
    private: bool
    traits: frozenset[str]
    files: tuple[str, ...]
    size: int | None = None
    prompts: tuple[str, ...] = ()
    steps: int | None = None
    guidance: float | None = None
    sizes: Mapping[str, int] = field(default_factory=dict)
    loras: tuple[PinnedLora, ...] = ()
    companions: tuple[Companion, ...] = ()
    config: str | None = None
    gate: Mapping[str, str] = field(default_factory=dict)
    said: Said = NOTHING
    notes: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    stamps: Mapping[str, tuple[int, ...]] = field(default_factory=dict, metadata={"key": False})  # not content

    def component(self, name: str) -> Component | None:
        """The component called `name`, or None."""
        return next((part for part in self.components if part.name == name), None)

    @property
    def bytes(self) -> int:
        """Bytes of all weights."""
        return sum(part.bytes for part in self.components)
