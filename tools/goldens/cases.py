"""The golden cases: configs, prompts, and what is recorded for each."""

BASE = dict(
    vocab_size=96,
    hidden_size=64,
    num_hidden_layers=3,
    num_attention_heads=4,
    q_lora_rank=48,
    kv_lora_rank=32,
    qk_nope_head_dim=24,
    qk_rope_head_dim=32,
    v_head_dim=40,
    n_routed_experts=16,
    n_shared_experts=1,
    num_experts_per_tok=4,
    n_group=4,
    topk_group=2,
    scoring_func="sigmoid",
    topk_method="noaux_tc",
    norm_topk_prob=True,
    routed_scaling_factor=2.5,
    first_k_dense_replace=1,
    moe_layer_freq=1,
    intermediate_size=80,
    moe_intermediate_size=32,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    rope_scaling=dict(
        type="yarn",
        factor=40,
        beta_fast=32,
        beta_slow=1,
        mscale=1.0,
        mscale_all_dim=1.0,
        original_max_position_embeddings=32,
    ),
    max_position_embeddings=1280,
    tie_word_embeddings=False,
    attention_bias=False,
    num_nextn_predict_layers=1,
    bos_token_id=0,
    eos_token_id=1,
    torch_dtype="bfloat16",
    model_type="deepseek_v3",
    architectures=["DeepseekV3ForCausalLM"],
)
V2 = dict(
    scoring_func="softmax",
    norm_topk_prob=False,
    n_shared_experts=2,
    num_nextn_predict_layers=0,
    model_type="deepseek_v2",
    architectures=["DeepseekV2ForCausalLM"],
)
QUANTISATION = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[128, 128])
# Every expert is chosen, so that rounding cannot change a choice.
ALL_EXPERTS_FP8 = dict(
    hidden_size=192,
    q_lora_rank=160,
    kv_lora_rank=144,
    qk_nope_head_dim=32,
    qk_rope_head_dim=32,
    v_head_dim=48,
    num_attention_heads=6,
    intermediate_size=320,
    moe_intermediate_size=136,
    n_routed_experts=8,
    num_experts_per_tok=8,
    n_group=2,
    topk_group=2,
    quantization_config=QUANTISATION,
)
# No width is a power of two; the head count divides by 4 so that tp 2 and 4 can run them.
ODD = dict(
    vocab_size=97,
    hidden_size=100,
    num_attention_heads=4,
    q_lora_rank=52,
    kv_lora_rank=44,
    qk_nope_head_dim=20,
    qk_rope_head_dim=12,
    v_head_dim=28,
    n_routed_experts=6,
    num_experts_per_tok=3,
    n_group=3,
    topk_group=2,
    intermediate_size=84,
    moe_intermediate_size=36,
    rope_scaling=dict(BASE["rope_scaling"], factor=12, original_max_position_embeddings=512, mscale=0.707),
    max_position_embeddings=6144,
    initializer_range=0.02,
)
ODD_FP8 = dict(
    ODD,
    hidden_size=136,
    q_lora_rank=132,
    kv_lora_rank=76,
    v_head_dim=36,
    intermediate_size=260,
    moe_intermediate_size=132,
    num_experts_per_tok=2,
    num_hidden_layers=2,
    quantization_config=QUANTISATION,
)


class Case:
    """prompt_lengths None: the token stream named "tokens", scored once, nothing generated.
    weights_from: the case whose model.safetensors is this one's too, or "generator" for a file that is not kept."""

    def __init__(
        self,
        about,
        overrides,
        dtype="BF16",
        bias_offset=0.0,
        num_tokens=48,
        prompt_lengths=None,
        max_tokens=16,
        weights_from=None,
    ):
        self.weights_from = weights_from
        self.about, self.config, self.dtype, self.bias_offset = about, {**BASE, **overrides}, dtype, bias_offset
        self.num_tokens, self.prompt_lengths, self.max_tokens = num_tokens, prompt_lengths, max_tokens
        self.config["num_key_value_heads"] = self.config["num_attention_heads"]  # transformers insists
        if dtype == "F32":
            self.config["torch_dtype"] = "float32"

    @property
    def is_fp8(self):
        return "quantization_config" in self.config


