"""Train a checkpoint like emoji-sd, the one that sdhub ships, from nothing.

    apt-get install fonts-noto-color-emoji
    pip install "sdhub[torch]" emoji
    python examples/train_emoji.py --out emoji-sd
    python examples/train_emoji.py --out emoji-sd --resume        # after an interruption

A text-to-image Stable Diffusion pipeline at 64 x 64 pixels: CLIP text encoder (0.9 M parameters), UNet (16.7 M),
KL autoencoder (0.95 M), DDIM. It learns emoji from their English names: the 1,363 pictures of Noto Color Emoji
(SIL Open Font License 1.1) of one code point, then those that show one thing. Sample: 20 steps, guidance 4.

The 7,000 steps of 32 that emoji-sd had took about 100 minutes on two CPU cores with AVX-512 BF16. A CPU without
AVX-512 trains in float32, and takes longer.

`--out` becomes a diffusers folder with float16 weights; what `--resume` needs lies in its `.training` folder until
training ends. A resumed run draws the numbers that the uninterrupted one would have drawn. Two runs of one seed
differ a little all the same: the trainer of the tokenizer breaks ties between equally frequent pairs by chance.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from diffusers import AutoencoderKL, DDIMScheduler, DDPMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from diffusers.training_utils import EMAModel, compute_snr
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

Parameters, Loss = list[torch.nn.Parameter], Callable[[], Tensor]

FONT = Path("/usr/share/fonts/truetype/noto/NotoColorEmoji.ttf")
FONT_SIZE, CANVAS, SIDE = 109, 136, 64  # the font holds bitmaps of one size: 136 x 128 pixels at 109
TOKENS, MERGES, BEGIN, END = 77, 1708, "<|startoftext|>", "<|endoftext|>"
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
SNR_GAMMA, NAME_DROPOUT, KL_WEIGHT, EMA_DECAY = 5.0, 0.1, 2e-4, 0.999

# Signs, clocks, hands, people and parts of them, by code point or by a word of the name.
NOT_THINGS = (
    *((0x2640, 0x2653), (0x2795, 0x27BF), (0x1F100, 0x1F2FF), (0x1F3C2, 0x1F3C7), (0x1F440, 0x1F450)),
    *((0x1F464, 0x1F487), (0x1F549, 0x1F567), (0x1F645, 0x1F64F), (0x1F6AB, 0x1F6C5), (0x1F90C, 0x1F90F)),
    *((0x1F918, 0x1F91F), (0x1F926, 0x1F93E), (0x1F9B5, 0x1F9DF), (0x1FAC2, 0x1FAC5), (0x1FAF0, 0x1FAF8)),
)
NOT_THING_WORDS = """
    arrow arrows asterisk atom banknote biohazard bookmark bubble building button calendar card chart check
    circle circled cityscape clock collision control crescent cross dancing diamond envelope eyes finger fist
    flag flags folder globe hand hands hole input keycap letters loop mailbox map mark moon mouth no
    numbers off page palm people person place railway ruler salute santa sign signal skier speaker speech
    spiral square station suit symbol thought tongue traffic tray triangle voltage warning water wheel woman yin
