"""The files of tokenizers: names, keys and values that are taken, for all others are left out.

transformers hands whatever stands in `tokenizer_config.json` and `special_tokens_map.json` on to a constructor,
names of files among it, and stores some of it as attributes.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from sdhub.checkpoint.values import FLAG, HINT, Kept, Rule, Whole, Word, impossible, keep, maybe, named
from sdhub.core.errors import SourceError

CONFIG, SPECIAL, ADDED, WHOLE, VOCABULARY = (
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "tokenizer.json",
    "vocab.json",
)
FILES = frozenset({CONFIG, SPECIAL, ADDED, WHOLE, VOCABULARY, "merges.txt", "spiece.model", "tokenizer.model"})
MAX_TOKENS = 2**22
MAX_ADDED = 2**17
MAX_TEXT = 4_096
LONGEST = 2**22  # tokens of a prompt; transformers writes 1e30 for "no limit"
UNLIMITED = 10**20
NUMBER = re.compile(r"[0-9]{1,7}")
ATTRIBUTE = re.compile(r"[a-z][a-z_]{0,40}_token")
PROVENANCE = frozenset({"name_or_path", "tokenizer_class", "transformers_version", "backend", "is_local"})


class Length(Rule):
    """How many tokens a prompt may have."""

    def fits(self, value: Any) -> bool:
        whole = isinstance(value, int) and not isinstance(value, bool)
        return whole and (1 <= value <= LONGEST or value >= UNLIMITED)

    def __str__(self) -> str:
        return f"a whole number from 1 to {LONGEST}, or 1e30 for no limit"


class Token(Rule):
    """A token as text, or as transformers writes an `AddedToken`."""

    flags = frozenset({"lstrip", "rstrip", "normalized", "single_word", "special"})

    def fits(self, value: Any) -> bool:
        if isinstance(value, Mapping):
            known = self.flags | {"content", "id", "__type"}
            return (
                known.issuperset(value)
                and self._text(value.get("content"))
                and all(isinstance(each, bool) for key, each in value.items() if key in self.flags)
                and value.get("__type", "AddedToken") == "AddedToken"
                and Whole(0, MAX_TOKENS).fits(value.get("id", 0))
            )
        return self._text(value)

    def _text(self, value: Any) -> bool:
        return isinstance(value, str) and len(value) <= MAX_TEXT

    def __str__(self) -> str:
        return "a token"


class Tokens(Rule):
    """Tokens in a list, or by the names of attributes."""

    def fits(self, value: Any) -> bool:
        if isinstance(value, Mapping):
            return len(value) <= 64 and all(
                ATTRIBUTE.fullmatch(key) is not None and Token().fits(each) for key, each in value.items()
            )
        return isinstance(value, list) and len(value) <= MAX_ADDED and all(map(Token().fits, value))

    def __str__(self) -> str:
        return "a list of tokens"


class Numbered(Rule):
    """Tokens by their numbers."""

    def fits(self, value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) <= MAX_ADDED
            and all(
                NUMBER.fullmatch(key) is not None
                and int(key) < MAX_TOKENS
                and isinstance(each, Mapping)
                and Token().fits(each)
                for key, each in value.items()
            )
        )

    def __str__(self) -> str:
        return f"an object of tokens by their numbers, below {MAX_TOKENS}"


class Empty(Rule):
    """Settings of the sentencepiece library, which may name a file: none."""

    def fits(self, value: Any) -> bool:
        return value is None or value == {}

    def __str__(self) -> str:
        return "an empty object"


SPECIAL_KEYS: Mapping[str, Rule] = {
    **named(maybe(Token()), "bos_token cls_token eos_token mask_token pad_token sep_token unk_token"),
    **named(maybe(Tokens()), "additional_special_tokens extra_special_tokens"),
}
CONFIG_KEYS: Mapping[str, Rule] = {
    **SPECIAL_KEYS,
    **named(
        FLAG,
        "add_bos_token add_eos_token add_prefix_space clean_up_tokenization_spaces do_lower_case legacy "
        "spaces_between_special_tokens split_special_tokens use_default_system_prompt",
    ),
    **named(Word(), "errors padding_side truncation_side"),
    "added_tokens_decoder": Numbered(),
    "extra_ids": Whole(0, 1_000),
    "model_max_length": maybe(Length()),
    "sp_model_kwargs": Empty(),
}
# A whole tokenizer of the tokenizers library, which reads no files and runs no code.
WHOLE_KEYS = frozenset(
    {"version", "truncation", "padding", "added_tokens", "normalizer", "pre_tokenizer", "post_processor"}
    | {"decoder", "model"}
)
MODELS = ("BPE", "Unigram", "WordLevel", "WordPiece")


def keep_tokenizer(name: str, document: Mapping[str, Any], where: str) -> Kept:
    """The part of a tokenizer's file `name` that is taken.

    Raises SourceError that names `where` and the key, for a value that cannot be and a file that is none of a
    tokenizer's.
    """
    if name == CONFIG:
        return keep(document, CONFIG_KEYS, where, PROVENANCE)
    if name == SPECIAL:
        return keep(document, SPECIAL_KEYS, where)
    if name in (ADDED, VOCABULARY):
        _require_numbers(document, where, MAX_ADDED if name == ADDED else MAX_TOKENS)
        return Kept(document)
    if name == WHOLE:
        return _whole(document, where)
    raise SourceError(f"{where} is no file of a tokenizer that sdhub knows", hint=HINT)


def _require_numbers(document: Mapping[str, Any], where: str, most: int) -> None:
    if len(document) > most:
        raise SourceError(f"{where} has {len(document)} tokens, more than {most}", hint=HINT)
    number = Whole(0, MAX_TOKENS)
    for key, value in document.items():
        if not number.fits(value):
            raise impossible(where, key, value, str(number))


def _whole(document: Mapping[str, Any], where: str) -> Kept:
    model = document.get("model")
    kind = model.get("type", MODELS[0]) if isinstance(model, Mapping) else None
    if kind not in MODELS:
        raise impossible(where, "model", kind, f"one of {', '.join(MODELS)}")
    kept = {key: value for key, value in document.items() if key in WHOLE_KEYS}
    return Kept(kept, tuple(key for key in document if key not in WHOLE_KEYS))
