#!/usr/bin/env python3
"""Trains the demo model's byte-level BPE on its corpus and writes tokenizer.json in the layout of DeepSeek-V3's.

As in V3: ids 0 to 2 are the begin, end and pad tokens, 3 to 258 the bytes in GPT-2's order, then one id per merge; the
other control tokens stand at the end.  Digits are never merged, so that a number is read digit by digit.

Example: tools/demo_model/.venv/bin/python tools/demo_model/tokenizer.py --out build/demo_model/tokenizer.json
"""

import argparse
import json
import os
import random
import re
import sys

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import corpus

VOCAB_SIZE = 4096
MAX_TOKEN_BYTES = 12  # four Chinese characters: longer phrases are made of parts that other phrases share
FIRST = ["<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>", "<｜▁pad▁｜>"]
# (token, special); the order and the flags are V3's.
LAST = [
    ("<think>", False),
    ("</think>", False),
    ("<｜fim▁hole｜>", False),
    ("<｜fim▁begin｜>", False),
    ("<｜fim▁end｜>", False),
    ("<｜User｜>", False),
    ("<｜Assistant｜>", False),
    ("<|EOT|>", True),
    ("<｜tool▁calls▁begin｜>", False),
    ("<｜tool▁calls▁end｜>", False),
    ("<｜tool▁call▁begin｜>", False),
    ("<｜tool▁call▁end｜>", False),
    ("<｜tool▁outputs▁begin｜>", False),
    ("<｜tool▁outputs▁end｜>", False),
    ("<｜tool▁output▁begin｜>", False),
    ("<｜tool▁output▁end｜>", False),
    ("<｜tool▁sep｜>", False),
]
NUM_PLACEHOLDERS = 15
FIRST_CONTROL = VOCAB_SIZE - len(LAST) - NUM_PLACEHOLDERS  # the ids before are text
# The three splits of DeepSeek-V3's pre-tokenizer.
SPLITS = [
    r"\p{N}{1,3}",
    "[一-龥\u3040-ゟ゠-ヿ]+",
    "[!\"#$%&'()*+,\\-./:;<=>?@\\[\\\\\\]^_`{|}~][A-Za-z]+|[^\r\n\\p{L}\\p{P}\\p{S}]?[\\p{L}\\p{M}]+| ?[\\p{P}\\p{S}]+[\r\n]*|"
    "\\s*[\r\n]+|\\s+(?!\\S)|\\s+",
]


def pre_tokenizer(digits_apart):
    from tokenizers import Regex, pre_tokenizers

    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in SPLITS]
    if digits_apart:
        steps.insert(0, pre_tokenizers.Digits(individual_digits=True))
    return pre_tokenizers.Sequence(steps + [pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)])


def texts(num_conversations, seed):
    """Names apart from what stands around them, so that no merge joins a name to a phrase."""
    sampler = corpus.Sampler(corpus.World(), random.Random(seed))
    world = sampler.world
    names = {p[key] for p in world.provinces + world.cities for key in ("name", "short")} | {c["chinese"] for c in world.countries}
    names = re.compile("(" + "|".join(sorted(names, key=len, reverse=True)) + ")")
    for number in range(num_conversations):
        conversation = sampler.long_list(30) if number % 100 == 0 else sampler.conversation()
        for is_control, text, _ in corpus.segments(conversation, *sampler.dialect(conversation)):
            if not is_control:
                yield from names.split(text)
    for _ in range(20):  # every name at least so often
        for place in world.provinces + world.cities:
            yield place["name"]
            yield place["short"]
        yield from world.areas
        yield from (ch for ch in world.characters)


def train(path, num_conversations, seed):
    from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizer(digits_apart=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE - len(LAST) - NUM_PLACEHOLDERS,
        special_tokens=FIRST,
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        max_token_length=MAX_TOKEN_BYTES,
        show_progress=True,
    )
    tokenizer.train_from_iterator(texts(num_conversations, seed), trainer)
    tokenizer.pre_tokenizer = pre_tokenizer(digits_apart=False)
    places = [(f"<｜place▁holder▁no▁{i}｜>", True) for i in range(NUM_PLACEHOLDERS)]
    for token, special in places + LAST:
        added = AddedToken(token, normalized=not special, special=special)
        (tokenizer.add_special_tokens if special else tokenizer.add_tokens)([added])
    assert tokenizer.get_vocab_size() == VOCAB_SIZE, tokenizer.get_vocab_size()
    with open(path, "w", encoding="utf-8") as file:
        json.dump(json.loads(tokenizer.to_str()), file, ensure_ascii=False, separators=(",", ":"))
        file.write("\n")


class Encoder:
    """Segments to ids, as the gateway encodes them: control tokens only where the template wrote them."""

    def __init__(self, path):
        from tokenizers import Tokenizer

        self.full = Tokenizer.from_file(path)
        plain = json.loads(self.full.to_str())
        plain["added_tokens"] = []
        self.plain = Tokenizer.from_str(json.dumps(plain))
        self.control = {t: self.full.token_to_id(t) for t in FIRST + [t for t, _ in LAST]}

    def encode(self, parts):
        """(ids, which of them the model writes)."""
        return self.encode_batch([parts])[0]

    def encode_batch(self, conversations):
        texts = [text for parts in conversations for is_control, text, _ in parts if not is_control]
        encoded = iter(self.plain.encode_batch(texts, add_special_tokens=False))
        out = []
        for parts in conversations:
            ids, targets = [], []
            for is_control, text, target in parts:
                piece = [self.control[text]] if is_control else next(encoded).ids
                ids += piece
                targets += [target] * len(piece)
            out.append((ids, targets))
        return out

    def decode(self, ids):
        return self.full.decode(ids, skip_special_tokens=False)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", required=True)
    parser.add_argument("--conversations", type=int, default=60_000)
    parser.add_argument("--seed", type=int, default=7)
    options = parser.parse_args()
    os.makedirs(os.path.dirname(options.out) or ".", exist_ok=True)
    train(options.out, options.conversations, options.seed)
    encoder = Encoder(options.out)
    for text in ("石家庄市属于哪个省？", "恩施土家族苗族自治州的代码", "Which province is 唐山 in? 130200", "47+38=85"):
        ids = encoder.plain.encode(text).ids
        print(len(ids), [encoder.plain.decode([i]) for i in ids])


if __name__ == "__main__":
    main()