"""


@dataclass(frozen=True)
class Stage:
    """A stretch of training. The one-cycle learning rate is planned for `planned` steps and cut off at `steps`."""

    name: str
    steps: int
    planned: int
    batch: int
    peak_lr: float
    mirrored: float


def main() -> None:
    args = parse_arguments()
    check_folder(args.out, resume=args.resume)
    torch.manual_seed(args.seed)
    names, pictures, things = draw_emoji(args.font)
    print(f"{len(names)} pictures, {int(things.sum())} of one thing; on {args.device}", file=sys.stderr)
    (args.out / ".training").mkdir(parents=True, exist_ok=True)
    if not (args.out / "tokenizer").is_dir():
        train_tokenizer(names, args.out / "tokenizer")
    run = Run(args)
    if args.resume:
        run.restore()
    autoencoder, everything, one_thing = stages(args.steps, args.batch)
    run.train(autoencoder, list(run.vae.parameters()), lambda: autoencoder_loss(run, autoencoder, pictures))
    latents = encode(run, pictures)
    run.train(everything, run.ema_parameters, lambda: denoising_loss(run, everything, latents, names), run.ema)
    part, chosen = latents[:, things], [names[number] for number in things.nonzero().flatten()]
    run.train(one_thing, run.ema_parameters, lambda: denoising_loss(run, one_thing, part, chosen), run.ema)
    save_pipeline(run, args.out)


def parse_arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description="Train a checkpoint like emoji-sd from nothing.")
    parser.add_argument("--out", type=Path, required=True, help="folder of the checkpoint")
    parser.add_argument("--steps", type=int, default=7000, help="of the UNet; the autoencoder takes 3/14 of it")
    parser.add_argument("--batch", type=int, default=32, help="pictures a step; the autoencoder takes 3/4 of it")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--font", type=Path, default=FONT, help="NotoColorEmoji.ttf")
    parser.add_argument("--resume", action="store_true", help="go on where an interrupted run left off")
    parser.add_argument("--save-every", type=int, default=250, metavar="STEPS", help="between saved states")
    args = parser.parse_args()
    if args.steps < 7 or args.batch < 2 or args.save_every < 1:
        parser.error("--steps is at least 7, --batch 2, --save-every 1")
    return args


def check_folder(out: Path, *, resume: bool) -> None:
    state = out / ".training" / "state.pt"
    if resume and not state.is_file():
        sys.exit(f"{out} has no saved state to resume from; begin anew without --resume")
    if not resume and out.exists() and any(out.iterdir()):
        sys.exit(f"{out} is not empty; choose another folder" + (", or use --resume" if state.is_file() else ""))


def stages(steps: int, batch: int) -> tuple[Stage, Stage, Stage]:
    """The autoencoder; then text encoder and UNet on all pictures, then on those of one thing."""
    autoencoder, first = round(steps * 3 / 14), round(steps * 3 / 7)
    return (
        Stage("autoencoder", autoencoder, autoencoder, batch * 3 // 4, 1.5e-3, 0.5),
        Stage("all pictures", first, 2 * first, batch, 7e-4, 0.1),
        Stage("one thing each", steps - first, steps - first, batch, 6e-4, 0.03),
    )


def draw_emoji(path: Path) -> tuple[list[str], Tensor, Tensor]:
    """Names, pictures (N, 3, 64, 64) uint8, whether it is one thing (N): of U+2300 and up, what the font draws."""
    try:
        from emoji import EMOJI_DATA, STATUS
    except ImportError:
        sys.exit("the names of the emoji are missing; get them with: pip install emoji")
    if not path.is_file():
        sys.exit(f"{path} is missing; install it (apt-get install fonts-noto-color-emoji) or use --font")
    font = ImageFont.truetype(str(path), FONT_SIZE)
    names, pictures, things = [], [], []
    for char, about in sorted(EMOJI_DATA.items()):
        if len(char) > 1 or char < "\u2300" or about["status"] == STATUS["component"]:
            continue
        picture = Image.new("RGB", (CANVAS, CANVAS), "white")
        ImageDraw.Draw(picture).text((0, 4), char, font=font, embedded_color=True)
        if picture.getextrema() == ((255, 255),) * 3:
            continue
        names.append(re.sub("[_-]", " ", about["en"].strip(":")).lower())
        small = picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS)
        pictures.append(torch.from_numpy(np.array(small)).permute(2, 0, 1))
        things.append(is_thing(char, names[-1]))
    return names, torch.stack(pictures), torch.tensor(things)


def is_thing(char: str, name: str) -> bool:
    if any(first <= ord(char) <= last for first, last in NOT_THINGS):
        return False
    return not set(NOT_THING_WORDS.split()) & set(name.split())


def train_tokenizer(names: Iterable[str], folder: Path) -> None:
    """Write a CLIP tokenizer: 256 bytes, the same at the end of a word, the merges learnt here, begin and end."""
    from tokenizers import Regex, Tokenizer, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE(end_of_word_suffix="</w>"))
    words = pre_tokenizers.Split(Regex(r"[a-z]+|[0-9]|[^\sa-z0-9]+"), "removed", invert=True)
    as_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, as_bytes])
    alphabet = sorted(as_bytes.alphabet())
    trainer = trainers.BpeTrainer(
        vocab_size=512 + MERGES, initial_alphabet=alphabet, end_of_word_suffix="</w>", show_progress=False
    )
    tokenizer.train_from_iterator(names, trainer)
    merges = json.loads(tokenizer.to_str())["model"]["merges"][:MERGES]
    tokens = [*alphabet, *(char + "</w>" for char in alphabet), *("".join(pair) for pair in merges), BEGIN, END]
    folder.mkdir()
    vocabulary = {token: number for number, token in enumerate(tokens)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    lines = ["#version: 0.2", *(" ".join(pair) for pair in merges)]
    (folder / "merges.txt").write_text("\n".join(lines) + "\n", encoding="utf-8")


def new_vae() -> AutoencoderKL:
    return AutoencoderKL(
        block_out_channels=(32, 64, 64),
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        layers_per_block=1,
        latent_channels=4,
        norm_num_groups=16,
        sample_size=SIDE,
    )


def new_unet() -> UNet2DConditionModel:
    """Every linear layer of its transformers is a multiple of 128 wide, so that all 4-bit formats apply."""
    return UNet2DConditionModel(
        sample_size=SIDE // 4,
        block_out_channels=(128, 256),
        down_block_types=("CrossAttnDownBlock2D",) * 2,
        up_block_types=("CrossAttnUpBlock2D",) * 2,
        layers_per_block=1,
        cross_attention_dim=128,
        attention_head_dim=(4, 8),  # counts of heads, in spite of its name: heads of 32
        use_linear_projection=True,
    )


def new_text_encoder(tokenizer: CLIPTokenizer) -> CLIPTextModel:
    return CLIPTextModel(
        CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=128,
            intermediate_size=512,
            projection_dim=128,
            num_hidden_layers=3,
            num_attention_heads=4,
            max_position_embeddings=TOKENS,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )
    )


class Run:
    """The models, all that training changes, and the numbers it draws."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.device = torch.device(args.device)
        self.tokenizer = CLIPTokenizer.from_pretrained(args.out / "tokenizer", model_max_length=TOKENS)
        self.vae, self.unet, self.text_encoder = new_vae(), new_unet(), new_text_encoder(self.tokenizer)
        for module in (self.vae, self.unet, self.text_encoder):
            module.to(self.device)
        self.ema_parameters = [*self.unet.parameters(), *self.text_encoder.parameters()]
        self.ema = EMAModel(self.ema_parameters, decay=EMA_DECAY)
        self.noise_schedule = DDPMScheduler(**BETAS)
        self.generator = torch.Generator().manual_seed(args.seed)
        self.words = random.Random(args.seed)
        self.settings = {name: getattr(args, name) for name in ("steps", "batch", "seed")}
        self.save_every, self.state_file = args.save_every, args.out / ".training" / "state.pt"
        self.done: dict[str, int] = {}
        self.optimizing: list[dict[str, object]] = []

    def noise(self, shape: Sequence[int]) -> Tensor:
        return torch.randn(shape, generator=self.generator).to(self.device)

    def pick(self, count: int, below: int) -> Tensor:
        return torch.randint(below, (count,), generator=self.generator)

    def mirror(self, stage: Stage) -> bool:
        return bool(torch.rand((), generator=self.generator) < stage.mirrored)

    def train(self, stage: Stage, parameters: Parameters, loss_of: Loss, ema: EMAModel | None = None) -> None:
        """Take the steps of the stage that are not done yet."""
        start = self.done.get(stage.name, 0)
        if start == stage.steps:
            return
        optimizer = torch.optim.AdamW(parameters, lr=stage.peak_lr)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, stage.peak_lr, total_steps=stage.planned + 1)
        if start:
            optimizer.load_state_dict(self.optimizing[0])
            schedule.load_state_dict(self.optimizing[1])
        report = Report(stage, start)
        for step in range(start + 1, stage.steps + 1):
            with torch.autocast(self.device.type, dtype=torch.bfloat16, enabled=fast_bfloat16(self.device)):
                loss = loss_of()
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            torch.nn.utils.clip_grad_norm_(parameters, 1.0)
            optimizer.step()
            schedule.step()
            if ema:
                ema.step(parameters)
            report.step(step, loss)
            if step % self.save_every == 0 or step == stage.steps:
                self.done[stage.name] = step
                self.optimizing = [optimizer.state_dict(), schedule.state_dict()]
                self.save()

    def save(self) -> None:
        """Replace the saved state as a whole."""
        state = {name: getattr(self, name) for name in ("settings", "done", "optimizing")}
        state["models"] = [module.state_dict() for module in (self.vae, self.unet, self.text_encoder)]
        state["ema"] = self.ema.state_dict()
        state["random"] = [self.generator.get_state(), self.words.getstate()]
        torch.save(state, self.state_file.with_suffix(".tmp"))
        self.state_file.with_suffix(".tmp").replace(self.state_file)

    def restore(self) -> None:
        state = torch.load(self.state_file, map_location=self.device, weights_only=True)
        if state["settings"] != self.settings:
            begun = " ".join(f"--{name} {value}" for name, value in state["settings"].items())
            sys.exit(f"{self.state_file} was begun with {begun}; resume it with the same")
        for module, weights in zip((self.vae, self.unet, self.text_encoder), state["models"], strict=True):
            module.load_state_dict(weights)
        self.ema.load_state_dict(state["ema"])
        self.done, self.optimizing = state["done"], state["optimizing"]
        torch_state, (version, words_state, gauss) = state["random"]
        self.generator.set_state(torch_state.cpu())
        self.words.setstate((version, tuple(words_state), gauss))


