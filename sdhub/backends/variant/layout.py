"""What the variants of a backend look like: pipelines, settings of the index, and every file by its path."""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sdhub.checkpoint.known import SCHEDULERS, TOKENIZERS

if TYPE_CHECKING:
    from sdhub.checkpoint.tree import Folder

TEXT_ENCODERS = frozenset(
    {
        "CLIPTextModel",
        "CLIPTextModelWithProjection",
        "Gemma2Model",
        "Qwen2_5_VLForConditionalGeneration",
        "T5EncoderModel",
    }
)
UNETS = frozenset({"UNet2DConditionModel"})
TRANSFORMERS = frozenset(
    {
        "FluxTransformer2DModel",
        "PixArtTransformer2DModel",
        "QwenImageTransformer2DModel",
        "SD3Transformer2DModel",
        "SanaTransformer2DModel",
        "Transformer2DModel",
    }
)
AUTOENCODERS = frozenset({"AutoencoderDC", "AutoencoderKL", "AutoencoderKLQwenImage", "AutoencoderTiny"})

# The components of an index: their library, and the classes that each may be of.
ROLES: Mapping[str, tuple[str, frozenset[str]]] = {
    "scheduler": ("diffusers", SCHEDULERS),
    "tokenizer": ("transformers", TOKENIZERS),
    "tokenizer_2": ("transformers", TOKENIZERS),
    "tokenizer_3": ("transformers", TOKENIZERS),
    "text_encoder": ("transformers", TEXT_ENCODERS),
    "text_encoder_2": ("transformers", TEXT_ENCODERS),
    "text_encoder_3": ("transformers", TEXT_ENCODERS),
    "unet": ("diffusers", UNETS),
    "transformer": ("diffusers", TRANSFORMERS),
    "vae": ("diffusers", AUTOENCODERS),
}
SETTINGS = frozenset({"requires_safety_checker", "force_zeros_for_empty_prompt", "requires_aesthetics_score"})


@dataclass(frozen=True)
class Entry:
    """A component as the index names it."""

    library: str
    class_name: str


@dataclass(frozen=True)
class Variant:
    """A folder on its way through the gate: its files and what its index says."""

    tree: Folder
    layout: Layout
    components: Mapping[str, Entry]

    def entry(self, path: str) -> Entry | None:
        """The component that a file belongs to, by its top folder."""
        top = path.partition("/")[0]
        return self.components.get(self.layout.folders.get(top, top))

    def where(self, path: str) -> str:
        """The file in words."""
        from sdhub.core.documents import shown

        return f"{shown(path)} of {self.tree.where}"


Keep = Callable[[Variant, str], "bytes | None"]


@dataclass(frozen=True)
class File:
    """Files whose whole path matches `pattern`.

    `keep(variant, path)` vets one, and gives the bytes that the view holds in its place, None where it links to
    the file as it is; without `keep` a file is known, and not loaded. It raises SourceError, UnsafeError and
    UnsupportedError.
    """

    pattern: str
    keep: Keep | None = None


@dataclass(frozen=True)
class Layout:
    """`pipelines` that the index may name, `files` in the order in which they are tried.

    `settings` are plain keys of the index that are true or false, besides `SETTINGS`; `folders` maps those
    that are called otherwise than their component to that; `quantization(document, where)` gives what is kept of a
    config's `quantization_config`. Without it, there may be none.
    """

    pipelines: Collection[str]
    files: Sequence[File]
    settings: frozenset[str] = frozenset()
    folders: Mapping[str, str] = field(default_factory=dict)
    quantization: Callable[[Mapping[str, Any], str], Mapping[str, Any]] | None = None

    def file(self, path: str) -> File | None:
        """The first that a path matches."""
        return next((each for each in self.files if re.fullmatch(each.pattern, path)), None)

    def is_own(self, path: str) -> bool:
        """Whether a path lies in a folder of a component, where no other file may be."""
        top, slash, _ = path.partition("/")
        return bool(slash) and (top in ROLES or top in self.folders)
