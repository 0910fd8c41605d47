"""A pipeline as diffusers saves it, with components whose weights are in a format of their own.

The folder is what plain `from_pretrained` loads: `model_index.json`, and for every such component a `config.json`
with `quantization_config` beside its safetensors files.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdhub.backends.variant.beside import load_beside
from sdhub.checkpoint.headers import read_header
from sdhub.checkpoint.known import CLASSES, STEMS
from sdhub.checkpoint.safety import COMPONENT, is_model
from sdhub.checkpoint.vocabulary import write_bpe_files
from sdhub.core.documents import parse_object, shown
from sdhub.core.errors import BuildError, MissingExtraError, SdhubError
from sdhub.core.foreign import translate_errors
from sdhub.core.quiet import quiet

if TYPE_CHECKING:
    import torch

INDEX, CONFIG = "model_index.json", "config.json"
MAX_CONFIG = 2**20 * 16

Decode = Callable[[Any, Mapping[str, Any], Mapping[str, "torch.Tensor"]], dict[str, "torch.Tensor"]]


def stem_of(module: Any) -> str:
    """The name of a component's weight file without its ending."""
    return STEMS["diffusers" if hasattr(module, "register_to_config") else "transformers"]


def write_config(module: Any, folder: Path, quantization: Mapping[str, Any] | None) -> None:
    """The component's own config with its `quantization_config`, if it has one."""
    with quiet():
        if hasattr(module, "register_to_config"):
            module.save_config(folder)
        else:
            module.config.save_pretrained(folder)
    path = folder / CONFIG
    document = json.loads(path.read_text(encoding="utf-8"))
    if quantization is not None:
        document["quantization_config"] = dict(quantization)
    path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n", encoding="utf-8")


def write_rest(
    pipeline: Any, out: Path, dtypes: Mapping[str, torch.dtype], *, left_out: Collection[str] = ()
) -> None:
    """Save everything but the components that have their folder in `out` already, and those `left_out`.

    `dtypes`: what the weights of each are saved in. Raises BuildError.
    """
    # A card's lines draw without it, and it would be a pickle's successor of half a gigabyte.
    if "safety_checker" in pipeline.components:
        pipeline.register_modules(safety_checker=None)
        pipeline.register_to_config(requires_safety_checker=False)
    try:
        with quiet():
            for name, part in pipeline.components.items():
                done = name in left_out or (out / name).exists()
                if part is None or not hasattr(part, "save_pretrained") or done:
                    continue
                if name in dtypes:
                    part.to(dtypes[name])
                    part.save_pretrained(out / name, safe_serialization=True)
                    prove_saved(part, out / name)
                else:
                    part.save_pretrained(out / name)
            pipeline.save_config(out)
    except (OSError, ValueError, RuntimeError, TypeError, KeyError, AttributeError) as error:
        raise BuildError(f"the pipeline could not be saved: {' '.join(str(error).split())[:300]}") from error
    for tokenizer in sorted(out.glob("tokenizer*")):
        write_bpe_files(tokenizer)


def prove_saved(module: Any, folder: Path) -> None:
    """Load a component again as its library does, and compare it with the one in memory.

    Raises BuildError that names the first tensor that is missing, not its own, or another.
    """
    loaded, report = type(module).from_pretrained(
        str(folder),
        torch_dtype=module.dtype,
        local_files_only=True,
        use_safetensors=True,
        output_loading_info=True,
    )
    for fault in ("missing_keys", "unexpected_keys", "mismatched_keys", "error_msgs"):
        if found := sorted(str(each) for each in report.get(fault) or ()):
            raise BuildError(f"{folder.name} was not saved whole: {fault.split('_')[0]} {shown(found[0], 120)}")
    ours, theirs = module.state_dict(), loaded.state_dict()
    for name in sorted(set(ours) | set(theirs)):
        if name not in ours or name not in theirs or not _same(ours[name].cpu(), theirs[name]):
            said = f"{shown(name, 120)} is another when loaded again"
            raise BuildError(f"{folder.name} was not saved whole: {said}")


def _same(one: torch.Tensor, other: torch.Tensor) -> bool:
    import torch

    return bool(one.dtype == other.dtype and torch.equal(one, other))