def fast_bfloat16(device: torch.device) -> bool:
    """False on CPUs that would emulate it, many times slower than float32."""
    return device.type != "cpu" or "AVX512" in torch.backends.cpu.get_cpu_capability()


class Report:
    """One line on standard error, with rate and time left."""

    def __init__(self, stage: Stage, start: int) -> None:
        self.stage, self.start, self.began, self.told, self.loss = stage, start, time.monotonic(), 0.0, 0.0

    def step(self, step: int, loss: Tensor) -> None:
        now, last = time.monotonic(), step == self.stage.steps
        if now - self.told < 1 and not last:
            return
        self.loss = 0.9 * self.loss + 0.1 * loss.item() if self.told else loss.item()
        self.told = now
        rate = (step - self.start) / (now - self.began)
        left = (self.stage.steps - step) / rate / 60
        line = f"{self.stage.name}: {step}/{self.stage.steps}, {rate:.2f} steps/s, {left:.0f} min left"
        print(f"\r{line}, loss {self.loss:.4f}   ", end="\n" if last else "", file=sys.stderr, flush=True)


def autoencoder_loss(run: Run, stage: Stage, pictures: Tensor) -> Tensor:
    """L1 + squared error + L1 of the gradients + KL divergence, of a batch that may be mirrored."""
    batch = as_input(run, pictures[run.pick(stage.batch, len(pictures))])
    if run.mirror(stage):
        batch = batch.flip(-1)
    posterior = run.vae.encode(batch).latent_dist
    drawn = run.vae.decode(posterior.mean + posterior.std * run.noise(posterior.mean.shape)).sample.float()
    mean, logvar = posterior.mean.float(), posterior.logvar.float()
    divergence = 0.5 * (mean.square() + logvar.exp() - 1 - logvar).mean()
    edges = sum(F.l1_loss(drawn.diff(dim=axis), batch.diff(dim=axis)) for axis in (-1, -2))
    return F.l1_loss(drawn, batch) + F.mse_loss(drawn, batch) + edges + KL_WEIGHT * divergence


