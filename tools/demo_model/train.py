#!/usr/bin/env python3
"""Trains the demo model on a CPU.  One command; started again, it goes on from its last checkpoint.

Each process trains on its own part of every batch with one thread, and gradients are averaged between them: on a shared
machine this is faster than threads, which wait for the slowest after every operation.

Examples:
  tools/demo_model/.venv/bin/python tools/demo_model/train.py --out build/demo_model --steps 4600
  ... --steps 6000      (later: more steps; the learning rate follows the larger number)
Writes OUT/tokenizer.json, OUT/checkpoint.pt (every few minutes), OUT/train.jsonl (losses and accuracies).
"""

import argparse
import itertools
import json
import os
import random
import signal
import sys
import time

sys.path.insert(0, os.path.dirname(os.path.abspath(__file__)))
import corpus
import tokenizer as bpe

ROW_TOKENS, SHORT_ROWS, MAX_LONG_TOKENS = 320, 8, 1700
LONG_EVERY = 15  # steps
MTP_EVERY = 4  # steps
CONVERSATIONS_PER_SHARD = 1000
# Rows of copies beside a shard's conversations, of ROW_TOKENS each: many until copying is learnt.
COPIES_PER_SHARD, COPIES_UNTIL, COPIES_PER_SHARD_LATER = 120, 0.6, 50
MTP_WEIGHT, BALANCE_WEIGHT = 0.3, 0.003
WARMUP_STEPS, DECAY_FROM, FINAL_RATE = 60, 0.45, 0.02
QUANTISE_FROM, QUANTISE_INPUTS_FROM = 0.88, 0.96
MUON_RATE, MUON_DECAY, ADAM_RATE, ADAM_DECAY = 0.02, 0.05, 3e-3, 0.01


