#!/usr/bin/env python3
"""Writes byte_tokenizer.json: a tokenizer.json whose ordinary tokens are the 256 bytes, with the V3 family's control tokens.

Small enough to commit, and every id can be checked by hand: byte b of GPT-2's alphabet order is token 3 + its place, as in DeepSeek-V3.

Usage: make_byte_tokenizer.py > byte_tokenizer.json
"""
import json

printable = list(range(33, 127)) + list(range(161, 173)) + list(range(174, 256))
alphabet = {b: chr(b) for b in printable}
for i, b in enumerate(b for b in range(256) if b not in alphabet):
    alphabet[b] = chr(256 + i)
order = printable + [b for b in range(256) if b not in printable]

control = ['<｜begin▁of▁sentence｜>', '<｜end▁of▁sentence｜>', '<｜▁pad▁｜>']
late = ['<think>', '</think>', '<｜User｜>', '<｜Assistant｜>'] + [
    f'<｜tool▁{name}｜>' for name in ('calls▁begin', 'calls▁end', 'call▁begin', 'call▁end', 'outputs▁begin', 'outputs▁end',
                                     'output▁begin', 'output▁end', 'sep')]
vocab = {alphabet[b]: 3 + i for i, b in enumerate(order)}
added = [(i, t, True) for i, t in enumerate(control)] + [(259 + i, t, False) for i, t in enumerate(late)]
print(json.dumps({
    'version': '1.0', 'truncation': None, 'padding': None,
    'added_tokens': [{'id': i, 'content': t, 'single_word': False, 'lstrip': False, 'rstrip': False, 'normalized': False,
                      'special': s} for i, t, s in added],
    'normalizer': None,
    'pre_tokenizer': {'type': 'ByteLevel', 'add_prefix_space': False, 'trim_offsets': True, 'use_regex': False},
    'post_processor': None,
    'decoder': {'type': 'ByteLevel', 'add_prefix_space': True, 'trim_offsets': True, 'use_regex': True},
    'model': {'type': 'BPE', 'dropout': None, 'unk_token': None, 'continuing_subword_prefix': None, 'end_of_word_suffix': None,
              'fuse_unk': False, 'byte_fallback': False, 'ignore_merges': False, 'vocab': vocab, 'merges': []},
}, ensure_ascii=True))
