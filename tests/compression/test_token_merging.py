"""Token merging, against plain loops, attention over equal tokens, and what OpenVINO makes of it."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from sdhub.compression.token_merging import MergingAttnProcessor, TokenMerging
from sdhub.core.errors import UsageError
from tests.exact import EXACT

SHAPES = [
    (4, 4, 0.5),
    (5, 7, 0.4),
    (2, 6, 0.25),
    (1, 5, 0.2),
    (3, 1, 0.75),
    (6, 6, 0.75),
    (4, 6, 0.0),
    (1, 1, 0.5),
]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def groups_in_loops(image, width, count):
    """The groups of tokens (C,) of `image` after `count` merges, in the order of their destinations."""

    def cosine(a, b):
        return float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))

    corners = [t for t in range(len(image)) if t // width % 2 == 0 and t % width % 2 == 0]
    matches = []
    for token in set(range(len(image))) - set(corners):
        likeness, corner = max((cosine(image[token], image[corner]), corner) for corner in corners)
        matches.append((likeness, token, corner))
    groups = {token: [token] for token in range(len(image))}
    for _, token, corner in sorted(matches, reverse=True)[:count]:
        groups[corner] += groups.pop(token)
    return list(groups.values())


@pytest.mark.parametrize(("height", "width", "ratio"), SHAPES)
def test_merging_is_what_loops_say(height, width, ratio):
    x, values = random(2, height * width, 8), random(2, height * width, 3, seed=1)
    merging = TokenMerging(height, width, ratio)
    slots = merging.slots(x)
    merged, back = merging.merge(values, slots), merging.unmerge(merging.merge(values, slots), slots)
    assert merged.shape == (2, merging.remaining, 3)
    for image in range(2):
        groups = groups_in_loops(x[image].double(), width, merging.merged)
        assert len(groups) == merging.remaining
        for slot, group in enumerate(groups):
            mean = values[image, group].mean(0)
            assert torch.allclose(merged[image, slot], mean, atol=1e-6)
            assert torch.allclose(back[image, group], mean.expand(len(group), -1), atol=1e-6)


@pytest.mark.parametrize(("height", "width"), [(6, 8), (5, 7), (1, 4)])
def test_tokens_equal_in_their_cells_come_back(height, width):
    cells = random(1, -(-height // 2), -(-width // 2), 16)
    x = cells.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)[:, :height, :width].reshape(1, -1, 16)
    merging = TokenMerging(height, width, 0.75)
    slots = merging.slots(x)
    assert torch.allclose(merging.merge(x, slots), cells.reshape(1, -1, 16), atol=1e-6)
    assert torch.allclose(merging.unmerge(merging.merge(x, slots), slots), x, atol=1e-6)


@settings(max_examples=60, deadline=None)
@given(
    height=st.integers(1, 7),
    width=st.integers(1, 7),
    ratio=st.floats(0, 0.75),
    batch=st.integers(1, 3),
    seed=st.integers(0, 99),
)
def test_slots_partition_the_tokens(height, width, ratio, batch, seed):
    merging = TokenMerging(height, width, ratio)
    x = random(batch, height * width, 4, seed=seed)
    slots = merging.slots(x)
    sources = height * width - -(-height // 2) * -(-width // 2)
    assert merging.merged == min(round(ratio * height * width), sources)
    corners = slots.view(batch, height, width)[:, ::2, ::2].flatten(1)
    for image in range(batch):
        assert slots[image].unique().tolist() == list(range(merging.remaining))
        assert len(set(corners[image].tolist())) == corners.shape[1]
        assert torch.equal(merging.slots(x[image : image + 1])[0], slots[image])
    sizes = torch.zeros(batch, merging.remaining).scatter_add(1, slots, torch.ones(slots.shape))
    merged = merging.merge(x, slots)
    assert torch.allclose((merged * sizes[..., None]).sum(1), x.sum(1), atol=1e-4)
    assert torch.allclose(merging.merge(merging.unmerge(merged, slots), slots), merged, atol=1e-6)
    if not merging.merged:
        assert torch.equal(merged, x)


def test_scale_does_not_matter_and_zeros_do_no_harm():
    merging, x = TokenMerging(6, 6, 0.5), random(1, 36, 8)
    assert torch.equal(merging.slots(x * torch.rand(1, 36, 1) * 10), merging.slots(x))
    x[:, 7:20] = 0
    assert bool(torch.isfinite(merging.merge(x, merging.slots(x))).all())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_neither_overflows_nor_miscounts(dtype):
    merging = TokenMerging(32, 32, 0.75)
    x = torch.full((1, 1024, 4), 1000.0, dtype=dtype)
    merged = merging.merge(x, torch.zeros(1, 1024, dtype=torch.int64))
    assert merged.dtype == dtype and merged[0, 0].tolist() == [1000.0] * 4


class Merge(nn.Module):
    def __init__(self, height, width, ratio):
        super().__init__()
        self.merging = TokenMerging(height, width, ratio)

    def forward(self, x):
        slots = self.merging.slots(x)
        merged = self.merging.merge(x, slots)
        return slots, merged, self.merging.unmerge(merged.relu(), slots)


@pytest.mark.filterwarnings(
    "ignore::DeprecationWarning", "ignore::FutureWarning", "error::torch.jit.TracerWarning"
)
@pytest.mark.parametrize(("height", "width", "ratio"), [(4, 4, 0.5), (5, 7, 0.4), (6, 6, 0.75)])
def test_traced_exported_and_converted_graphs_agree(height, width, ratio):
    import openvino

    module, x, other = (
        Merge(height, width, ratio),
        random(2, height * width, 8),
        random(5, height * width, 8, seed=1),
    )
    traced = torch.jit.trace(module, x)
    exported = torch.export.export(module, (x,), dynamic_shapes={"x": {0: torch.export.Dim("batch", max=8)}})
    exported_module = exported.module()
    compiled = [
        openvino.compile_model(openvino.convert_model(traced, example_input=x), "CPU", EXACT),
        openvino.compile_model(openvino.convert_model(exported), "CPU", EXACT),
    ]
    for tokens in (x, other):
        for each, theirs, ours in zip(range(3), traced(tokens), module(tokens), strict=True):
            assert torch.equal(theirs, ours)
            assert torch.equal(exported_module(tokens)[each], ours)
            for model in compiled:
                assert np.allclose(model(tokens.numpy())[each], ours.numpy(), atol=1e-6)


def attention(channels=16, heads=2):
    from diffusers.models.attention_processor import Attention

    torch.manual_seed(0)
    return Attention(query_dim=channels, heads=heads, dim_head=channels // heads).eval()


@torch.no_grad()
def test_attention_over_equal_tokens_is_attention_over_one_of_each():
    layer, cells = attention(), random(2, 3, 4, 16)
    x = cells.repeat_interleave(2, dim=1).repeat_interleave(2, dim=2).flatten(1, 2)
    plain = layer(x)
    layer.set_processor(MergingAttnProcessor(TokenMerging(6, 8, 0.75), layer.processor))
    assert torch.allclose(layer(x), plain, atol=1e-6)


@torch.no_grad()
def test_the_inner_processor_sees_the_merged_tokens_only():
    layer, x = attention(), random(1, 36, 16)
    plain, inner = layer(x), layer.processor
    merging = TokenMerging(6, 6, 0.4)
    layer.set_processor(MergingAttnProcessor(merging, inner))
    slots = merging.slots(x)
    expected = merging.unmerge(inner(layer, merging.merge(x, slots)), slots)
    assert torch.equal(layer(x), expected) and not torch.allclose(expected, plain, atol=1e-3)
    layer.set_processor(MergingAttnProcessor(TokenMerging(6, 6, 0), inner))
    assert torch.equal(layer(x), plain)


@pytest.mark.filterwarnings("ignore")
@torch.no_grad()
def test_a_merging_attention_layer_runs_in_openvino():
    import openvino

    layer, x = attention(), random(2, 64, 16)
    layer.set_processor(MergingAttnProcessor(TokenMerging(8, 8, 0.5), layer.processor))
    model = openvino.compile_model(openvino.convert_model(layer, example_input=x), "CPU", EXACT)
    assert np.allclose(model(x.numpy())[0], layer(x).numpy(), atol=1e-5)


@torch.no_grad()
def test_a_denoiser_takes_the_processor():
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    unet = UNet2DConditionModel(
        sample_size=8,
        block_out_channels=(16, 32),
        layers_per_block=1,
        norm_num_groups=8,
        cross_attention_dim=8,
        attention_head_dim=2,
        down_block_types=("CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D"),
    ).eval()
    inputs = (random(2, 4, 8, 8), torch.tensor(3.0), random(2, 5, 8))
    plain, state = unet(*inputs).sample, list(unet.state_dict())
    outermost = ("down_blocks.0.", "up_blocks.1.")
    unet.set_attn_processor(
        {
            name: MergingAttnProcessor(TokenMerging(8, 8, 0.5), inner)
            if name.startswith(outermost) and "attn1" in name
            else inner
            for name, inner in unet.attn_processors.items()
        }
    )
    merged = unet(*inputs).sample
    assert not torch.allclose(merged, plain) and list(unet.state_dict()) == state


@pytest.mark.parametrize(
    "wrong",
    [
        lambda: TokenMerging(8, 8, -0.1),
        lambda: TokenMerging(8, 8, 0.8),
        lambda: TokenMerging(8, 8, math.nan),
        lambda: TokenMerging(0, 8, 0.5),
        lambda: TokenMerging(8, 8, 0.5).slots(random(1, 63, 4)),
        lambda: TokenMerging(8, 8, 0.5).slots(random(64, 4)),
        lambda: MergingAttnProcessor(TokenMerging(2, 2, 0.5), None)(None, random(1, 4, 2), random(1, 3, 2)),
        lambda: MergingAttnProcessor(TokenMerging(2, 2, 0.5), None)(
            None, random(1, 4, 2), attention_mask=torch.ones(1, 4)
        ),
    ],
)
def test_what_cannot_merge_is_refused(wrong):
    with pytest.raises(UsageError):
        wrong()
