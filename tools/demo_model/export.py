#!/usr/bin/env python3
"""Exports a training checkpoint as a HuggingFace directory in FP8 (e4m3, 128 x 128 blocks), like DeepSeek-V3 itself.

Example: tools/demo_model/.venv/bin/python tools/demo_model/export.py --checkpoint build/demo_model/checkpoint.pt
Writes config.json, generation_config.json, tokenizer.json, tokenizer_config.json and model.safetensors.
"""

import argparse
import json
import os
import shutil
import sys

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, HERE)
import torch
from model import CONFIG, DemoModel, round_e4m3, spread, weight_scales

# The templates of V3.1: thinking is asked for with `thinking`.
CHAT_TEMPLATE = (
    "{%- set ns = namespace(system='', after_user=false) -%}"
    "{%- for m in messages if m['role'] == 'system' -%}"
    "{%- set ns.system = ns.system + ('\\n\\n' if ns.system else '') + m['content'] -%}{%- endfor -%}"
    "{{ bos_token }}{{ ns.system }}"
    "{%- for m in messages -%}"
    "{%- if m['role'] == 'user' -%}{{ '<｜User｜>' + m['content'] }}{%- set ns.after_user = true -%}"
    "{%- elif m['role'] == 'tool' -%}{{ '<｜tool▁output▁begin｜>' + m['content'] + '<｜tool▁output▁end｜>' }}"
    "{%- elif m['role'] == 'assistant' -%}"
    "{%- if ns.after_user -%}{{ '<｜Assistant｜></think>' }}{%- endif -%}{%- set ns.after_user = false -%}"
    "{{ (m['content'] or '').split('</think>')[-1] }}"
    "{%- if m['tool_calls'] -%}{{ '<｜tool▁calls▁begin｜>' }}"
    "{%- for call in m['tool_calls'] -%}"
    "{{ '<｜tool▁call▁begin｜>' + call['function']['name'] + '<｜tool▁sep｜>' + call['function']['arguments'] + '<｜tool▁call▁end｜>' }}"
    "{%- endfor -%}{{ '<｜tool▁calls▁end｜>' }}{%- endif -%}{{ eos_token }}"
    "{%- endif -%}{%- endfor -%}"
    "{%- if add_generation_prompt and ns.after_user -%}"
    "{{ '<｜Assistant｜>' + ('<think>' if thinking is defined and thinking else '</think>') }}{%- endif -%}"
)


def quantised(weight):
    """(e4m3 values, float32 scales) of one matrix."""
    scales = weight_scales(weight)
    return round_e4m3(weight.float() / spread(scales, weight.shape)).to(torch.float8_e4m3fn), scales


def tensors(model):
    """(name, tensor, whether a linear layer that is stored in FP8), under the published names."""
    yield "model.embed_tokens.weight", model.embed, False
    for index, layer in enumerate([*model.layers, model.mtp]):
        prefix = f"model.layers.{index}."
        yield prefix + "input_layernorm.weight", layer.input_layernorm.weight, False
        yield prefix + "post_attention_layernorm.weight", layer.post_attention_layernorm.weight, False
        for name, value in layer.self_attn.named_parameters():
            yield f"{prefix}self_attn.{name}", value, name.endswith(("_proj.weight", "_mqa.weight"))
        yield from mlp_tensors(prefix + "mlp.", layer.mlp)
        if layer is model.mtp:
            yield prefix + "enorm.weight", layer.enorm.weight, False
            yield prefix + "hnorm.weight", layer.hnorm.weight, False
            yield prefix + "eh_proj.weight", layer.eh_proj, False
            yield prefix + "embed_tokens.weight", model.embed, False
            yield prefix + "shared_head.norm.weight", layer.norm.weight, False
            yield prefix + "shared_head.head.weight", model.lm_head, False
    yield "model.norm.weight", model.norm.weight, False
    yield "lm_head.weight", model.lm_head, False


def mlp_tensors(prefix, mlp):
    if not hasattr(mlp, "experts"):
        for name, value in mlp.named_parameters():
            yield prefix + name, value, True
        return
    yield prefix + "gate.weight", mlp.gate, False
    yield prefix + "gate.e_score_correction_bias", mlp.e_score_correction_bias, False
    for expert in range(mlp.experts.down.shape[0]):
        yield f"{prefix}experts.{expert}.gate_proj.weight", mlp.experts.gate_up[expert, 0], True
        yield f"{prefix}experts.{expert}.up_proj.weight", mlp.experts.gate_up[expert, 1], True
        yield f"{prefix}experts.{expert}.down_proj.weight", mlp.experts.down[expert], True
    for name, value in mlp.shared_experts.named_parameters():
        yield f"{prefix}shared_experts.{name}", value, True


