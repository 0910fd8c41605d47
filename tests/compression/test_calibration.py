"""What calibration collects, against brute force over everything the layers were given."""

import pytest
import torch
from torch import nn

from sdhub.compression.calibration import collect, fitting_block, spread, trajectories
from sdhub.core.errors import BuildError, UsageError

CONVOLUTIONS = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 3, "stride": 2, "padding": 1},
    {"kernel_size": (3, 1), "stride": (1, 2), "padding": (0, 2), "dilation": (2, 1)},
    {"kernel_size": 1},
    {"kernel_size": 3, "groups": 2},
    {"kernel_size": 3, "padding": 1, "groups": 6},
]


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.wide = nn.Linear(12, 20)
        self.narrow = nn.Linear(20, 4)
        self.unused = nn.Linear(3, 3)

    def forward(self, inputs):
        return self.narrow(input=self.wide(inputs))


def hooks(module):
    return sum(len(each._forward_pre_hooks) for each in module.modules())


def runs(net, batches):
    def drive(_):
        for batch in batches:
            net(batch)

    return drive


def test_linear_statistics_are_those_of_all_inputs():
    net, batches = Net(), [normal(3, 50, 12, seed=seed) for seed in range(3)]
    found = collect(net, runs(net, batches), gram=True, gram_rows=None, tokens=40)
    rows = torch.cat(batches).reshape(-1, 12)
    wide = found["wide"]
    assert set(found) == {"wide", "narrow"}
    assert wide.vectors == wide.gram_rows == 450
    assert torch.equal(wide.low, rows.amin(0)) and torch.equal(wide.high, rows.amax(0))
    assert torch.equal(wide.absmax, rows.abs().amax(0))
    assert torch.allclose(wide.mean_square, rows.square().mean(0))
    assert torch.allclose(wide.gram[0], rows.T @ rows, atol=1e-3)
    hidden = net.wide(rows).detach()
    assert torch.allclose(found["narrow"].gram[0], hidden.T @ hidden, atol=1e-3)


@pytest.mark.parametrize("settings", CONVOLUTIONS, ids=str)
def test_convolutions_are_seen_through_their_unfolded_patches(settings):
    conv = nn.Conv2d(6, 12, bias=False, **settings)
    images = normal(2, 6, 9, 8)
    found = collect(conv, runs(conv, [images]), gram=True, gram_rows=None, tokens=1000)[""]
    shape = {
        name: settings.get(name, default) for name, default in (("dilation", 1), ("padding", 0), ("stride", 1))
    }
    patches = nn.functional.unfold(images, conv.kernel_size, **shape).transpose(1, 2).flatten(0, 1)
    width = patches.shape[1] // conv.groups
    expected = [part.T @ part for part in patches.split(width, dim=1)]
    assert len(found.gram) == conv.groups
    assert all(torch.allclose(mine, theirs, atol=1e-3) for mine, theirs in zip(found.gram, expected, strict=True))
    assert sorted(map(tuple, found.tokens.tolist())) == sorted(map(tuple, patches.tolist()))
    assert torch.equal(found.absmax, images.abs().amax((0, 2, 3)))
    assert torch.allclose(found.mean_square, images.square().mean((0, 2, 3)))


@pytest.mark.parametrize("padding, mode", [("same", "zeros"), ("valid", "zeros"), (1, "reflect"), (2, "circular")])
def test_paddings_of_every_kind(padding, mode):
    conv = nn.Conv2d(3, 5, (3, 4), padding=padding, padding_mode=mode, bias=False)
    images = normal(1, 3, 6, 7)
    tokens = collect(conv, runs(conv, [images]), tokens=1000)[""].tokens
    mine = (tokens @ conv.weight.flatten(1).T).detach()
    theirs = conv(images).detach()[0].flatten(1).T
    assert torch.allclose(mine.sort(0).values, theirs.sort(0).values, atol=1e-5)


def test_a_wide_layer_gets_diagonal_blocks_within_the_bound():
    layer = nn.Linear(100, 4)
    rows = normal(64, 100)
    found = collect(layer, runs(layer, [rows]), gram=True, gram_rows=None, block=32)[""]
    whole, start = rows.T @ rows, 0
    assert [len(block) for block in found.gram] == [25, 25, 25, 25]
    assert 4 * sum(block.numel() for block in found.gram) <= 4 * 100 * 32
    for block in found.gram:
        end = start + len(block)
        assert torch.allclose(block, whole[start:end, start:end], atol=1e-3)
        start = end