LENGTHS = [1, 2, 7, 65, 300]
V2_LENGTHS = [1, 2, 65, 130]
CASES = {
    # ---- scored once, figures confirmed by an independent implementation (see check_oracle.py) ----
    "v3": Case("q_lora, groups 4 to 2, sigmoid with a correction bias, YaRN beyond the original context, dense and MoE layers", {}),
    "v3neg": Case("every biased score negative: tells a mask of 0 from one of -inf", {}, bias_offset=-2.0, weights_from="generator"),
    "v3plain": Case("no YaRN, no groups", dict(rope_scaling=None, n_group=1, topk_group=1), weights_from="v3"),
    "v2": Case(
        "group_limited_greedy (a group's score is its largest), routed_scaling_factor 16",
        dict(V2, topk_method="group_limited_greedy", routed_scaling_factor=16.0, topk_group=3),
    ),
    "v2lite": Case(
        "no q_lora, softmax, greedy, weights not normalised, mscale 0.707, 27 layers, 2 shared experts",
        dict(
            V2,
            q_lora_rank=None,
            topk_method="greedy",
            routed_scaling_factor=1.0,
            n_group=1,
            topk_group=1,
            num_hidden_layers=27,
            hidden_size=32,
            intermediate_size=40,
            moe_intermediate_size=16,
            rope_scaling=dict(BASE["rope_scaling"], mscale=0.707, mscale_all_dim=0.707),
        ),
        num_tokens=40,
        weights_from="generator",
    ),
    "v3fp8": Case("FP8 with partial blocks and an MTP layer, f32 scales", ALL_EXPERTS_FP8, num_tokens=24, weights_from="generator"),
    "v31fp8": Case(
        "FP8 with scales that are powers of two (V3.1)",
        dict(ALL_EXPERTS_FP8, quantization_config=dict(QUANTISATION, scale_fmt="ue8m0")),
        num_tokens=24,
        weights_from="generator",
    ),
    # ---- prompts of 1 to 300 tokens, each continued greedily ----
    "v3_odd": Case(
        "F32 weights; no width is a power of two; mscale differs from mscale_all_dim, so cos and sin have an amplitude",
        dict(ODD, num_nextn_predict_layers=0),
        dtype="F32",
        prompt_lengths=LENGTHS,
    ),
    "v3_odd_fp8": Case(
        "the same in FP8 with partial blocks and an MTP layer; experts are really chosen",
        ODD_FP8,
        prompt_lengths=LENGTHS,
    ),
    "v31_odd_fp8": Case(
        "the same with scales that are powers of two (V3.1)",
        dict(ODD_FP8, num_nextn_predict_layers=0, quantization_config=dict(QUANTISATION, scale_fmt="ue8m0")),
        prompt_lengths=[65],
    ),
    "v2lite_odd": Case(
        "V2-Lite: no q_lora, softmax, greedy, two shared experts in one MLP, mscale 0.707",
        dict(
            ODD,
            **V2,
            q_lora_rank=None,
            topk_method="greedy",
            routed_scaling_factor=1.0,
            n_group=1,
            topk_group=1,
            rope_scaling=dict(ODD["rope_scaling"], mscale=0.707, mscale_all_dim=0.707),
        ),
        prompt_lengths=V2_LENGTHS,
    ),
    "v2_odd": Case(
        "V2: q_lora, group_limited_greedy, routed_scaling_factor 16",
        dict(ODD, **V2, topk_method="group_limited_greedy", routed_scaling_factor=16.0),
        prompt_lengths=V2_LENGTHS,
    ),
    "v3_long": Case(
        "prompts longer than the original context of 48 positions",
        dict(
            ODD,
            rope_scaling=dict(BASE["rope_scaling"], original_max_position_embeddings=48, factor=10),
            max_position_embeddings=480,
            num_hidden_layers=2,
            num_nextn_predict_layers=0,
        ),
        prompt_lengths=[49, 200],
        max_tokens=32,
    ),
}