def as_input(run: Run, pictures: Tensor) -> Tensor:
    return pictures.to(run.device).float() / 127.5 - 1


def encode(run: Run, pictures: Tensor) -> Tensor:
    """Latents of unit deviation (2, N, 4, 16, 16), plain and mirrored; sets the autoencoder's scaling factor."""

    def means(half: Tensor) -> Tensor:
        return torch.cat([run.vae.encode(as_input(run, part)).latent_dist.mean for part in half.split(64)])

    with torch.no_grad():
        latents = torch.stack([means(pictures), means(pictures.flip(-1))])
    factor = round(1 / latents.std().item(), 5)
    run.vae.register_to_config(scaling_factor=factor)
    return latents * factor


def denoising_loss(run: Run, stage: Stage, latents: Tensor, names: Sequence[str]) -> Tensor:
    """Squared error of the predicted noise with min-SNR weights (Hang et al., 2023)."""
    picked = run.pick(stage.batch, len(names))
    clean = latents[int(run.mirror(stage))][picked.to(latents.device)]
    times = run.pick(stage.batch, 1000).to(run.device)
    noise = run.noise(clean.shape)
    prompts = [as_prompt(run, names[number]) for number in picked.tolist()]
    tokens = run.tokenizer(prompts, padding="max_length", max_length=TOKENS, truncation=True, return_tensors="pt")
    words = run.text_encoder(tokens.input_ids.to(run.device)).last_hidden_state
    guess = run.unet(run.noise_schedule.add_noise(clean, noise, times), times, words).sample
    snr = compute_snr(run.noise_schedule, times)
    error = F.mse_loss(guess.float(), noise, reduction="none").mean(dim=(1, 2, 3))
    return (error * snr.clamp(max=SNR_GAMMA) / snr).mean()


def as_prompt(run: Run, name: str) -> str:
    """The name, half of the time with "emoji"; sometimes nothing, for classifier-free guidance."""
    if run.words.random() < NAME_DROPOUT:
        return ""
    return f"{name} emoji" if run.words.random() < 0.5 else name


def save_pipeline(run: Run, out: Path) -> None:
    """Write the diffusers folder with the averaged weights in float16, and remove the training state."""
    run.ema.copy_to(run.ema_parameters)
    pipe = StableDiffusionPipeline(
        vae=run.vae.cpu().half().eval(),
        text_encoder=run.text_encoder.cpu().half().eval(),
        tokenizer=run.tokenizer,
        unet=run.unet.cpu().half().eval(),
        scheduler=DDIMScheduler(**BETAS, clip_sample=False, set_alpha_to_one=False, steps_offset=1),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )
    pipe.save_pretrained(out)
    shutil.rmtree(out / ".training")
    print(f"{out}: load it with StableDiffusionPipeline.from_pretrained", file=sys.stderr)


if __name__ == "__main__":
    main()
