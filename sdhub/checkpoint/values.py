"""What the values of configs may be: a rule for every key, and the bounds of every number.

A key means the same in every class of diffusers and transformers that sdhub knows. Bounds are far above what any
published model has, and low enough that what is built within them can be weighed.
"""

from __future__ import annotations

import math
import re
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from sdhub.core.documents import shown
from sdhub.core.errors import SourceError

HINT = "correct the file, or get the checkpoint again"
WORD = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.+-]{0,63}")


class Rule(ABC):
    """What one value may be; `str(rule)` says it."""

    @abstractmethod
    def fits(self, value: Any) -> bool:
        """Whether `value` is one."""


@dataclass(frozen=True)
class Whole(Rule):
    """A whole number."""

    least: int
    most: int

    def fits(self, value: Any) -> bool:
        return isinstance(value, int) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a whole number from {self.least} to {self.most}"


@dataclass(frozen=True)
class Number(Rule):
    """A number, whole or not."""

    least: float
    most: float

    def fits(self, value: Any) -> bool:
        return isinstance(value, int | float) and not isinstance(value, bool) and self.least <= value <= self.most

    def __str__(self) -> str:
        return f"a number from {self.least:g} to {self.most:g}"


class Flag(Rule):
    """True or false; null counts as false."""

    def fits(self, value: Any) -> bool:
        return value is None or isinstance(value, bool)

    def __str__(self) -> str:
        return "true or false"


class Word(Rule):
    """The name of a choice: no path, no address, no code."""

    def fits(self, value: Any) -> bool:
        return isinstance(value, str) and WORD.fullmatch(value) is not None

    def __str__(self) -> str:
        return "a plain word"


class Null(Rule):
    """What JSON cannot hold."""

    def fits(self, value: Any) -> bool:
        return value is None

    def __str__(self) -> str:
        return "null"


@dataclass(frozen=True)
class ListOf(Rule):
    """A list of at most `most` values."""

    rule: Rule
    most: int = 64
    least: int = 0

    def fits(self, value: Any) -> bool:
        return (
            isinstance(value, list) and self.least <= len(value) <= self.most and all(map(self.rule.fits, value))
        )

    def __str__(self) -> str:
        return f"a list of at most {self.most}, each {self.rule}"


@dataclass(frozen=True)
class Either(Rule):
    """One of several."""

    rules: tuple[Rule, ...]

    def fits(self, value: Any) -> bool:
        return any(rule.fits(value) for rule in self.rules)

    def __str__(self) -> str:
        return " or ".join(map(str, self.rules))


@dataclass(frozen=True)
class Record(Rule):
    """An object of words and values, one level deep where `rule` is not a record itself."""

    rule: Rule
    most: int = 16

    def fits(self, value: Any) -> bool:
        return (
            isinstance(value, Mapping)
            and len(value) <= self.most
            and all(WORD.fullmatch(key) is not None and self.rule.fits(each) for key, each in value.items())
        )

    def __str__(self) -> str:
        return f"an object of at most {self.most} entries, each {self.rule}"


@dataclass(frozen=True)
class Kept:
    """What is written for a library to read, and the keys that are not, as paths with dots."""

    document: Mapping[str, Any]
    left_out: tuple[str, ...] = ()


def keep(config: Mapping[str, Any], rules: Mapping[str, Rule], where: str, unsaid: Collection[str] = ()) -> Kept:
    """The entries that have a rule; `unsaid` are keys that are not worth telling of.

    Raises SourceError, naming `where` and the key, for a value that cannot be.
    """
    kept = {}
    for key, value in config.items():
        if key in rules:
            if not rules[key].fits(value):
                raise impossible(where, key, value, str(rules[key]))
            kept[key] = value
    return Kept(kept, tuple(key for key in config if key not in rules and key not in unsaid))


def impossible(where: str, key: str, value: Any, wanted: str) -> SourceError:
    """The error for a value that cannot be."""
    return SourceError(f"{where}: {shown(key, 60)} is {shown(repr(value), 40)}, not {wanted}", hint=HINT)


def either(*rules: Rule) -> Rule:
    """One of several rules."""
    return Either(rules)


def maybe(rule: Rule) -> Rule:
    """The rule, or null."""
    return Either((rule, Null()))


def each(rule: Rule, most: int = 64) -> Rule:
    """One value, or one for each block."""
    return Either((rule, ListOf(rule, most, 1)))


def named(rule: Rule, keys: str) -> dict[str, Rule]:
    """The rule for each of `keys`, which blanks divide."""
    return dict.fromkeys(keys.split(), rule)


