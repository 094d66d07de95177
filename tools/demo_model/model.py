"""The demo model in PyTorch: DeepSeek-V3's architecture, for training on a CPU and for judging an export.

Rows of tokens hold several documents; positions start anew in each and attention does not cross them.  Experts are stored
stacked and run by sorting rows by expert.
"""

import math

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = dict(
    architectures=["DeepseekV3ForCausalLM"],
    model_type="deepseek_v3",
    vocab_size=4096,
    hidden_size=256,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=4,
    q_lora_rank=128,
    kv_lora_rank=128,
    qk_nope_head_dim=64,
    qk_rope_head_dim=64,
    v_head_dim=64,
    intermediate_size=512,
    moe_intermediate_size=64,
    n_routed_experts=24,
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
    num_nextn_predict_layers=1,
    hidden_act="silu",
    rms_norm_eps=1e-6,
    rope_theta=10000.0,
    rope_scaling=dict(
        type="yarn",
        factor=4,
        beta_fast=32,
        beta_slow=1,
        mscale=1.0,
        mscale_all_dim=1.0,
        original_max_position_embeddings=1024,
    ),
    max_position_embeddings=4096,
    tie_word_embeddings=False,
    attention_bias=False,
    attention_dropout=0.0,
    bos_token_id=0,
    eos_token_id=1,
    pad_token_id=2,
    initializer_range=0.02,
    torch_dtype="bfloat16",
)
BLOCK = 128
E4M3_MAX = 448.0


# ---- FP8, emulated -------------------------------------------------------------------------------------------------------
def round_e4m3(x):
    return x.clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn).to(x.dtype)


def weight_scales(weight):
    """[..., rows, cols] -> [..., ceil(rows / 128), ceil(cols / 128)] float32."""
    rows, cols = weight.shape[-2:]
    padded = F.pad(weight.abs().float(), (0, -cols % BLOCK, 0, -rows % BLOCK))
    shape = (*weight.shape[:-2], padded.shape[-2] // BLOCK, BLOCK, padded.shape[-1] // BLOCK, BLOCK)
    return padded.view(shape).amax(dim=(-3, -1)).clamp(min=1e-12) / E4M3_MAX


def spread(scales, shape):
    return scales.repeat_interleave(BLOCK, -2)[..., : shape[-2], :].repeat_interleave(BLOCK, -1)[..., : shape[-1]]


def quantised_weight(weight):
    scales = spread(weight_scales(weight), weight.shape)
    return round_e4m3(weight.float() / scales) * scales


def quantised_input(x):
    """Per row and block of 128 columns."""
    shape, cols = x.shape, x.shape[-1]
    blocks = F.pad(x.float(), (0, -cols % BLOCK)).view(*shape[:-1], -1, BLOCK)
    scale = blocks.abs().amax(-1, keepdim=True).clamp(min=1e-4) / E4M3_MAX
    return (round_e4m3(blocks / scale) * scale).view(*shape[:-1], -1)[..., :cols].to(x.dtype)


class Quantisation:
    """What linear layers do to their weights and inputs: nothing, or what an FP8 engine would, straight through."""

    weights = inputs = False

    @classmethod
    def weight(cls, w):
        return w + (quantised_weight(w.detach()).to(w.dtype) - w.detach()) if cls.weights else w

    @classmethod
    def input(cls, x):
        return x + (quantised_input(x.detach()) - x.detach()) if cls.inputs else x


class Linear(nn.Module):
    def __init__(self, inputs, outputs):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(outputs, inputs) * inputs**-0.5)

    def forward(self, x):
        return F.linear(Quantisation.input(x), Quantisation.weight(self.weight).to(x.dtype))


class RmsNorm(nn.Module):
    def __init__(self, width, eps=1e-6):
        super().__init__()
        self.weight, self.eps = nn.Parameter(torch.ones(width)), eps

    def forward(self, x):
        return F.rms_norm(x, (x.shape[-1],), self.weight.to(x.dtype), self.eps)