def prove_written(
    module: Any,
    folder: Path,
    layers: Collection[str],
    replaced: Collection[str],
    wanted: Callable[[str], torch.Tensor],
    tied: Collection[str],
) -> None:
    """Hold the files of a component against its config and what was to be written.

    Beside tensors of the `layers` in a format of their own, which have none of their `replaced` parameters, the
    files have every tensor that the config's class has, but the second names of `tied` ones, each as `wanted`
    gives it, and no other. Raises BuildError naming the first that is not so.
    """
    import torch

    library = "diffusers" if hasattr(module, "register_to_config") else "transformers"
    with quiet(), torch.device("meta"):
        own = blank(library, type(module).__name__, document(folder / CONFIG))
    gone = {f"{layer}.{key}" for layer in layers for key in replaced}
    expected = dict(own.state_dict())
    left = set(expected) - gone - set(tied)
    for name, tensor in tensors_of(shards(folder, library)):
        if name.rpartition(".")[0] in layers:
            left.discard(name)
            continue
        if name not in expected or tensor.shape != expected[name].shape:
            raise BuildError(f"{folder.name}: {shown(name, 120)} is not of its config")
        given = wanted(name)
        if not _same(tensor, given):
            raise BuildError(f"{folder.name}: {shown(name, 120)} was not written as it is")
        left.discard(name)
    if left:
        raise BuildError(f"{folder.name}: {shown(min(left), 120)} is missing")


def quantized_parts(folder: Path, method: str) -> dict[str, Mapping[str, Any]]:
    """The `quantization_config` of each component of a pipeline folder that has one of this `quant_method`."""
    found: dict[str, Mapping[str, Any]] = {}
    for name, entry in _index(folder).items():
        if not _is_component(entry) or COMPONENT.fullmatch(name) is None:
            continue
        path = folder / name / CONFIG
        if path.is_file():
            quantization = document(path).get("quantization_config")
            if isinstance(quantization, dict) and quantization.get("quant_method") == method:
                found[name] = quantization
    return found


def recognizes(folder: Path, method: str) -> bool:
    """Whether `folder` is a pipeline with components of this `quant_method`."""
    try:
        return (folder / INDEX).is_file() and bool(quantized_parts(folder, method))
    except SdhubError:
        return False


def open_pipeline(folder: Path, method: str, decode: Decode) -> Any:
    """The pipeline in float32, its quantized components by way of `decode`.

    `decode(module, quantization_config, tensors)` gives the state of `module` (built from its config, its weights
    on the meta device), in which it may replace layers, from what the files hold. Nothing but classes that sdhub
    knows is loaded. Raises BuildError, MissingExtraError.
    """
    found = quantized_parts(folder, method)
    return assembled(
        folder, {name: partial(_component, folder / name, said, decode) for name, said in found.items()}
    )


def assembled(folder: Path, made: Mapping[str, Callable[[str, str], Any]]) -> Any:
    """The pipeline in float32, some components by functions of their library and class.

    Nothing but classes that sdhub knows is loaded. Raises BuildError, MissingExtraError.
    """
    with quiet():
        try:
            import diffusers
            import torch
            import transformers  # noqa: F401
        except ImportError as error:
            raise MissingExtraError("torch", error.name or "diffusers") from None
    index = _index(folder)
    for name, entry in index.items():
        if _is_component(entry) and entry[1] not in CLASSES.get(entry[0], ()):
            raise BuildError(f"{folder.name}: {name} is of the unknown class {shown(entry[1], 60)}")
    parts = {name: make(*index[name]) for name, make in made.items() if _is_component(index.get(name))}
    for name, entry in index.items():
        if name not in parts and _is_component(entry) and is_model(*entry):
            _require_whole(folder / name, *entry)
    parts |= load_beside(folder)
    named = str(index.get("_class_name"))
    kind = getattr(diffusers, named, None)
    if not (isinstance(kind, type) and issubclass(kind, diffusers.DiffusionPipeline)):
        raise BuildError(f"{folder.name}: diffusers has no pipeline {shown(named, 60)}")
    try:
        with quiet():
            loader: Any = kind
            pipeline = loader.from_pretrained(
                str(folder), torch_dtype=torch.float32, local_files_only=True, use_safetensors=True, **parts
            )
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{folder.name} does not load: {' '.join(str(error).split())[:300]}") from error
    return pipeline