NULL, FLAG, WORDS, NAME = Null(), Flag(), ListOf(Word(), 512), maybe(Word())
BLOCKS = 16  # stages of a U-Net or an autoencoder
WIDTH = Whole(1, 65_536)
WIDTHS = ListOf(WIDTH, BLOCKS, 1)
DEPTH = Whole(1, 512)
FEW = Whole(1, 16)
DEPTHS = ListOf(FEW, BLOCKS, 1)
HEADS = Whole(1, 1_024)
TOKEN = Whole(-1, 2**22)
TOKENS = maybe(either(TOKEN, ListOf(TOKEN, 64)))
SIDE = Whole(1, 4_096)
TIMESTEPS = 100  # the least that are trained: no more steps than these can be drawn; published models have 1,000
RATE = Number(0, 1)
SMALL = Number(1e-30, 1)
SCALE = Number(1e-9, 1e9)
SIGNED = Number(-1e9, 1e9)
STATISTICS = maybe(ListOf(SIGNED, 4_096))
QUARTER = Whole(0, 4)
ROPE = maybe(Record(either(SIGNED, FLAG, Word(), ListOf(SIGNED, 1_024), Record(either(SIGNED, FLAG, Word())))))
PICTURE = either(Whole(1, 16_384), Record(Whole(1, 16_384), 4))