def test_blocks_do_not_cross_groups():
    conv = nn.Conv2d(8, 8, 3, groups=2)
    found = collect(conv, runs(conv, [normal(1, 8, 6, 6)]), gram=True, block=30)[""]
    assert [len(block) for block in found.gram] == [18, 18, 18, 18]


def test_the_fitting_block_is_the_widest_within_the_budget():
    net = nn.Sequential(nn.Linear(1000, 2), nn.Linear(100, 2))
    assert fitting_block(net, 4 * (1000**2 + 100**2)) >= 1000
    block = fitting_block(net, 4 * (2 * 500**2 + 100**2))
    assert block == 512
    assert fitting_block(net, 1 << 40, ["1"]) >= 100
    with pytest.raises(UsageError, match="exceed"):
        fitting_block(net, 1000)


def test_only_some_rows_of_a_call_enter_the_gram_matrix():
    layer = nn.Linear(5, 5)
    batches = [normal(300, 5, seed=1), normal(10, 5, seed=2)]
    found = collect(layer, runs(layer, batches), gram=True, gram_rows=100)[""]
    assert found.gram_rows == 110
    assert torch.allclose(found.gram[0] / 110, torch.eye(5), atol=0.5)


def test_the_sample_is_even_over_all_calls_and_without_repetition():
    layer = nn.Linear(1, 1)
    batches = [torch.arange(start, start + 1000.0)[:, None] for start in range(0, 8000, 1000)]
    sample = collect(layer, runs(layer, batches), tokens=800)[""].tokens[:, 0]
    assert len(sample.unique()) == len(sample) == 800
    assert ((sample // 1000).histc(8, 0, 8) - 100).abs().max() < 40
    short = collect(layer, runs(layer, batches[:1]), tokens=5000)[""].tokens
    assert torch.equal(short.sort(0).values, batches[0])


def test_same_seed_same_bits_whatever_else_is_recorded():
    net, batches = Net(), [normal(500, 12, seed=seed) for seed in range(2)]
    drive = runs(net, batches)
    first = collect(net, drive, gram=True, gram_rows=64, tokens=16, seed=7)
    again = collect(net, drive, ["narrow"], gram=True, gram_rows=64, tokens=16, seed=7)["narrow"]
    other = collect(net, drive, gram=True, gram_rows=64, tokens=16, seed=8)["narrow"]
    assert torch.equal(first["narrow"].tokens, again.tokens)
    assert torch.equal(first["narrow"].gram[0], again.gram[0])
    assert not torch.equal(first["narrow"].tokens, other.tokens)


def test_layers_and_gram_matrices_are_chosen_by_name_or_predicate():
    net = Net()
    drive = runs(net, [normal(4, 12)])
    assert set(collect(net, drive, ["wide"])) == {"wide"}
    assert set(collect(net, drive, lambda _, layer: layer.out_features == 4)) == {"narrow"}
    found = collect(net, drive, gram=lambda name, _: name == "wide", tokens=0)
    assert found["wide"].gram is not None and found["narrow"].gram is None
    assert found["wide"].tokens.shape == (0, 12)
    with pytest.raises(UsageError, match="nowhere"):
        collect(net, drive, ["nowhere"])


def test_hooks_are_gone_afterwards_and_off_in_between():
    net, seen = Net(), []

    def drive(record):
        seen.append(hooks(net))
        net(normal(2, 12))
        record(False)
        seen.append(hooks(net))
        net(normal(5, 12))
        record(True)
        record(True)
        seen.append(hooks(net))

    found = collect(net, drive)
    assert seen == [3, 0, 3]
    assert found["wide"].vectors == 2
    assert hooks(net) == 0


def test_hooks_are_gone_when_the_drive_fails():
    net = Net()

    def drive(_):
        raise KeyError("broken")

    with pytest.raises(KeyError):
        collect(net, drive)
    assert hooks(net) == 0


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_inputs_that_are_not_finite_are_refused_by_name(value):
    net = Net()
    batch = normal(4, 12)
    batch[1, 3] = value
    with pytest.raises(BuildError, match="wide"):
        collect(net, runs(net, [batch]))
    assert hooks(net) == 0


def test_half_precision_inputs_are_summed_in_float32():
    layer = nn.Linear(4, 4).to(torch.bfloat16)
    rows = (100 * normal(5000, 4)).to(torch.bfloat16)
    found = collect(layer, runs(layer, [rows]), gram=True, gram_rows=None)[""]
    exact = rows.double()
    assert torch.allclose(found.gram[0].double(), exact.T @ exact, rtol=1e-4, atol=100)
    assert torch.allclose(found.mean_square.double(), exact.square().mean(0), rtol=1e-5)


def test_empty_calls_count_for_nothing():
    layer = nn.Linear(4, 4)
    assert collect(layer, runs(layer, [torch.empty(0, 4)]), gram=True) == {}


def test_steps_are_spread_evenly():
    assert spread(20, 3) == (0, 10, 19)
    assert all(len(set(spread(20, count))) == count for count in range(1, 21))
    assert spread(5, 9) == (0, 1, 2, 3, 4)
    assert spread(9, 1) == (4,)


class Pipe:
    """Diffusers' calling convention with a denoiser of one layer, called once a step with its own index."""

    def __init__(self):
        self.layer, self._interrupt, self.calls = nn.Linear(1, 1), False, []

    def set_progress_bar_config(self, **_):
        pass

    def __call__(self, prompt, num_inference_steps, generator, callback_on_step_end, **given):
        self._interrupt = False
        for step in range(num_inference_steps):
            if self._interrupt:
                continue
            self.calls.append(
                (prompt, step, generator.initial_seed(), given["guidance_scale"], given.get("width"))
            )
            self.layer(torch.full((1, 1), float(step + 1)))
            callback_on_step_end(self, step, 0, {})


def test_trajectories_record_the_kept_steps_and_stop_after_the_last():
    pipe, told = Pipe(), []
    drive = trajectories(
        pipe,
        ["a", "b"],
        [5, 6],
        steps=9,
        guidance=3.0,
        keep=(1, 4),
        given={"width": 64, "height": 32},
        on_step=lambda *done: told.append(done),
    )
    found = collect(pipe.layer, drive, tokens=100)[""]
    assert sorted(found.tokens[:, 0].tolist()) == [2, 2, 5, 5]
    assert pipe.calls == [(text, step, seed, 3.0, 64) for text, seed in (("a", 5), ("b", 6)) for step in range(5)]
    assert told == [(done, 10) for done in range(1, 11)]


def test_steps_and_seeds_that_do_not_fit_are_refused():
    for keep in ((9,), (-1,), ()):
        with pytest.raises(UsageError, match="9 steps"):
            trajectories(Pipe(), ["a"], [1], steps=9, guidance=1.0, keep=keep)
    with pytest.raises(UsageError, match="seeds"):
        trajectories(Pipe(), ["a"], [1, 2], steps=9, guidance=1.0)


def test_the_built_in_checkpoint_end_to_end():
    from diffusers import StableDiffusionPipeline

    from sdhub.demo import emoji_sd

    pipe = StableDiffusionPipeline.from_pretrained(emoji_sd(), torch_dtype=torch.float32)
    names = ["down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q", "down_blocks.0.resnets.0.conv1"]
    drive = trajectories(pipe, ["pizza", "frog"], [1, 2], steps=3, guidance=4.0, keep=(0, 2))
    seen = []
    handle = pipe.unet.get_submodule(names[0]).register_forward_pre_hook(
        lambda _, args: seen.append(args[0].clone())
    )
    found = collect(pipe.unet, drive, names, gram=True, gram_rows=None, tokens=32)
    handle.remove()
    assert len(seen) == 6
    rows = torch.cat([seen[index] for index in (0, 2, 3, 5)]).flatten(0, 1)
    linear, conv = (found[name] for name in names)
    assert linear.vectors == linear.gram_rows == len(rows)
    assert torch.allclose(linear.gram[0], rows.T @ rows, rtol=1e-4, atol=1e-2)
    assert torch.equal(linear.absmax, rows.abs().amax(0))
    assert conv.gram[0].shape == (9 * len(conv.absmax),) * 2
    again = collect(pipe.unet, drive, names, gram=True, gram_rows=None, tokens=32)
    for name in names:
        for field in ("low", "high", "mean_square", "tokens"):
            assert torch.equal(getattr(found[name], field), getattr(again[name], field))
        assert torch.equal(found[name].gram[0], again[name].gram[0])
    assert hooks(pipe.unet) == 0
