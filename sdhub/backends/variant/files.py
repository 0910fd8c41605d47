"""Files that variants of several backends have: configs, tokenizers, and weights in safetensors."""

from __future__ import annotations

from sdhub.backends.variant.configs import config, scheduler, tokenizer
from sdhub.backends.variant.layout import File, Variant
from sdhub.checkpoint.headers import read_header
from sdhub.checkpoint.tree import MAX_INDEX
from sdhub.core.documents import parse_object, shown
from sdhub.core.errors import SourceError, UnsafeError
from sdhub.core.units import MIB

MAX_VOCABULARY = 64 * MIB  # Gemma's have 34 million bytes
TOKENIZER = r"tokenizer(_[23])?"
MODEL = r"(text_encoder(_[23])?|unet|transformer|vae)"
STEM = r"(model|diffusion_pytorch_model)"
SHARD = rf"{STEM}-\d{{5}}-of-\d{{5}}\.safetensors"


def vocabulary(variant: Variant, path: str) -> bytes:
    """A vocabulary in JSON, bounded and well-formed; the bytes that were read are the view's."""
    variant.tree.require(path, MAX_VOCABULARY)
    raw = variant.tree.read(path)
    parse_object(raw, variant.where(path))
    return raw


def words(variant: Variant, path: str) -> bytes:
    """Merges of byte pairs, or a sentencepiece model: bounded, and read by their libraries alone."""
    variant.tree.require(path, MAX_VOCABULARY)
    return variant.tree.read(path)


def weights(variant: Variant, path: str) -> None:
    """A safetensors file whose header describes all of it."""
    read_header(variant.tree.root / path, variant.where(path))


def shards(variant: Variant, path: str) -> bytes:
    """The index of a component's shards, all of them beside it."""
    variant.tree.require(path, MAX_INDEX)
    raw = variant.tree.read(path)
    folder, where = path.rpartition("/")[0], variant.where(path)
    named = parse_object(raw, where).get("weight_map")
    if not isinstance(named, dict) or not named:
        raise SourceError(f"{where} has no weight_map of names to files", hint="get the file again")
    for shard in {str(each) for each in named.values()}:
        place = f"{folder}/{shard}"
        known = variant.layout.file(place)
        if known is None or known.keep is not weights:
            raise UnsafeError(
                f"{where} names {shown(shard)}, no safetensors shard beside it", hint="do not use it"
            )
        if place not in variant.tree.sizes:
            raise SourceError(f"{where} names the shard {shown(shard)}, which is missing", hint="get it again")
    return raw


BESIDE = (
    File(r"scheduler/scheduler_config\.json", scheduler),
    File(rf"{TOKENIZER}/(tokenizer_config|special_tokens_map|added_tokens)\.json", tokenizer),
    File(rf"{TOKENIZER}/(tokenizer|vocab)\.json", vocabulary),
    File(rf"{TOKENIZER}/(merges\.txt|spiece\.model|tokenizer\.model)", words),
    File(rf"{TOKENIZER}/chat_template\.jinja"),
)
WEIGHTS = (
    File(rf"{MODEL}/config\.json", config),
    File(rf"{MODEL}/({STEM}\.safetensors|{SHARD})", weights),
    File(rf"{MODEL}/{STEM}\.safetensors\.index\.json", shards),
    File(r"text_encoder(_[23])?/generation_config\.json"),
)
