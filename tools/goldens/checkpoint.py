"""Tiny checkpoints of the DeepSeek V2 and V3 families with the published tensor names, made from a fixed generator.

A tensor's values depend only on its name and size: the FNV-1a-64 hash of the name seeds a splitmix64 stream, element i is
offset + scale * ((z_i >> 40) / 2^23 - 1), rounded to the dtype it is stored in.  Tests in any language can make the same data.
Needs numpy only.
"""

import json
import math
import struct

import numpy as np

BLOCK = 128  # rows and columns that share one scale of an FP8 weight
E4M3_MAX = 448.0
WEIGHT_AMAX_FLOOR = 1e-12


# ---- numbers -----------------------------------------------------------------------------------------------------------
def round_to_bf16(values):
    """Nearest bfloat16, ties to even, as float64."""
    bits = np.asarray(values, np.float32).view(np.uint32)
    bits = (bits + np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & np.uint32(1))) & np.uint32(0xFFFF0000)
    return bits.view(np.float32).astype(np.float64)


def round_to_e4m3(values):
    """Nearest float8 e4m3fn, ties to even, saturated at +-448, as float64."""
    values = np.asarray(values, np.float64)
    magnitude = np.minimum(np.abs(values), E4M3_MAX)
    exponent = np.frexp(magnitude)[1] - 1
    step = np.exp2(np.maximum(exponent, -6) - 3.0)
    return np.copysign(np.round(magnitude / step) * step, values)


def _e4m3_table():
    codes = np.arange(0x7F)
    exponent, mantissa = codes >> 3, codes & 7
    return np.where(exponent == 0, mantissa * 2.0**-9, (8 + mantissa) * np.exp2(exponent - 10.0))


E4M3_VALUES = _e4m3_table()  # of the codes 0x00 to 0x7E


def e4m3_codes(values):
    """Bytes of values that are e4m3 numbers already."""
    codes = np.searchsorted(E4M3_VALUES, np.abs(values)).astype(np.uint8)
    return codes | (np.signbit(values).astype(np.uint8) << 7)


def e4m3_values(codes):
    values = E4M3_VALUES[codes & 0x7F]
    return np.where(codes & 0x80, -values, values)


def block_scale(amax, ue8m0):
    """The float32 multiplier amax / 448; with ue8m0 rounded up to a power of two."""
    scale = (np.asarray(amax, np.float64) / E4M3_MAX).astype(np.float32)
    if ue8m0:
        bits = (scale.view(np.uint32) + np.uint32(0x7FFFFF)) & np.uint32(0x7F800000)
        scale = bits.view(np.float32)
    return scale


def expand_blocks(scales, shape):
    rows, cols = shape
    return np.repeat(np.repeat(scales, BLOCK, 0)[:rows], BLOCK, 1)[:, :cols].astype(np.float64)


# ---- the generator -----------------------------------------------------------------------------------------------------
def fnv1a(text):
    digest = 0xCBF29CE484222325
    for byte in text.encode():
        digest = ((digest ^ byte) * 0x100000001B3) & 0xFFFFFFFFFFFFFFFF
    return digest


def uniform(name, count):
    """`count` values in [-1, 1), multiples of 2^-23."""
    with np.errstate(over="ignore"):
        z = np.uint64(fnv1a(name)) + np.uint64(0x9E3779B97F4A7C15) * np.arange(1, count + 1, dtype=np.uint64)
        z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
        z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
        z ^= z >> np.uint64(31)
    return (z >> np.uint64(40)).astype(np.float64) / 2.0**23 - 1.0


def token_ids(name, count, vocab_size):
    return [int((value + 1) / 2 * (vocab_size - 1)) for value in round_to_bf16(uniform(name, count))]


