"""The lines that a card shows, and that the check runs: load the variant, draw, save."""

from __future__ import annotations

from collections.abc import Sequence

from sdhub.evidence.given import spelled
from sdhub.evidence.sampling import Sampling


def usage(pipeline: str, loading: Sequence[str], sampling: Sampling) -> str:
    """Python that draws the first prompt of the evidence as the evidence did, into `picture.png`.

    `pipeline`: the class of the checkpoint's. `loading` are a backend's lines that make `pipe`.
    """
    first = sampling.prompts[0]
    before, arguments = spelled(pipeline, sampling.steps, sampling.width, sampling.height)
    return "\n".join(
        [
            "import torch",
            *loading,
            *before,
            "image = pipe(",
            f"    {first.text!r},",
            f"    guidance_scale={sampling.guidance!r},",
            *(f"    {each}," for each in arguments),
            f"    generator=torch.Generator().manual_seed({first.seed}),",
            ").images[0]",
            'image.save("picture.png")',
            "",
        ]
    )