def rope_rows(name, interleaved):
    """The order of a projection's rows: the model's evens then odds to the published pairs, or back.  None for others."""
    head, rope = CONFIG["qk_nope_head_dim"], CONFIG["qk_rope_head_dim"]
    if name.endswith("q_b_proj.weight"):
        heads = CONFIG["num_attention_heads"]
    elif name.endswith("kv_a_proj_with_mqa.weight"):
        heads, head = 1, CONFIG["kv_lora_rank"]
    else:
        return None
    halves = torch.arange(rope).view(2, rope // 2)
    order = halves.t().reshape(-1) if interleaved else torch.cat((torch.arange(0, rope, 2), torch.arange(1, rope, 2)))
    return torch.cat([torch.cat((torch.arange(head), head + order)) + h * (head + rope) for h in range(heads)])


def published(model):
    out = {}
    for name, value, is_fp8 in tensors(model):
        value = value.detach()
        if (rows := rope_rows(name, interleaved=True)) is not None:
            value = value[rows]
        if is_fp8:
            out[name], out[name + "_scale_inv"] = quantised(value)
        else:
            out[name] = value.float() if name.endswith("bias") else value.bfloat16()
    return {name: value.clone().contiguous() for name, value in out.items()}


def write_json(path, value):
    with open(path, "w", encoding="utf-8") as file:
        json.dump(value, file, ensure_ascii=False, indent=2)
        file.write("\n")


def load_checkpoint(path):
    model = DemoModel()
    state = torch.load(path, weights_only=True, map_location="cpu")
    model.load_state_dict(state["model"])
    return model, state["step"]


def load_export(folder, dtype=torch.bfloat16):
    """The exported weights, dequantised, in our own model."""
    from safetensors.torch import load_file

    stored, model = load_file(os.path.join(folder, "model.safetensors")), DemoModel(dtype=dtype)
    for name, value, is_fp8 in tensors(model):
        weight = stored[name].float()
        if is_fp8:
            weight = weight * spread(stored[name + "_scale_inv"], weight.shape)
        rows = rope_rows(name, interleaved=False)
        value.data.copy_(weight if rows is None else weight[rows])
    return model.eval()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoint", default="build/demo_model/checkpoint.pt")
    parser.add_argument("--tokenizer", default="build/demo_model/tokenizer.json")
    parser.add_argument("--out", default=os.path.join(HERE, "weights"))
    options = parser.parse_args()
    from safetensors.torch import save_file

    model, step = load_checkpoint(options.checkpoint)
    os.makedirs(options.out, exist_ok=True)
    save_file(published(model), os.path.join(options.out, "model.safetensors"), metadata={"format": "pt"})
    quantisation = dict(quant_method="fp8", fmt="e4m3", activation_scheme="dynamic", weight_block_size=[128, 128])
    write_json(os.path.join(options.out, "config.json"), {**CONFIG, "quantization_config": quantisation})
    write_json(
        os.path.join(options.out, "generation_config.json"),
        dict(bos_token_id=0, eos_token_id=1, pad_token_id=2, do_sample=False, temperature=0.0),
    )
    write_json(
        os.path.join(options.out, "tokenizer_config.json"),
        dict(
            add_bos_token=True,
            add_eos_token=False,
            bos_token="<｜begin▁of▁sentence｜>",
            eos_token="<｜end▁of▁sentence｜>",
            pad_token="<｜▁pad▁｜>",
            unk_token=None,
            clean_up_tokenization_spaces=False,
            model_max_length=CONFIG["max_position_embeddings"],
            tokenizer_class="PreTrainedTokenizerFast",
            chat_template=CHAT_TEMPLATE,
        ),
    )
    shutil.copyfile(options.tokenizer, os.path.join(options.out, "tokenizer.json"))
    size = sum(os.path.getsize(os.path.join(options.out, name)) for name in os.listdir(options.out))
    print(f"step {step}: {options.out}, {size / 1e6:.2f} MB")


if __name__ == "__main__":
    main()