# ---- the tensors of a config -------------------------------------------------------------------------------------------
def tensor_specs(config):
    """Yields (name, shape, kind), in the file's order.  kind: matrix, embedding, norm, router, bias."""
    hidden, vocab = config["hidden_size"], config["vocab_size"]
    yield "model.embed_tokens.weight", (vocab, hidden), "embedding"
    yield "model.norm.weight", (hidden,), "norm"
    yield "lm_head.weight", (vocab, hidden), "matrix"
    layers = config["num_hidden_layers"]
    for layer in range(layers + config.get("num_nextn_predict_layers", 0)):
        prefix = f"model.layers.{layer}."
        yield prefix + "input_layernorm.weight", (hidden,), "norm"
        yield prefix + "post_attention_layernorm.weight", (hidden,), "norm"
        yield from _attention_specs(config, prefix + "self_attn.")
        yield from _ffn_specs(config, layer, prefix + "mlp.")
        if layer >= layers:
            for norm in ("enorm", "hnorm", "shared_head.norm"):
                yield f"{prefix}{norm}.weight", (hidden,), "norm"
            yield prefix + "eh_proj.weight", (hidden, 2 * hidden), "matrix"
            yield prefix + "embed_tokens.weight", (vocab, hidden), "embedding"
            yield prefix + "shared_head.head.weight", (vocab, hidden), "matrix"


def _attention_specs(config, prefix):
    hidden, heads = config["hidden_size"], config["num_attention_heads"]
    nope, rope, value = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["v_head_dim"]
    latent, q_rank = config["kv_lora_rank"], config["q_lora_rank"]
    if q_rank:
        yield prefix + "q_a_proj.weight", (q_rank, hidden), "matrix"
        yield prefix + "q_a_layernorm.weight", (q_rank,), "norm"
        yield prefix + "q_b_proj.weight", (heads * (nope + rope), q_rank), "matrix"
    else:
        yield prefix + "q_proj.weight", (heads * (nope + rope), hidden), "matrix"
    yield prefix + "kv_a_proj_with_mqa.weight", (latent + rope, hidden), "matrix"
    yield prefix + "kv_a_layernorm.weight", (latent,), "norm"
    yield prefix + "kv_b_proj.weight", (heads * (nope + value), latent), "matrix"
    yield prefix + "o_proj.weight", (hidden, heads * value), "matrix"


def _ffn_specs(config, layer, prefix):
    hidden, width = config["hidden_size"], config["moe_intermediate_size"]

    def mlp(at, intermediate):
        yield at + "gate_proj.weight", (intermediate, hidden), "matrix"
        yield at + "up_proj.weight", (intermediate, hidden), "matrix"
        yield at + "down_proj.weight", (hidden, intermediate), "matrix"

    if layer < config["first_k_dense_replace"]:
        yield from mlp(prefix, config["intermediate_size"])
        return
    yield prefix + "gate.weight", (config["n_routed_experts"], hidden), "router"
    if config["topk_method"] == "noaux_tc":
        yield prefix + "gate.e_score_correction_bias", (config["n_routed_experts"],), "bias"
    for expert in range(config["n_routed_experts"]):
        yield from mlp(f"{prefix}experts.{expert}.", width)
    yield from mlp(prefix + "shared_experts.", width * config["n_shared_experts"])


def _source_name(name):
    """The MTP layer's embedding and head are copies of the model's."""
    if name.endswith(".embed_tokens.weight"):
        return "model.embed_tokens.weight"
    return "lm_head.weight" if name.endswith("shared_head.head.weight") else name


class Tensor:
    """Values as float64 and the dtype they are stored in; FP8 tensors keep their block scales beside them."""

    def __init__(self, values, dtype, scales=None):
        self.values, self.dtype, self.scales = values, dtype, scales

    def dequantised(self):
        if self.scales is None:
            return self.values
        product = self.values.astype(np.float32) * expand_blocks(self.scales, self.values.shape).astype(np.float32)
        return product.astype(np.float64)