# ---- data ----------------------------------------------------------------------------------------------------------------
class Stream:
    """Endless packed rows; a shard is fixed by (seed, rank, shard)."""

    def __init__(self, encoder, seed, rank, shard):
        self.encoder, self.seed, self.rank, self.shard = encoder, seed, rank, shard
        self.world, self.short, self.long, self.progress = corpus.World(), [], [], 0.0

    def fill(self):
        rng = random.Random(f"{self.seed}.{self.rank}.{self.shard}")
        sampler = corpus.Sampler(self.world, rng)
        made = [sampler.conversation() for _ in range(CONVERSATIONS_PER_SHARD)]
        made += [sampler.long_list() for _ in range(CONVERSATIONS_PER_SHARD // 500)]
        parts = [corpus.segments(c, *sampler.dialect(c)) for c in made]
        encoded = self.encoder.encode_batch(parts)
        num_copies = COPIES_PER_SHARD if self.progress < COPIES_UNTIL else COPIES_PER_SHARD_LATER
        for number in range(num_copies):
            length = 1200 if number % 40 == 0 else ROW_TOKENS if number % 4 == 0 else rng.randint(24, ROW_TOKENS // 2)
            encoded.append(corpus.copies(self.encoder, sampler, 3, bpe.FIRST_CONTROL - 3, length))
        rng.shuffle(encoded)
        self.long += [e for e in encoded if ROW_TOKENS < len(e[0]) <= MAX_LONG_TOKENS]
        self.short += pack([e for e in encoded if len(e[0]) <= ROW_TOKENS])
        self.shard += 1

    def short_batch(self):
        while len(self.short) < SHORT_ROWS:
            self.fill()
        rows, self.short = self.short[:SHORT_ROWS], self.short[SHORT_ROWS:]
        return tensors(rows, ROW_TOKENS)

    def long_batch(self):
        while not self.long:
            self.fill()
        row = [self.long.pop(0)]
        return tensors([row], len(row[0][0]))


def pack(documents):
    """First fit into rows of ROW_TOKENS; rows that are nearly full first."""
    rows, open_rows = [], []
    for document in documents:
        for row in open_rows:
            if row[0] + len(document[0]) <= ROW_TOKENS:
                row[0] += len(document[0])
                row[1].append(document)
                break
        else:
            open_rows.append([len(document[0]), [document]])
        if len(open_rows) > 24:
            open_rows.sort(key=lambda r: -r[0])
            rows.append(open_rows.pop(0)[1])
    return rows + [row for _, row in open_rows]


def tensors(rows, length):
    import torch

    ids = torch.full((len(rows), length), 2)
    positions, document = torch.zeros_like(ids), torch.full_like(ids, -1)
    targets = torch.zeros_like(ids, dtype=torch.bool)
    for r, row in enumerate(rows):
        at = 0
        for number, (tokens, wanted) in enumerate(row):
            end = at + len(tokens)
            ids[r, at:end] = torch.tensor(tokens)
            positions[r, at:end] = torch.arange(len(tokens))
            document[r, at:end] = number
            targets[r, at:end] = torch.tensor(wanted)
            at = end
    return ids, positions, document, targets


# ---- optimisers ----------------------------------------------------------------------------------------------------------
def orthogonalised(matrix, steps=5):
    """Newton-Schulz iteration towards the nearest (semi-)orthogonal matrix, batched over leading dimensions."""
    import torch

    x = matrix.bfloat16()
    tall = x.shape[-2] > x.shape[-1]
    x = x.mT if tall else x
    x = x / (x.float().norm(dim=(-2, -1), keepdim=True) + 1e-7).bfloat16()
    for _ in range(steps):
        a = x @ x.mT
        x = 3.4445 * x + (-4.7750 * a + 2.0315 * (a @ a)) @ x
    return (x.mT if tall else x).float()


class Optimiser:
    """Muon for the matrices of layers, Adam for the rest (embedding, head, router, norms)."""

    def __init__(self, model):
        import torch

        muon = lambda name, p: p.ndim >= 2 and name not in ("embed", "lm_head") and not name.endswith("mlp.gate")
        self.named = dict(model.named_parameters())
        self.muon = [n for n, p in self.named.items() if muon(n, p)]
        self.adam = [n for n, p in self.named.items() if not muon(n, p)]
        zeros = lambda names: {n: torch.zeros_like(self.named[n]) for n in names}
        self.state = {"step": 0, "momentum": zeros(self.muon), "first": zeros(self.adam), "second": zeros(self.adam)}

    def step(self, rate):
        import torch

        self.state["step"] += 1
        count = self.state["step"]
        with torch.no_grad():
            for name in self.muon:
                p = self.named[name]
                if p.grad is None:
                    continue
                momentum = self.state["momentum"][name].lerp_(p.grad, 0.05)
                update = orthogonalised(p.grad.lerp(momentum, 0.95))
                scale = MUON_RATE * rate * max(1.0, p.shape[-2] / p.shape[-1]) ** 0.5
                p.mul_(1 - MUON_RATE * rate * MUON_DECAY).add_(update, alpha=-scale)
            for name in self.adam:
                p = self.named[name]
                if p.grad is None:
                    continue
                first = self.state["first"][name].lerp_(p.grad, 0.1)
                second = self.state["second"][name].lerp_(p.grad.square(), 0.05)
                step = (first / (1 - 0.9**count)) / ((second / (1 - 0.95**count)).sqrt() + 1e-8)
                decay = ADAM_DECAY if p.ndim > 1 else 0.0
                p.mul_(1 - ADAM_RATE * rate * decay).add_(step, alpha=-ADAM_RATE * rate)


def rate_at(step, progress):
    if step < WARMUP_STEPS:
        return (step + 1) / WARMUP_STEPS
    decay = (progress - DECAY_FROM) / (1 - DECAY_FROM)
    return 1.0 if decay <= 0 else max(FINAL_RATE, 1 - decay * (1 - FINAL_RATE))


# ---- judging -------------------------------------------------------------------------------------------------------------
JUDGED = ["city_province", "code", "from_code", "capital", "sum", "prefix", "unknown", "country", "json_answer", "tool_call", "follow_ups", "short_list", "repeat"]


def judge(model, encoder, per_kind):
    """Share of held-out conversations whose every answer token greedy decoding would choose; MTP's share of right drafts."""
    import torch
    from model import document_mask

    accuracy, drafts = {}, [0, 0]
    for kind in JUDGED:
        sampler = corpus.Sampler(corpus.World(), random.Random(f"judge {kind}"), held_out="either")
        right = 0
        for _ in range(per_kind):
            c = sampler.single(kind) if kind in sampler.SINGLES else getattr(sampler, kind)()
            ids, positions, document, targets = row_of(encoder, sampler, c)
            with torch.no_grad():
                h = model.hidden(ids, positions, document_mask(document))
                wrong = (model.logits(h[:, :-1]).argmax(-1) != ids[:, 1:]) & targets[:, 1:]
                right += not bool(wrong.any())
                mask = document_mask(document)[..., :-1, :-1]
                draft = model.mtp.draft(model.embed[ids[:, 1:]].to(model.dtype), h[:, :-1], *model.angles(positions[:, :-1]), mask)
                wanted = targets[:, 2:] & targets[:, 1:-1]
                drafts[0] += int(((model.logits(draft[:, :-1]).argmax(-1) == ids[:, 2:]) & wanted).sum())
                drafts[1] += int(wanted.sum())
        accuracy[kind] = round(right / per_kind, 3)
    accuracy["mtp"] = round(drafts[0] / drafts[1], 3)
    return accuracy


def row_of(encoder, sampler, conversation):
    encoded = encoder.encode(corpus.segments(conversation, *sampler.dialect(conversation)))
    return tensors([[encoded]], len(encoded[0]))


# ---- the loop ------------------------------------------------------------------------------------------------------------
class Progress:
    """How far the training is, 0 to 1, by steps or, with `minutes`, by the clock from where the checkpoint stands."""

    def __init__(self, options, start, stored):
        self.options, self.began = options, time.time()
        self.start = start / options.steps if stored is None or not options.minutes else stored

    def at(self, step):
        import torch
        import torch.distributed as dist

        if not self.options.minutes:
            return step / self.options.steps
        share = (time.time() - self.began) / (60 * self.options.minutes)
        progress = torch.tensor([min(1.0, self.start + (1 - self.start) * share)])
        if self.options.processes > 1:
            dist.broadcast(progress, 0)  # the first rank's clock
        return float(progress)


def update_router_bias(model, world_size, step, progress):
    """Auxiliary-loss-free balancing: experts with less than their share are made easier to choose."""
    import torch
    import torch.distributed as dist

    speed = 0.01 if step < 300 else 0.003 if progress < 0.8 else 0.0005
    for mixture in model.mixtures(with_mtp=step % MTP_EVERY == 0):
        if world_size > 1:
            dist.all_reduce(mixture.load)
        mixture.e_score_correction_bias += speed * torch.sign(mixture.load.mean() - mixture.load)
        mixture.e_score_correction_bias -= mixture.e_score_correction_bias.mean()


def average_gradients(parameters, world_size):
    import torch
    import torch.distributed as dist

    if world_size == 1:
        return
    parameters = [p for p in parameters if p.grad is not None]  # the same on every rank: the MTP layer's are now and then
    flat = torch.cat([p.grad.flatten() for p in parameters])
    dist.all_reduce(flat)
    flat /= world_size
    at = 0
    for p in parameters:
        p.grad.copy_(flat[at : at + p.numel()].view_as(p))
        at += p.numel()


def save(path, model, optimiser, step, shard, progress):
    import torch

    torch.save({"progress": progress, "model": model.state_dict(), "optimiser": optimiser.state, "step": step, "shard": shard}, path + ".tmp")
    os.replace(path + ".tmp", path)


def show(step, done, losses, speed, began):
    width = 24
    left = (1 - done) * (time.time() - began[0]) / max(done - began[1], 1e-6)
    bar = "#" * int(width * done) + "." * (width - int(width * done))
    print(f"\r[{bar}] step {step}  loss {losses[0]:.3f}  mtp {losses[1]:.3f}  {speed:.0f} tokens/s  {left / 60:.0f} min left ", end="", file=sys.stderr, flush=True)


def run(rank, options):
    import torch
    import torch.distributed as dist
    from model import DemoModel, Quantisation, document_mask

    torch.set_num_threads(1)
    torch.manual_seed(options.seed)
    if options.processes > 1:
        store = f"file://{os.path.abspath(options.out)}/rendezvous.{options.session}"
        dist.init_process_group("gloo", init_method=store, rank=rank, world_size=options.processes)
    encoder = bpe.Encoder(os.path.join(options.out, "tokenizer.json"))
    model = DemoModel()
    optimiser, parameters = Optimiser(model), list(model.parameters())
    path, start, shard, stored = os.path.join(options.out, "checkpoint.pt"), 0, 0, None
    if os.path.exists(path):
        state = torch.load(path, weights_only=True)
        model.load_state_dict(state["model"])
        optimiser.state, start, shard = state["optimiser"], state["step"], state["shard"] + 1
        stored = state.get("progress")
    stream = Stream(encoder, options.seed, rank, shard)
    schedule = Progress(options, start, stored)
    began, saved, tokens, sums, clock = (time.time(), schedule.start), time.time(), 0, torch.zeros(4), time.time()

    for step in itertools.count(start):
        stream.progress = progress = schedule.at(step)
        if progress >= 1:
            break
        Quantisation.weights, Quantisation.inputs = progress >= QUANTISE_FROM, progress >= QUANTISE_INPUTS_FROM
        for mixture in model.mixtures():
            mixture.load.zero_()
        batches = [stream.short_batch()] + ([stream.long_batch()] if step % LONG_EVERY == 0 else [])
        wanted = sum(int(b[3].sum()) for b in batches)
        for ids, positions, document, targets in batches:
            drafts = step % MTP_EVERY == 0
            main, mtp = model.losses(ids, positions, document_mask(document), targets, drafts)
            balance = sum(m.balance_loss for m in model.mixtures(with_mtp=drafts))
            loss = (main[0] + (MTP_WEIGHT * mtp[0] if drafts else 0)) / wanted + BALANCE_WEIGHT * balance / len(batches)
            loss.backward()
            sums += torch.tensor([main[0].item(), main[1], mtp[0].item() if drafts else 0, mtp[1] if drafts else 0])
            tokens += ids.numel()
        average_gradients(parameters, options.processes)
        update_router_bias(model, options.processes, step, progress)
        optimiser.step(rate_at(step, progress))
        model.zero_grad(set_to_none=True)
        done = step + 1
        if rank == 0 and done % 10 == 0:
            show(done, progress, (sums[0] / sums[1], sums[2] / sums[3]), options.processes * tokens / (time.time() - clock), began)
        if done % options.judge_every == 0:
            if rank == 0:
                Quantisation.weights = True
                accuracy = judge(model, encoder, options.judged)
                loads = [m.load / m.load.mean() for m in model.mixtures()]
                line = {
                    "step": done, "loss": round(float(sums[0] / sums[1]), 4), "mtp_loss": round(float(sums[2] / sums[3]), 4),
                    "tokens_per_s": round(options.processes * tokens / (time.time() - clock)),
                    "load": [round(float(min(l.min() for l in loads)), 2), round(float(max(l.max() for l in loads)), 2)], "held_out": accuracy,
                }  # fmt: skip
                with open(os.path.join(options.out, "train.jsonl"), "a") as log:
                    log.write(json.dumps(line) + "\n")
                print("\n" + json.dumps(line), flush=True)
            sums.zero_()
            tokens, clock = 0, time.time()
        if rank == 0 and (time.time() - saved > 60 * options.save_minutes):
            save(path, model, optimiser, done, stream.shard, progress)
            saved = time.time()
    if rank == 0:
        save(path, model, optimiser, step, stream.shard, progress)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", default="build/demo_model")
    parser.add_argument("--steps", type=int, default=4600)
    parser.add_argument("--minutes", type=float, help="end after so long instead, whatever the machine's speed")
    parser.add_argument("--processes", type=int, default=2, help="1 where other programs keep the processors busy")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--save-minutes", type=float, default=3)
    parser.add_argument("--judge-every", type=int, default=200, help="steps")
    parser.add_argument("--judged", type=int, default=40, help="held-out conversations of each kind")
    options = parser.parse_args()
    os.makedirs(options.out, exist_ok=True)
    if not os.path.exists(os.path.join(options.out, "tokenizer.json")):
        bpe.train(os.path.join(options.out, "tokenizer.json"), 60_000, options.seed)
    options.session = f"{os.getpid()}.{int(time.time())}"
    if options.processes == 1:
        return run(0, options)
    import torch.multiprocessing

    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))  # so that the children end, too
    try:
        torch.multiprocessing.spawn(run, (options,), options.processes, daemon=True)
    finally:
        rendezvous = os.path.join(options.out, f"rendezvous.{options.session}")
        if os.path.exists(rendezvous):
            os.remove(rendezvous)


if __name__ == "__main__":
    main()