RULES: Mapping[str, Rule] = {
    # widths
    **named(
        WIDTH,
        "base_dim conditioning_channels d_ff d_kv d_model head_dim hidden_size in_channels "
        "input_channels joint_attention_dim latent_channels num_channels pooled_projection_dim "
        "caption_projection_dim projection_dim out_hidden_size z_dim",
    ),
    "intermediate_size": Whole(1, 2**20),
    **named(
        maybe(WIDTH),
        "addition_time_embed_dim caption_channels cross_attention_head_dim encoder_hid_dim out_channels "
        "projection_class_embeddings_input_dim time_cond_proj_dim time_embedding_dim",
    ),
    "cross_attention_dim": maybe(each(WIDTH, BLOCKS)),
    **named(
        WIDTHS,
        "block_out_channels conditioning_embedding_out_channels decoder_block_out_channels "
        "encoder_block_out_channels",
    ),
    # heads
    "attention_head_dim": each(WIDTH, BLOCKS),
    "num_attention_heads": maybe(each(HEADS, BLOCKS)),
    "addition_embed_type_num_heads": HEADS,
    "num_heads": HEADS,
    "num_key_value_heads": maybe(HEADS),
    "num_cross_attention_heads": maybe(HEADS),
    # depths
    **named(DEPTH, "depth num_hidden_layers"),
    "num_layers": DEPTH,
    "num_single_layers": Whole(0, 512),
    "num_decoder_layers": maybe(Whole(0, 512)),
    "max_window_layers": Whole(0, 512),
    "num_res_blocks": FEW,
    "layers_per_block": each(FEW, BLOCKS),
    **named(ListOf(Whole(0, 16), BLOCKS, 1), "decoder_layers_per_block encoder_layers_per_block"),
    **named(DEPTHS, "dim_mult num_decoder_blocks num_encoder_blocks"),
    "transformer_layers_per_block": either(
        Whole(1, 64), ListOf(either(Whole(0, 64), ListOf(Whole(0, 64), BLOCKS, 1)), BLOCKS, 1)
    ),
    "reverse_transformer_layers_per_block": maybe(
        ListOf(either(Whole(0, 64), ListOf(Whole(0, 64), BLOCKS, 1)), BLOCKS, 1)
    ),
    "dual_attention_layers": ListOf(Whole(0, 511), 512),
    "fullatt_block_indexes": ListOf(Whole(0, 511), 512),
    **dict.fromkeys(
        ("decoder_qkv_multiscales", "encoder_qkv_multiscales"), ListOf(ListOf(Whole(1, 31), 8), BLOCKS)
    ),
    # groups, kernels, patches
    "norm_num_groups": maybe(Whole(1, 4_096)),
    **named(Whole(1, 15), "conv_in_kernel conv_out_kernel"),
    "patch_size": maybe(Whole(1, 64)),
    **named(Whole(1, 16), "spatial_merge_size temporal_patch_size"),
    "tokens_per_second": Whole(1, 1_000),
    "upsampling_scaling_factor": Whole(1, 8),
    "downsample_padding": QUARTER,
    "axes_dims_rope": ListOf(Whole(2, 4_096), 8, 1),
    # lengths and sides
    "sample_size": maybe(either(SIDE, ListOf(SIDE, 2, 2))),
    "image_size": Whole(1, 4_096),
    "window_size": SIDE,
    "pos_embed_max_size": maybe(Whole(1, 1_024)),
    "max_position_embeddings": Whole(1, 2**21),
    "sliding_window": maybe(Whole(1, 2**21)),
    **named(Whole(1, 2**20), "base_image_seq_len max_image_seq_len"),
    "relative_attention_num_buckets": Whole(2, 4_096),
    "relative_attention_max_distance": Whole(2, 65_536),
    # vocabularies
    "vocab_size": Whole(1, 2**22),
    **named(maybe(Whole(1, 2**20)), "num_class_embeds num_embeds_ada_norm num_vector_embeds"),
    **named(
        TOKENS,
        "bos_token_id eos_token_id image_token_id pad_token_id video_token_id vision_end_token_id "
        "vision_start_token_id",
    ),
    # numbers of layers
    **named(RATE, "attention_dropout classifier_dropout dropout dropout_rate"),
    **named(SMALL, "layer_norm_eps layer_norm_epsilon norm_eps rms_norm_eps"),
    "initializer_range": RATE,
    "initializer_factor": Number(0, 1e3),
    "logit_scale_init_value": SIGNED,
    "mlp_ratio": Number(1e-2, 64),
    "query_pre_attn_scalar": Number(1e-3, 1e6),
    **named(maybe(Number(1e-3, 1e6)), "attn_logit_softcapping final_logit_softcapping"),
    "rope_theta": Number(1, 1e12),
    **named(ROPE, "rope_parameters rope_scaling"),
    **named(SCALE, "guidance_embeds_scale resnet_out_scale_factor timestep_scale"),
    **named(SCALE, "latent_magnitude mid_block_scale_factor scaling_factor"),
    "interpolation_scale": maybe(SCALE),
    "latent_shift": SIGNED,
    "shift_factor": maybe(SIGNED),
    **named(STATISTICS, "latents_mean latents_std"),
    "attn_scales": ListOf(SCALE, BLOCKS),
    "freq_shift": Number(0, 1_000),
    # schedules
    "num_train_timesteps": Whole(TIMESTEPS, 100_000),
    "original_inference_steps": Whole(1, 100_000),
    "steps_offset": Whole(0, 1_000),
    **named(Whole(1, 4), "corrector_order predictor_order solver_order"),
    "disable_corrector": ListOf(Whole(0, 100_000), 1_000),
    **named(RATE, "beta_end beta_start dynamic_thresholding_ratio"),
    "trained_betas": maybe(ListOf(RATE, 100_000, 1)),
    **named(SCALE, "clip_sample_range flow_shift rho sample_max_value shift"),
    **named(SCALE, "sigma_data timestep_scaling"),
    **named(maybe(SIGNED), "base_shift max_shift shift_terminal"),
    **named(maybe(Number(0, 1e9)), "sigma_max sigma_min"),
    "lambda_min_clipped": Number(-math.inf, 1e9),
    "noise_sampler_seed": maybe(Whole(0, 2**63 - 1)),
    **named(NULL, "solver_p tau_func"),  # objects of Python
    # words
    **named(
        Word(),
        "act_fn activation_fn algorithm_type attention_type beta_schedule cache_implementation "
        "controlnet_conditioning_channel_order decoder_conv_act_fn downsample_block_type "
        "feed_forward_proj final_sigmas_type hidden_act hidden_activation interpolation_type norm_type "
        "prediction_type resnet_time_scale_shift sigma_schedule solver_type time_embedding_type "
        "time_shift_type timestep_spacing timestep_type upsample_block_type upsample_fn",
    ),
    **named(
        NAME,
        "addition_embed_type class_embed_type cross_attention_norm encoder_hid_dim_type mid_block_type "
        "qk_norm time_embedding_act_fn timestep_post_act variance_type",
    ),
    **named(ListOf(Word(), BLOCKS, 1), "down_block_types up_block_types"),
    **named(each(Word(), BLOCKS), "decoder_act_fns decoder_block_types decoder_norm_types encoder_block_types"),
    "layer_types": maybe(WORDS),
    # yes or no, for each block where it is a list
    "only_cross_attention": each(FLAG, BLOCKS),
    "temperal_downsample": ListOf(FLAG, BLOCKS),
    **named(
        FLAG,
        "attention_bias center_input_sample class_embeddings_concat clip_sample decoder_in_shortcut "
        "default_to_square do_center_crop do_convert_rgb do_normalize do_rescale do_resize "
        "double_self_attention dual_cross_attention encoder_out_shortcut euler_at_final flip_sin_to_cos "
        "force_upcast global_pool_conditions guidance_embeds invert_sigmas is_decoder is_encoder_decoder "
        "lower_order_final mid_block_add_attention mid_block_only_cross_attention "
        "norm_elementwise_affine predict_x0 rescale_betas_zero_snr resnet_skip_time_act set_alpha_to_one "
        "skip_prk_steps stochastic_sampling thresholding tie_word_embeddings upcast_attention "
        "use_additional_conditions use_additional_t_cond use_beta_sigmas use_bidirectional_attention "
        "use_cache use_dynamic_shifting use_exponential_sigmas use_flow_sigmas use_karras_sigmas "
        "use_layer3d_rope use_linear_projection use_lu_lambdas use_post_quant_conv use_quant_conv "
        "use_sliding_window vision_use_head zero_cond_t",
    ),
    # pictures
    **named(PICTURE, "crop_size size"),
    **named(ListOf(SIGNED, 8), "image_mean image_std"),
    "resample": maybe(Whole(0, 5)),
    "rescale_factor": SCALE,
}