def make_tensors(config, dtype="BF16", bias_offset=0.0):
    """name -> Tensor.  With a quantization_config the linear layers that V3 ships in FP8 are quantised."""
    rounding = round_to_bf16 if dtype == "BF16" else (lambda v: v.astype(np.float32).astype(np.float64))
    tensors = {}
    for name, shape, kind in tensor_specs(config):
        scale = {"embedding": 1.0, "norm": 0.4, "router": 0.3, "bias": 1.0}.get(kind) or 1.7 / math.sqrt(shape[-1])
        offset = {"norm": 1.0, "bias": bias_offset}.get(kind, 0.0)
        values = rounding(offset + scale * uniform(_source_name(name), math.prod(shape))).reshape(shape)
        tensors[name] = Tensor(values, "F32" if kind == "bias" else dtype)
    if config.get("quantization_config"):
        ue8m0 = config["quantization_config"].get("scale_fmt") == "ue8m0"
        for name, tensor in tensors.items():
            if is_fp8(name):
                tensors[name] = quantise(tensor.values, ue8m0)
    return tensors


def is_fp8(name):
    return name.endswith(("_proj.weight", "_proj_with_mqa.weight")) and not name.endswith("eh_proj.weight")


def quantise(values, ue8m0):
    rows, cols = (-(-size // BLOCK) for size in values.shape)
    padded = np.zeros((rows * BLOCK, cols * BLOCK))
    padded[: values.shape[0], : values.shape[1]] = np.abs(values)
    amax = padded.reshape(rows, BLOCK, cols, BLOCK).max(axis=(1, 3))
    scales = block_scale(np.maximum(amax, WEIGHT_AMAX_FLOOR), ue8m0)
    return Tensor(round_to_e4m3(values / expand_blocks(scales, values.shape)), "F8_E4M3", scales)


# ---- files -------------------------------------------------------------------------------------------------------------
def _encode(values, dtype):
    if dtype == "F8_E4M3":
        return e4m3_codes(values).tobytes()
    bits = values.astype("<f4")
    return bits.tobytes() if dtype == "F32" else (bits.view("<u4") >> 16).astype("<u2").tobytes()


def write_safetensors(path, tensors):
    entries = [(name, t.dtype, t.values) for name, t in tensors.items()]
    entries += [(name + "_scale_inv", "F32", t.scales) for name, t in tensors.items() if t.scales is not None]
    header, blobs, offset = {}, [], 0
    for name, dtype, values in entries:
        blob = _encode(np.asarray(values), dtype)
        header[name] = {"dtype": dtype, "shape": list(values.shape), "data_offsets": [offset, offset + len(blob)]}
        offset += len(blob)
        blobs.append(blob)
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with open(path, "wb") as file:
        file.write(struct.pack("<Q", len(text)) + text + b"".join(blobs))


def _decode(blob, dtype, shape):
    if dtype == "F8_E4M3":
        return e4m3_values(np.frombuffer(blob, np.uint8)).reshape(shape)
    if dtype == "F32":
        return np.frombuffer(blob, "<f4").astype(np.float64).reshape(shape)
    if dtype == "BF16":
        return (np.frombuffer(blob, "<u2").astype("<u4") << 16).view("<f4").astype(np.float64).reshape(shape)
    raise ValueError(f"dtype {dtype} is not one of F8_E4M3, BF16, F32")


def read_safetensors(path):
    """The tensors of one file, scales joined to their weights."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        header = json.loads(file.read(length))
        data = file.read()
    raw = {
        name: (entry["dtype"], _decode(data[slice(*entry["data_offsets"])], entry["dtype"], entry["shape"]))
        for name, entry in header.items()
        if name != "__metadata__"
    }
    tensors = {}
    for name, (dtype, values) in raw.items():
        if not name.endswith("_scale_inv"):
            scales = raw.get(name + "_scale_inv", (None, None))[1]
            tensors[name] = Tensor(values, dtype, None if scales is None else scales.astype(np.float32))
    return tensors
