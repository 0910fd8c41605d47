"""What a pipeline is given besides a prompt, so that every kind of pipeline can be sampled from prompts alone.

Text-to-image takes a size. An inpainting pipeline is given a picture that is masked all over, and draws the whole.
An image-to-image pipeline, a refiner among them, changes a picture by half: of a schedule of 2 n steps it runs n.
The picture is Pillow's radial gradient, which is the same everywhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

STRENGTH = 0.5
Kind = Literal["text", "mask", "picture"]


def kind_of(pipeline: str) -> Kind:
    """What the pipeline class of this name draws from; optimum-intel's are named alike."""
    if "Inpaint" in pipeline:
        return "mask"
    return "picture" if "Img2Img" in pipeline else "text"


def given(pipe: Any, steps: int, width: int, height: int) -> Mapping[str, Any]:
    """Arguments of a call that runs the denoiser `steps` times at `width` x `height` pixels."""
    kind = kind_of(type(pipe).__name__)
    size = {"width": width, "height": height}
    if kind == "text":
        return {"num_inference_steps": steps, **size}

    from PIL import Image

    picture = Image.radial_gradient("L").resize((width, height)).convert("RGB")
    if kind == "picture":
        return {"num_inference_steps": round(steps / STRENGTH), "image": picture, "strength": STRENGTH}
    mask = Image.new("L", (width, height), 255)
    return {"num_inference_steps": steps, "image": picture, "mask_image": mask, "strength": 1.0, **size}


def spelled(pipeline: str, steps: int, width: int, height: int) -> tuple[list[str], list[str]]:
    """The same as Python: lines that go before the call, and arguments of it."""
    kind = kind_of(pipeline)
    size = [f"width={width}", f"height={height}"]
    if kind == "text":
        return [], [f"num_inference_steps={steps}", *size]
    picture = f'picture = Image.radial_gradient("L").resize(({width}, {height})).convert("RGB")'
    lines = ["from PIL import Image", "", picture]
    if kind == "picture":
        count = round(steps / STRENGTH)
        return lines, [f"num_inference_steps={count}", "image=picture", f"strength={STRENGTH}"]
    lines.append(f'everything = Image.new("L", ({width}, {height}), 255)')
    fixed = ["image=picture", "mask_image=everything", "strength=1.0"]
    return lines, [f"num_inference_steps={steps}", *fixed, *size]
