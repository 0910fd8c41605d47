"""LoRAs: found and vetted from headers, then fused into a loaded pipeline."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from sdhub.checkpoint.checkpoint import Lora, PinnedLora
from sdhub.checkpoint.documents import parse_object, shown
from sdhub.checkpoint.headers import Header, read_header
from sdhub.checkpoint.kinds import lora_modules, require_lora
from sdhub.checkpoint.remote import Hub, Repository
from sdhub.checkpoint.safety import PICKLES, convert_hint
from sdhub.errors import SourceError, UnsafeError, UnsupportedError
from sdhub.progress import Progress
from sdhub.quiet import quiet

USUAL = "pytorch_lora_weights.safetensors"
ADAPTER = "lora_adapter_metadata"
PATTERN = re.compile(r"\^?[\w.-]{1,300}\$?")
MEGATRON = ("megatron_core", "megatron.core")  # peft's default, a module that it would import
MAY_BE_TEXT = ("peft_type", "task_type", "bias", "base_model_name_or_path", "revision", "peft_version")


def pin(lora: Lora, hub: Hub) -> PinnedLora:
    """Find the file of a LoRA and vet its header. Raises SourceError, UnsafeError, UnsupportedError, HubError."""
    path = Path(lora.ref)
    if path.is_absolute():
        if not path.is_file():
            raise SourceError(f"the LoRA {shown(path.name)} is gone", hint="look at its path")
        _vet(read_header(path), shown(path.name))
        return PinnedLora(lora.ref, lora.scale, str(path), None, path.stat().st_size)
    repo_id, _, revision = lora.ref.partition("@")
    tree = hub.repository(repo_id, revision or None)
    name = _file(tree)
    _vet(tree.headers([name])[name], f"{shown(name)} of {repo_id}")
    return PinnedLora(repo_id, lora.scale, name, tree.sha, tree.sizes[name], tree.private or tree.gated)


def local(lora: PinnedLora, hub: Hub) -> Path:
    """The LoRA's file on this machine, downloaded where need be. Raises SourceError, HubError."""
    path = Path(lora.file) if lora.sha is None else hub.download(lora.ref, lora.sha, lora.file)
    if not path.is_file() or path.stat().st_size != lora.bytes:
        raise SourceError(f"the LoRA {shown(path.name)} changed since it was inspected", hint="start again")
    return path


def fuse(pipeline: Any, loras: Sequence[tuple[PinnedLora, Path]], progress: Progress) -> None:
    """Add `scale * up @ down` to the weights of a pipeline, one LoRA after the other.

    Raises SourceError where a LoRA matches no layer, or layers of another size.
    """
    for number, (lora, path) in enumerate(loras):
        _vet(header := read_header(path), shown(path.name))
        matched = _fuse(pipeline, lora, path, f"lora{number}")
        modules = lora_modules(header.tensors)
        if not matched:
            raise SourceError(
                f"the LoRA {shown(lora.ref)} matches no layer of this checkpoint",
                hint="it was made for another family; look at the base model on its page",
            )
        if matched < modules:
            progress.note(f"LoRA {shown(lora.ref)}: {matched} of its {modules} layers are in this checkpoint")


def _fuse(pipeline: Any, lora: PinnedLora, path: Path, name: str) -> int:
    """Returns how many layers were changed."""
    parts = [part for part in pipeline._lora_loadable_modules if getattr(pipeline, part, None) is not None]
    with quiet():
        try:
            pipeline.load_lora_weights(
                str(path.parent),
                weight_name=path.name,
                adapter_name=name,
                use_safetensors=True,
                local_files_only=True,
            )
            matched = sum(_layers(getattr(pipeline, part), name) for part in parts)
            if matched:
                pipeline.fuse_lora(components=parts, lora_scale=lora.scale, adapter_names=[name])
        except (OSError, ValueError, RuntimeError, KeyError, IndexError, TypeError, AttributeError) as error:
            reason = shown(" ".join(str(error).split()), 200)
            raise SourceError(
                f"the LoRA {shown(lora.ref)} does not fit this checkpoint: {reason}",
                hint="it was made for another family; look at the base model on its page",
            ) from error
        pipeline.unload_lora_weights()
    return matched


def _layers(module: Any, name: str) -> int:
    from peft.tuners.tuners_utils import BaseTunerLayer

    tuned = (each for each in module.modules() if isinstance(each, BaseTunerLayer))
    return sum(name in getattr(each, "lora_A", {}) for each in tuned)


def _file(tree: Repository) -> str:
    names = tree.inside("")
    found = [name for name in names if name.endswith(".safetensors")]
    if USUAL in found:
        return USUAL
    if len(found) == 1:
        return found[0]
    if found:
        raise SourceError(
            f"the LoRA {tree.repo_id} has {len(found)} files: {', '.join(shown(name, 40) for name in found[:5])}",
            hint="download the one you mean and name the file with --lora",
        )
    pickles = [name for name in names if name.lower().endswith(PICKLES)]
    if pickles:
        raise UnsafeError(
            f"the LoRA {tree.repo_id} is a pickle only ({shown(pickles[0])}), which can run code",
            hint=convert_hint(pickles[0]),
        )
    raise SourceError(f"the LoRA {tree.repo_id} has no .safetensors file", hint="is it a LoRA?")


def _vet(header: Header, where: str) -> None:
    require_lora(header, where)
    if ADAPTER in header.metadata:
        settings = parse_object(header.metadata[ADAPTER].encode(), f"{ADAPTER} of {where}")
        for key, value in settings.items():
            _vet_setting(key.rpartition(".")[2], value, where)


def _vet_setting(key: str, value: Any, where: str) -> None:
    """peft takes these as arguments of its LoraConfig, and reads some of them as regular expressions."""
    if key == "use_dora" and value:
        raise UnsupportedError(f"{where} is a DoRA", hint="only plain LoRAs can be fused (--lora)")
    names = list(value) if isinstance(value, dict | list) else []
    text = isinstance(value, str) and key not in MAY_BE_TEXT and (key, value) != MEGATRON
    if text or not all(isinstance(name, str) and PATTERN.fullmatch(name) for name in names):
        raise UnsafeError(f"{where}: {ADAPTER} sets {shown(key)} to what no LoRA needs", hint="use another file")
