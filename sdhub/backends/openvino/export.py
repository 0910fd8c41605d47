"""From a diffusers pipeline to optimum-intel's folder: export in 16 bits, then compress part by part."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

from sdhub.checkpoint.checkpoint import Checkpoint
from sdhub.checkpoint.vocabulary import write_bpe_files
from sdhub.errors import BuildError, MissingExtraError, RecipeError
from sdhub.progress import Progress
from sdhub.quiet import quiet
from sdhub.recipes.recipe import Affine, Component, Recipe

MODEL = "openvino_model.xml"


def export(checkpoint: Checkpoint, pipeline: Any, recipe: Recipe, out: Path, progress: Progress) -> None:
    """Build the variant in the empty folder `out`. Raises BuildError, RecipeError."""
    with quiet():
        try:
            import nncf  # noqa: F401
            from optimum.exporters.openvino import export_from_model
            from optimum.intel.openvino.configuration import OVConfig
        except ImportError as error:
            raise MissingExtraError("openvino", error.name or "optimum-intel") from None

    vet_layers(pipeline, recipe)
    # A safety_checker/ folder breaks loading from the Hub: optimum-intel leaves safetensors files out.
    pipeline.register_modules(safety_checker=None)
    pipeline.register_to_config(requires_safety_checker=False)
    with progress.task("tracing and converting"), quiet() as said:
        try:
            export_from_model(pipeline, out, task="text-to-image", ov_config=OVConfig(dtype="fp16"))
        except (RuntimeError, ValueError, TypeError, KeyError, AttributeError) as error:
            raise BuildError(
                f"optimum-intel could not export {checkpoint.id}: {_one_line(error)}",
                hint=_tail(said.getvalue()),
            ) from error
    folders = sorted(path.parent for path in out.glob(f"*/{MODEL}"))
    with progress.task("compressing weights", total=len(folders), unit="parts") as task:
        for folder in folders:
            compress(folder, _component(recipe, folder.name))
            task.advance()
    _write_config(out, recipe, [folder.name for folder in folders])
    _settle_names(out, checkpoint.id)
    for tokenizer in sorted(out.glob("tokenizer*")):
        write_bpe_files(tokenizer)


def vet_layers(pipeline: Any, recipe: Recipe) -> None:
    """Raises RecipeError for a layer that the checkpoint does not have."""
    for name, component in recipe.components.items():
        for layer in component.layers:
            try:
                getattr(pipeline, name).get_submodule(layer)
            except AttributeError:
                raise RecipeError(f"{recipe.name}: {name} has no layer {layer}") from None


def compress(folder: Path, component: Component) -> None:
    """Compress the weights of one exported model in place; layers of the other half of a VAE are not its own."""
    if not isinstance(component.default, Affine):
        return
    import nncf
    import openvino

    with quiet():
        model = openvino.Core().read_model(folder / MODEL)
        names = [operation.get_friendly_name() for operation in model.get_ops()]
        patterns = [
            pattern
            for layer in component.layers
            if any(re.fullmatch(pattern := rf".*__module\.{re.escape(layer)}/.*", name) for name in names)
        ]
        compressed = nncf.compress_weights(
            model, mode=_mode(component.default), ignored_scope=nncf.IgnoredScope(patterns=patterns)
        )
        _save(compressed, folder)


def _save(model: Any, folder: Path) -> None:
    """Beside the old files first: those are still mapped into memory."""
    import openvino

    fresh = folder / "compressed.xml"
    openvino.save_model(model, fresh, compress_to_fp16=True)
    fresh.with_suffix(".bin").replace(folder / "openvino_model.bin")
    fresh.replace(folder / MODEL)


def _mode(treatment: Affine) -> Any:
    import nncf

    modes = nncf.CompressWeightsMode
    return modes.INT8_SYM if treatment.symmetric else modes.INT8_ASYM


def _component(recipe: Recipe, part: str) -> Component:
    return recipe.components["vae" if part.startswith("vae_") else part]


def _write_config(out: Path, recipe: Recipe, parts: list[str]) -> None:
    """`openvino_config.json` as optimum-intel writes it, every part with its precision."""
    from optimum.intel import OVPipelineQuantizationConfig, OVWeightQuantizationConfig
    from optimum.intel.openvino.configuration import OVConfig

    compressed = {
        part: OVWeightQuantizationConfig(bits=8, sym=component.default.symmetric)
        for part in parts
        if isinstance((component := _component(recipe, part)).default, Affine)
    }
    if not compressed:
        config = OVConfig(dtype="fp16")
    else:
        config = OVConfig(quantization_config=OVPipelineQuantizationConfig(compressed))
    with quiet():
        config.save_pretrained(out)


def _settle_names(out: Path, identity: str) -> None:
    """Replace the local paths that libraries write into configs by the checkpoint's own id."""
    for path in sorted(out.rglob("*.json")):
        document = json.loads(path.read_text(encoding="utf-8"))
        if isinstance(document, dict) and "_name_or_path" in document:
            document["_name_or_path"] = identity
            path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def _one_line(error: Exception) -> str:
    return " ".join(str(error).split())[:300] or type(error).__name__


def _tail(text: str) -> str:
    lines = [line for line in text.splitlines() if line.strip()]
    return " ".join(lines[-1:])[:300]