# ---- attention -----------------------------------------------------------------------------------------------------------
def rope_angles(c, device=None):
    width, theta, s = c["qk_rope_head_dim"], c["rope_theta"], c["rope_scaling"]
    frequency = theta ** (-torch.arange(0, width, 2, dtype=torch.float64) / width)
    pair = lambda turns: width * math.log(s["original_max_position_embeddings"] / (2 * math.pi * turns)) / (2 * math.log(theta))
    low, high = max(math.floor(pair(s["beta_fast"])), 0), min(math.ceil(pair(s["beta_slow"])), width - 1)
    ramp = ((torch.arange(width // 2) - low) / max(high - low, 0.001)).clamp(0, 1)
    frequency = frequency / s["factor"] * ramp + frequency * (1 - ramp)
    angle = torch.outer(torch.arange(c["max_position_embeddings"], dtype=torch.float64), frequency)
    return angle.cos().float(), angle.sin().float()


def softmax_scale(c):
    m = 0.1 * c["rope_scaling"]["mscale_all_dim"] * math.log(c["rope_scaling"]["factor"]) + 1.0
    return (c["qk_nope_head_dim"] + c["qk_rope_head_dim"]) ** -0.5 * m * m


def rotate(x, cos, sin):
    """Pairs (i, i + half) of the last axis; cos and sin broadcast over heads.  The published order is pairs (2i, 2i + 1):
    the exporter reorders the rows of the projections, and no score changes."""
    even, odd = x.chunk(2, -1)
    return torch.cat((even * cos - odd * sin, even * sin + odd * cos), -1)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c, hidden, heads = c, c["hidden_size"], c["num_attention_heads"]
        nope, rope, value, latent = c["qk_nope_head_dim"], c["qk_rope_head_dim"], c["v_head_dim"], c["kv_lora_rank"]
        self.q_a_proj = Linear(hidden, c["q_lora_rank"])
        self.q_a_layernorm = RmsNorm(c["q_lora_rank"])
        self.q_b_proj = Linear(c["q_lora_rank"], heads * (nope + rope))
        self.kv_a_proj_with_mqa = Linear(hidden, latent + rope)
        self.kv_a_layernorm = RmsNorm(latent)
        self.kv_b_proj = Linear(latent, heads * (nope + value))
        self.o_proj = Linear(heads * value, hidden)
        self.scale = softmax_scale(c)

    def forward(self, x, cos, sin, mask, cache=None):
        c, (rows, length, _) = self.c, x.shape
        heads, nope, rope = c["num_attention_heads"], c["qk_nope_head_dim"], c["qk_rope_head_dim"]
        q = self.q_b_proj(self.q_a_layernorm(self.q_a_proj(x))).view(rows, length, heads, nope + rope)
        kv = self.kv_a_proj_with_mqa(x)
        latent = self.kv_a_layernorm(kv[..., : c["kv_lora_rank"]])
        k_rope = rotate(kv[..., c["kv_lora_rank"] :], cos, sin)
        q_rope = rotate(q[..., nope:], cos.unsqueeze(-2), sin.unsqueeze(-2))
        if cache is not None:
            latent, k_rope = cache.extend(self, latent, k_rope)
        expanded = self.kv_b_proj(latent).view(rows, -1, heads, nope + c["v_head_dim"])
        q = torch.cat((q[..., :nope], q_rope), -1).transpose(1, 2)
        k = torch.cat((expanded[..., :nope], k_rope.unsqueeze(2).expand(-1, -1, heads, -1)), -1).transpose(1, 2)
        v = expanded[..., nope:].transpose(1, 2)
        # Plain products: PyTorch's fused attention is three times slower on CPUs at these lengths.
        weights = torch.softmax((q * self.scale) @ k.transpose(2, 3) + mask, -1)
        return self.o_proj((weights @ v).transpose(1, 2).flatten(2))


# ---- experts -------------------------------------------------------------------------------------------------------------
class Mlp(nn.Module):
    def __init__(self, hidden, width):
        super().__init__()
        self.gate_proj, self.up_proj, self.down_proj = Linear(hidden, width), Linear(hidden, width), Linear(width, hidden)

    def forward(self, x):
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class Experts(nn.Module):
    def __init__(self, count, hidden, width):
        super().__init__()
        self.gate_up = nn.Parameter(torch.randn(count, 2, width, hidden) * hidden**-0.5)
        self.down = nn.Parameter(torch.randn(count, hidden, width) * width**-0.5)

    def forward(self, x, ids, weights):
        """x [T, D], ids and weights [T, K]."""
        count, _, width, hidden = self.gate_up.shape
        order = ids.flatten().argsort(stable=True)
        token = order // ids.shape[1]
        ends = torch.bincount(ids.flatten(), minlength=count).cumsum(0).to(torch.int32)
        gate_up = Quantisation.weight(self.gate_up).to(x.dtype).view(count, 2 * width, hidden)
        down = Quantisation.weight(self.down).to(x.dtype)
        rows = Quantisation.input(x).index_select(0, token)
        gate, up = grouped_linear(rows, gate_up, ends).split(width, -1)
        out = grouped_linear(Quantisation.input(F.silu(gate) * up), down, ends)
        out = out * weights.flatten()[order].unsqueeze(-1).to(x.dtype)
        return torch.zeros_like(x).index_add(0, token, out)


class _GroupedLinear(torch.autograd.Function):
    """out[r] = x[r] @ weight[group of r]^T for rows sorted by group."""

    @staticmethod
    def forward(ctx, x, weight, ends):
        ctx.save_for_backward(x, weight)
        ctx.ends = ends.tolist()
        out, begin = x.new_empty(x.shape[0], weight.shape[1]), 0
        for group, end in enumerate(ctx.ends):
            if end > begin:
                torch.mm(x[begin:end], weight[group].t(), out=out[begin:end])
            begin = end
        return out

    @staticmethod
    def backward(ctx, grad):
        x, weight = ctx.saved_tensors
        grad = grad.contiguous()
        grad_x, grad_weight, begin = torch.empty_like(x), torch.zeros_like(weight), 0
        for group, end in enumerate(ctx.ends):
            if end > begin:
                torch.mm(grad[begin:end], weight[group], out=grad_x[begin:end])
                torch.mm(grad[begin:end].t(), x[begin:end], out=grad_weight[group])
            begin = end
        return grad_x, grad_weight, None


grouped_linear = _GroupedLinear.apply


class Mixture(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.c = c
        self.gate = nn.Parameter(torch.randn(c["n_routed_experts"], c["hidden_size"]) * c["hidden_size"] ** -0.5)
        self.register_buffer("e_score_correction_bias", torch.zeros(c["n_routed_experts"]))
        self.register_buffer("load", torch.zeros(c["n_routed_experts"]))
        self.experts = Experts(c["n_routed_experts"], c["hidden_size"], c["moe_intermediate_size"])
        self.shared_experts = Mlp(c["hidden_size"], c["moe_intermediate_size"] * c["n_shared_experts"])

    def route(self, x):
        c = self.c
        scores = F.linear(x.float(), self.gate.to(x.dtype).float()).sigmoid()
        choice = scores.detach() + self.e_score_correction_bias
        grouped = choice.view(len(x), c["n_group"], -1)
        group_scores = grouped.topk(2, -1).values.sum(-1)
        kept = torch.zeros_like(group_scores, dtype=torch.bool).scatter_(1, group_scores.topk(c["topk_group"], -1).indices, True)
        choice = grouped.masked_fill(~kept.unsqueeze(-1), float("-inf")).flatten(1)
        ids = choice.topk(c["num_experts_per_tok"], -1).indices
        weights = scores.gather(1, ids)
        return ids, weights / (weights.sum(-1, keepdim=True) + 1e-20) * c["routed_scaling_factor"], scores

    def forward(self, x, counted=None):
        flat = x.reshape(-1, x.shape[-1])
        ids, weights, scores = self.route(flat)
        experts = self.c["n_routed_experts"]
        self.load += torch.bincount((ids if counted is None else ids[counted.flatten()]).flatten(), minlength=experts)
        # Auxiliary: keeps the scores themselves from leaning on few experts (weight set by the trainer).
        share = torch.bincount(ids.flatten(), minlength=experts).float() / ids.numel()
        self.balance_loss = experts * (share * (scores / scores.sum(-1, keepdim=True)).mean(0)).sum()
        return self.experts(flat, ids, weights).view_as(x) + self.shared_experts(x)


class Layer(nn.Module):
    def __init__(self, c, index):
        super().__init__()
        self.input_layernorm, self.post_attention_layernorm = RmsNorm(c["hidden_size"]), RmsNorm(c["hidden_size"])
        self.self_attn = Attention(c)
        dense = index < c["first_k_dense_replace"]
        self.mlp = Mlp(c["hidden_size"], c["intermediate_size"]) if dense else Mixture(c)

    def forward(self, x, cos, sin, mask, cache=None):
        x = x + self.self_attn(self.input_layernorm(x), cos, sin, mask, cache)
        return x + self.mlp(self.post_attention_layernorm(x))


class MtpLayer(Layer):
    def __init__(self, c):
        super().__init__(c, c["num_hidden_layers"])
        hidden = c["hidden_size"]
        self.enorm, self.hnorm, self.norm = RmsNorm(hidden), RmsNorm(hidden), RmsNorm(hidden)
        self.eh_proj = nn.Parameter(torch.randn(hidden, 2 * hidden) * (2 * hidden) ** -0.5)

    def draft(self, embedded_next, h, cos, sin, mask, cache=None):
        joined = torch.cat((self.enorm(embedded_next), self.hnorm(h)), -1)
        return self.norm(self(F.linear(joined, self.eh_proj.to(joined.dtype)), cos, sin, mask, cache))


class DemoModel(nn.Module):
    def __init__(self, c=CONFIG, dtype=torch.bfloat16):
        super().__init__()
        self.c, self.dtype = c, dtype
        self.embed = nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]) * 0.5)
        self.layers = nn.ModuleList(Layer(c, i) for i in range(c["num_hidden_layers"]))
        self.norm = RmsNorm(c["hidden_size"])
        self.lm_head = nn.Parameter(torch.randn(c["vocab_size"], c["hidden_size"]) * c["hidden_size"] ** -0.5)
        self.mtp = MtpLayer(c)
        for layer in [*self.layers, self.mtp]:  # residual branches start small
            layer.self_attn.o_proj.weight.data *= 0.3
        cos, sin = rope_angles(c)
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def angles(self, positions):
        return self.cos[positions].to(self.dtype), self.sin[positions].to(self.dtype)

    def hidden(self, ids, positions, mask, cache=None):
        cos, sin = self.angles(positions)
        x = F.embedding(ids, self.embed).to(self.dtype)
        for layer in self.layers:
            x = layer(x, cos, sin, mask, cache)
        return self.norm(x)

    def logits(self, h):
        return F.linear(h, self.lm_head.to(h.dtype)).float()

    def losses(self, ids, positions, mask, targets, drafts=True):
        """ids [B, T]; targets [B, T] whether the token at t is to be predicted (by t - 1, drafted by t - 2).  Per head (sum
        of losses, count); None for the second where drafts is False."""
        h = self.hidden(ids, positions, mask)
        main = self.cross_entropy(h[:, :-1], ids[:, 1:], targets[:, 1:])
        if not drafts:
            return main, None
        cos, sin = self.angles(positions[:, :-1])
        inner = mask[..., :-1, :-1]
        draft = self.mtp.draft(F.embedding(ids[:, 1:], self.embed).to(self.dtype), h[:, :-1], cos, sin, inner)
        mtp = self.cross_entropy(draft[:, :-1], ids[:, 2:], targets[:, 2:] & targets[:, 1:-1])
        return main, mtp

    def cross_entropy(self, h, labels, wanted):
        rows = wanted.reshape(-1).nonzero().squeeze(1)
        labels = labels.reshape(-1)[rows]
        logits = F.linear(h.flatten(0, 1).index_select(0, rows), self.lm_head.to(h.dtype))
        return summed_cross_entropy(logits, labels), labels.numel()

    def mixtures(self, with_mtp=True):
        layers = [*self.layers, *([self.mtp] if with_mtp else [])]
        return [layer.mlp for layer in layers if isinstance(layer.mlp, Mixture)]


class _SummedCrossEntropy(torch.autograd.Function):
    """As F.cross_entropy(logits.float(), labels, reduction="sum") with fewer passes over the logits, a third of a step."""

    @staticmethod
    def forward(ctx, logits, labels):
        scores = logits.float()
        right = scores.gather(1, labels.unsqueeze(1)).squeeze(1)
        largest = scores.amax(1, keepdim=True)
        scores = scores.sub_(largest).exp_()
        total = scores.sum(1, keepdim=True)
        gradient = scores.div_(total)
        gradient[torch.arange(len(labels)), labels] -= 1
        ctx.save_for_backward(gradient.to(logits.dtype))
        return (total.log() + largest).sum() - right.sum()

    @staticmethod
    def backward(ctx, grad):
        return ctx.saved_tensors[0] * grad.to(ctx.saved_tensors[0].dtype), None


summed_cross_entropy = _SummedCrossEntropy.apply


def document_mask(document, dtype=torch.bfloat16):
    """[B, T] document numbers -> [B, 1, T, T] to add to scores: causal, inside a document."""
    length = document.shape[1]
    causal = torch.ones(length, length, dtype=torch.bool).tril()
    seen = (document.unsqueeze(2) == document.unsqueeze(1)) & causal
    return torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, float("-inf")).unsqueeze(1)
