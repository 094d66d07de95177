"""The forward pass of DeepSeek V2 and V3 in float64, written from the published formulas, for one sequence.

Three arithmetics:
  exact   weights widened (FP8 dequantised), nothing rounded: what float32 arithmetic approaches
  fp8     inputs of FP8 layers are quantised to e4m3 per row and block of 128 columns; nothing else is rounded
  stored  as fp8, and inputs of BF16 layers (but not the router's) and the cached latents are rounded to bfloat16, and every
          operation's result to float32: Weir's default on a CPU, but for the order of additions

A row's form of attention is fixed by its role: prompt rows expand the latents to keys and values (kv_b as a linear layer),
generated rows use the absorbed form (kv_b dequantised to bfloat16).  Needs numpy only.
"""

import math

import numpy as np

from checkpoint import BLOCK, block_scale, round_to_bf16, round_to_e4m3

ACTIVATION_AMAX_FLOOR = 1e-4
ARITHMETICS = ("exact", "fp8", "stored")


def rms_norm(x, weight, eps):
    return x / np.sqrt(np.mean(x * x, axis=-1, keepdims=True) + eps) * weight


def silu(x):
    return x / (1.0 + np.exp(-x))


def softmax(x):
    e = np.exp(x - x.max(axis=-1, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=-1, keepdims=True)


def yarn_mscale(factor, mscale):
    return 0.1 * mscale * math.log(factor) + 1.0 if factor > 1 else 1.0


def rope_parameters(config):
    """(angular frequency of each pair, amplitude of cos and sin, scale of the attention scores)."""
    width, theta, scaling = config["qk_rope_head_dim"], config["rope_theta"], config.get("rope_scaling")
    frequency = theta ** (-np.arange(0, width, 2) / width)
    softmax_scale = (config["qk_nope_head_dim"] + width) ** -0.5
    if not scaling:
        return frequency, 1.0, softmax_scale
    factor, original = scaling["factor"], scaling["original_max_position_embeddings"]

    def pair_of(rotations):
        return width * math.log(original / (2 * math.pi * rotations)) / (2 * math.log(theta))

    low = max(math.floor(pair_of(scaling["beta_fast"])), 0)
    high = min(math.ceil(pair_of(scaling["beta_slow"])), width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / (max(high - low, 0.001)), 0.0, 1.0)
    all_dim = yarn_mscale(factor, scaling["mscale_all_dim"])
    amplitude = yarn_mscale(factor, scaling["mscale"]) / all_dim
    return frequency / factor * ramp + frequency * (1 - ramp), amplitude, softmax_scale * all_dim * all_dim


def rotate(x, positions, frequency, amplitude):
    """Turns the pairs (2i, 2i + 1) of the last axis; positions is the first axis."""
    angle = np.multiply.outer(positions, frequency).reshape(len(positions), *([1] * (x.ndim - 2)), -1)
    cos, sin = np.cos(angle) * amplitude, np.sin(angle) * amplitude
    even, odd = x[..., 0::2], x[..., 1::2]
    out = np.empty_like(x)
    out[..., 0::2], out[..., 1::2] = even * cos - odd * sin, even * sin + odd * cos
    return out


def top_indices(scores, count):
    """Largest first; ties go to the lower index."""
    return sorted(range(len(scores)), key=lambda i: (-scores[i], i))[:count]


class Oracle:
    def __init__(self, config, tensors, arithmetic="exact"):
        assert arithmetic in ARITHMETICS, f"arithmetic {arithmetic} is not one of {ARITHMETICS}"
        self.config, self.tensors, self.arithmetic = config, tensors, arithmetic
        quantisation = config.get("quantization_config") or {}
        self.ue8m0 = quantisation.get("scale_fmt") == "ue8m0"
        self.rope = rope_parameters(config)
        self.eps = config["rms_norm_eps"]
        self.dequantised = {}

    def run(self, ids, num_prompt):
        """Logits [len(ids), vocab], the MTP layer's logits [len(ids) - 1, vocab] or no rows, and per row the smallest margin
        of any expert or group choice: a row whose margin is below the arithmetic's error may choose otherwise."""
        config = self.config
        self.margins = np.full(len(ids), np.inf)
        h = self.weight("model.embed_tokens.weight")[ids]
        for layer in range(config["num_hidden_layers"]):
            h = self.decoder_layer(layer, h, num_prompt)
        h = self.norm("model.norm", h)
        logits = self.linear("lm_head", h)
        margins = self.margins
        has_mtp = config.get("num_nextn_predict_layers") and len(ids) > 1
        mtp = self.multi_token_prediction(ids, h, num_prompt) if has_mtp else np.zeros((0, config["vocab_size"]))
        return logits, mtp, margins

    def decoder_layer(self, layer, h, num_prompt):
        prefix = f"model.layers.{layer}."
        h = self.kept(h + self.attention(prefix + "self_attn.", self.norm(prefix + "input_layernorm", h), num_prompt))
        x = self.norm(prefix + "post_attention_layernorm", h)
        if layer < self.config["first_k_dense_replace"]:
            return self.kept(h + self.mlp(prefix + "mlp.", x))
        return self.kept(h + self.mixture(prefix + "mlp.", x))

    def multi_token_prediction(self, ids, h, num_prompt):
        """Row i sees the hidden state of token i (after the final norm) and token i + 1; it predicts token i + 2."""
        layer = self.config["num_hidden_layers"]
        prefix = f"model.layers.{layer}."
        embedded = self.weight("model.embed_tokens.weight")[ids[1:]]
        joined = np.concatenate([self.norm(prefix + "enorm", embedded), self.norm(prefix + "hnorm", h[:-1])], axis=-1)
        self.margins = np.full(len(ids) - 1, np.inf)
        x = self.decoder_layer(layer, self.linear(prefix + "eh_proj", joined), num_prompt)
        return self.linear(prefix + "shared_head.head", self.norm(prefix + "shared_head.norm", x))

    # ---- parts ----
    def kept(self, x):
        """A result as the next operation finds it."""
        return x.astype(np.float32).astype(np.float64) if self.arithmetic == "stored" else x

    def weight(self, name):
        if name not in self.dequantised:
            self.dequantised[name] = self.tensors[name].dequantised()
        return self.dequantised[name]

    def norm(self, name, x):
        return self.kept(rms_norm(x, self.weight(name + ".weight"), self.eps))

    def linear(self, name, x):
        tensor = self.tensors[name + ".weight"]
        if self.arithmetic != "exact" and tensor.scales is not None:
            return self.kept(self.quantised_linear(tensor, x))
        if self.arithmetic == "stored" and tensor.dtype == "BF16" and not name.endswith(".mlp.gate"):
            x = round_to_bf16(x)  # the router keeps float32 inputs: rounding them would change choices
        return self.kept(x @ self.weight(name + ".weight").T)

    def quantised_linear(self, tensor, x):
        out = np.zeros((len(x), len(tensor.values)))
        for block in range(tensor.scales.shape[1]):
            columns = slice(block * BLOCK, (block + 1) * BLOCK)
            amax = np.abs(x[:, columns]).max(axis=1, keepdims=True)
            scale = block_scale(np.maximum(amax, ACTIVATION_AMAX_FLOOR), self.ue8m0).astype(np.float64)
            product = round_to_e4m3(self.kept(x[:, columns] / scale)) @ tensor.values[:, columns].T
            out += product * scale * np.repeat(tensor.scales[:, block].astype(np.float64), BLOCK)[: out.shape[1]]
        return out

    def attention(self, prefix, x, num_prompt):
        config, positions = self.config, np.arange(len(x))
        heads, latent_width = config["num_attention_heads"], config["kv_lora_rank"]
        nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
        frequency, amplitude, scale = self.rope
        if config["q_lora_rank"]:
            q = self.linear(prefix + "q_b_proj", self.norm(prefix + "q_a_layernorm", self.linear(prefix + "q_a_proj", x)))
        else:
            q = self.linear(prefix + "q_proj", x)
        q = q.reshape(len(x), heads, nope + rope)
        q_nope, q_rope = q[..., :nope], self.kept(rotate(q[..., nope:], positions, frequency, amplitude))
        kv = self.linear(prefix + "kv_a_proj_with_mqa", x)
        latent = self.norm(prefix + "kv_a_layernorm", kv[:, :latent_width])
        k_rope = self.kept(rotate(kv[:, latent_width:], positions, frequency, amplitude))
        if self.arithmetic == "stored" and self.tensors[prefix + "kv_b_proj.weight"].dtype != "F32":
            latent, k_rope = round_to_bf16(latent), round_to_bf16(k_rope)

        causal = positions[None, :] <= positions[:, None]
        rope_scores = np.einsum("thr,sr->hts", q_rope, k_rope)
        prompt, generated = slice(0, num_prompt), slice(num_prompt, None)
        out = np.empty((len(x), heads, value))

        expanded = self.linear(prefix + "kv_b_proj", latent[prompt]).reshape(-1, heads, nope + value)
        scores = np.einsum("thn,shn->hts", q_nope[prompt], expanded[..., :nope]) + rope_scores[:, prompt, prompt]
        weights = softmax(np.where(causal[prompt, prompt], scores * scale, -np.inf))
        out[prompt] = np.einsum("hts,shv->thv", weights, expanded[..., nope:])

        absorbed = self.absorbed_weight(prefix).reshape(heads, nope + value, latent_width)
        q_latent = np.einsum("thn,hnc->thc", q_nope[generated], absorbed[:, :nope])
        scores = np.einsum("thc,sc->hts", q_latent, latent) + rope_scores[:, generated]
        weights = softmax(np.where(causal[generated], scores * scale, -np.inf))
        o_latent = np.einsum("hts,sc->thc", weights, latent)
        out[generated] = np.einsum("thc,hvc->thv", o_latent, absorbed[:, nope:])
        return self.linear(prefix + "o_proj", self.kept(out).reshape(len(x), heads * value))

    def absorbed_weight(self, prefix):
        weight = self.weight(prefix + "kv_b_proj.weight")
        quantised = self.tensors[prefix + "kv_b_proj.weight"].scales is not None
        return round_to_bf16(weight) if quantised and self.arithmetic != "exact" else weight

    def mlp(self, prefix, x):
        gate, up = self.linear(prefix + "gate_proj", x), self.linear(prefix + "up_proj", x)
        return self.linear(prefix + "down_proj", self.kept(silu(gate) * up))

    def mixture(self, prefix, x):
        shared, out = self.mlp(prefix + "shared_experts.", x), np.zeros_like(x)
        logits = self.linear(prefix + "gate", x)
        choices = [self.route(prefix, row, row_logits) for row, row_logits in enumerate(logits)]
        for expert in range(self.config["n_routed_experts"]):
            rows = [row for row, (ids, _) in enumerate(choices) if expert in ids]
            if rows:
                weights = np.array([choices[row][1][choices[row][0].index(expert)] for row in rows])
                out[rows] += weights[:, None] * self.mlp(f"{prefix}experts.{expert}.", x[rows])
        return self.kept(self.kept(out) + shared)

    def route(self, prefix, row, logits):
        """The chosen experts, ascending, and their weights."""
        config = self.config
        experts, groups, kept = config["n_routed_experts"], config["n_group"], config["topk_group"]
        v3 = config["topk_method"] == "noaux_tc"
        scores = 1.0 / (1.0 + np.exp(-logits)) if config["scoring_func"] == "sigmoid" else softmax(logits)
        scores = self.kept(scores)
        choice = scores + self.weight(prefix + "gate.e_score_correction_bias") if v3 else scores.copy()
        if groups > 1 and config["topk_method"] != "greedy":
            grouped = np.sort(choice.reshape(groups, -1), axis=1)
            group_scores = grouped[:, -2:].sum(axis=1) if v3 else grouped[:, -1]
            self.note_margin(row, group_scores, kept)
            dropped = np.ones(groups, bool)
            dropped[top_indices(group_scores, kept)] = False
            choice[np.repeat(dropped, experts // groups)] = -np.inf if v3 else 0.0
        count = config["num_experts_per_tok"]
        self.note_margin(row, choice, count)
        chosen = sorted(top_indices(choice, count))
        weights = scores[chosen]
        if config["norm_topk_prob"]:
            weights = weights / (weights.sum() + 1e-20)
        if v3 or not config["norm_topk_prob"]:
            weights = weights * config["routed_scaling_factor"]
        return chosen, self.kept(weights)

    def note_margin(self, row, scores, count):
        ordered = np.sort(scores)[::-1]
        if count < len(ordered) and ordered[count] > -np.inf:
            self.margins[row] = min(self.margins[row], ordered[count - 1] - ordered[count])


def generate(oracle, prompt, num_tokens):
    """Greedy continuation: ids and, per step, the lead of the best logit over the second."""
    ids, leads = list(prompt), []
    for _ in range(num_tokens):
        last = oracle.run(ids, len(prompt))[0][-1]
        second, best = np.sort(last)[-2:]
        ids.append(int(np.argmax(last)))
        leads.append(float(best - second))
    return ids[len(prompt) :], leads