def _require_whole(folder: Path, library: str, class_name: str) -> None:
    """Raises BuildError where files have fewer numbers than the config asks for: libraries fill in random ones."""
    import torch

    with quiet(), torch.device("meta"), translate_errors(f"{folder.name} does not load", BuildError):
        module = blank(library, class_name, document(folder / CONFIG))
    wanted = sum(parameter.numel() for parameter in module.parameters())
    files = [path for path in shards(folder, library) if path.is_file()]
    there = sum(tensor.elements for path in files for tensor in read_header(path).tensors.values())
    if there < wanted:
        raise BuildError(f"the weights of {folder.name} are incomplete: {there} of {wanted} numbers")


def _component(
    folder: Path, quantization: Mapping[str, Any], decode: Decode, library: str, class_name: str
) -> Any:
    config = document(folder / CONFIG)
    return filled(
        folder.name,
        library,
        class_name,
        config,
        lambda module: decode(module, quantization, dict(tensors_of(shards(folder, library)))),
    )


def filled(
    name: str,
    library: str,
    class_name: str,
    config: dict[str, Any],
    fill: Callable[[Any], Mapping[str, torch.Tensor]],
) -> Any:
    """A component in float32: `fill` gives the state of the one of this config, in which it may replace layers.

    Raises BuildError for a state that is not whole, or more.
    """
    from accelerate import init_empty_weights

    try:
        with quiet(), init_empty_weights(include_buffers=False):
            module = blank(library, class_name, config)
        state = fill(module)
        module.load_state_dict({name: each.float() for name, each in state.items()}, strict=False, assign=True)
        if hasattr(module, "tie_weights"):
            module.tie_weights()
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, AttributeError) as error:
        raise BuildError(f"{name} does not load: {' '.join(str(error).split())[:300]}") from error
    missing = [each for each, parameter in module.named_parameters() if parameter.is_meta]
    surplus = sorted(set(state) - set(module.state_dict()))
    if missing or surplus:
        raise BuildError(f"{name}: {(missing or surplus)[0]} is {'missing' if missing else 'not its own'}")
    return module.eval().requires_grad_(False)


def blank(library: str, class_name: str, document: dict[str, Any]) -> Any:
    """The component with no weights."""
    document.pop("quantization_config", None)
    if library == "diffusers":
        import diffusers

        return getattr(diffusers, class_name).from_config(document)
    import transformers

    kind = getattr(transformers, class_name)
    return kind(kind.config_class.from_dict(document))


def shards(folder: Path, library: str) -> list[Path]:
    """The safetensors files of a component's folder. Raises BuildError for a name that leads out of it."""
    stem = STEMS[library]
    index = folder / f"{stem}.safetensors.index.json"
    names = [f"{stem}.safetensors"]
    if index.is_file():
        names = sorted({str(name) for name in document(index)["weight_map"].values()})
    for name in names:
        if "/" in name or "\\" in name:
            raise BuildError(f"{folder.name}: {shown(name, 60)} lies outside")
    return [folder / name for name in names]


def tensors_of(paths: Iterable[Path]) -> Iterator[tuple[str, torch.Tensor]]:
    """Names and tensors of safetensors files."""
    from safetensors import safe_open

    for path in paths:
        with safe_open(str(path), framework="pt") as file:
            for key in file.keys():  # noqa: SIM118 — no mapping
                yield key, file.get_tensor(key)


def _index(folder: Path) -> dict[str, Any]:
    return document(folder / INDEX)


def _is_component(entry: Any) -> bool:
    return isinstance(entry, list) and len(entry) == 2 and entry[0] is not None


def document(path: Path) -> dict[str, Any]:
    """A config file. Raises BuildError, SourceError."""
    try:
        if path.stat().st_size > MAX_CONFIG:
            raise BuildError(f"{path.name} is too large")
        return dict(parse_object(path.read_bytes(), path.name))
    except OSError as error:
        raise BuildError(f"{path}: {error.strerror}") from None
