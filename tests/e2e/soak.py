#!/usr/bin/env python3
"""A cluster under full load for a long time, while its processes are killed and stopped at random.

Clients ask in a closed loop; every answer is compared with what `weir generate` says to the same prompt alone.  Some clients leave in the middle.  Every few
seconds one process gets SIGKILL or SIGSTOP.  At the end nothing may be wrong, lost, leaked or grown.

Examples:
  tests/e2e/run.py tests/e2e/soak.py --minutes 10
  tests/e2e/run.py tests/e2e/soak.py --minutes 1 --fault-every 5 --seed 7 --json soak.json
"""
import argparse
import json
import random
import signal
import sys
import threading
import time

import grpc

from client import Client
from cluster import Cluster, generate_alone



class Books:
    def __init__(self):
        self.lock = threading.Lock()
        self.counts = {}
        self.wrong = []
        self.pauses = []
        self.tokens = 0

    def add(self, what, tokens=0, pause_s=None):
        with self.lock:
            self.counts[what] = self.counts.get(what, 0) + 1
            self.tokens += tokens
            if pause_s is not None:
                self.pauses.append(pause_s)


def ask_in_a_loop(number, options, cluster, prompts, expected, books, is_over):
    rng = random.Random(f"client {options.seed} {number}")
    client = Client(cluster.port)
    while not is_over.is_set():
        which = rng.randrange(len(prompts))
        limit = rng.randint(1, len(expected[which]))
        stream = client.generate(prompts[which], limit, timeout_s=60)
        if rng.random() < 0.1:
            time.sleep(rng.uniform(0, 0.5))
            stream.cancel()
        stream.join()
        if stream.token_ids != expected[which][: len(stream.token_ids)]:
            books.add("wrong tokens")
            books.wrong.append((which, limit, len(stream.token_ids)))
        elif stream.finished is not None and stream.finished.error.reason:
            books.add("ended: " + stream.finished.error.reason, len(stream.token_ids))
        elif stream.code == grpc.StatusCode.OK:
            books.add("whole" if len(stream.token_ids) == limit else "short", len(stream.token_ids), stream.longest_pause_s())
        else:
            books.add("status " + stream.code.name, len(stream.token_ids))
            if stream.code == grpc.StatusCode.UNAVAILABLE:
                time.sleep(0.2)
    client.channel.close()


def strike(rng, cluster, options):
    name, number = rng.choice(
        [(f"rank{rng.randrange(4)}", signal.SIGKILL)] * 4 + [(f"rank{rng.randrange(4)}", signal.SIGSTOP)] * 2
        + [("scheduler", signal.SIGKILL)] * 2 + [("gateway", signal.SIGKILL), (f"rank{rng.randrange(4)}", signal.SIGTERM)]
    )  # fmt: skip
    process = cluster.processes[name]
    if process.is_running():
        process.send(number)
        return f"{signal.Signals(number).name} {name.rstrip('0123456789')}"
    return None


def memory_of(cluster):
    sizes = {}
    for name, process in cluster.processes.items():
        try:
            sizes[name] = process.resident_mb()
        except (OSError, AttributeError):
            pass  # it was just killed
    return sizes


def show(began, options, books, faults):
    if not sys.stderr.isatty() and time.monotonic() - show.shown < 30:
        return
    show.shown = time.monotonic()
    done = min(1.0, (time.monotonic() - began) / (60 * options.minutes))
    bar = "#" * int(30 * done) + "." * (30 - int(30 * done))
    print(f"\r[{bar}] {60 * options.minutes * (1 - done):.0f} s left, {sum(books.counts.values())} requests, {books.tokens} tokens, "
          f"{sum(faults.values())} faults, {books.counts.get('wrong tokens', 0)} wrong ", end="" if sys.stderr.isatty() else "\n", file=sys.stderr, flush=True)  # fmt: skip


show.shown = 0.0


def run(options):
    rng = random.Random(options.seed)
    prompts = [[rng.randrange(300, 3000) for _ in range(rng.choice((1, 8, 60, 130, 300)))] for _ in range(16)]
    print("what each prompt is answered alone ...", file=sys.stderr)
    expected = generate_alone(prompts, [160] * len(prompts), flags=["--ignore-eos"])
    books, faults, memory, is_over = Books(), {}, [], threading.Event()
    # Quarantine is for requests that kill workers; here workers die by themselves, and often.
    with Cluster(scheduler=["--max-worker-losses", 1000]) as cluster:
        clients = [threading.Thread(target=ask_in_a_loop, args=(i, options, cluster, prompts, expected, books, is_over), daemon=True)
                   for i in range(options.clients)]  # fmt: skip
        for client in clients:
            client.start()
        began = time.monotonic()
        next_fault, next_look = began + options.fault_every, began
        while time.monotonic() - began < 60 * options.minutes:
            time.sleep(0.25)
            if time.monotonic() >= next_fault:
                next_fault += rng.uniform(0.5, 1.5) * options.fault_every
                what = strike(rng, cluster, options)
                if what:
                    faults[what] = faults.get(what, 0) + 1
            if time.monotonic() >= next_look:
                next_look += 5
                memory.append((round(time.monotonic() - began), memory_of(cluster)))
            show(began, options, books, faults)
        is_over.set()
        for client in clients:
            client.join(90)
        stuck = sum(client.is_alive() for client in clients)
        print(file=sys.stderr)
        cluster.wait_ready()
        cluster.wait_idle()
        metrics = cluster.scheduler_metrics()
        codes = cluster.stop()
    return report(options, books, faults, memory, codes, stuck, metrics)


def report(options, books, faults, memory, codes, stuck, metrics):
    pauses = sorted(books.pauses)
    kinds = {}
    for name in memory[-1][1]:
        early = [m[name] for t, m in memory if name in m and 60 * options.minutes * 0.1 < t < 60 * options.minutes * 0.35]
        late = [m[name] for t, m in memory if name in m and t > 60 * options.minutes * 0.75]
        kinds[name] = {"first_third_mb": round(max(early, default=0), 1), "last_quarter_mb": round(max(late, default=0), 1)}
    result = {
        "minutes": options.minutes, "clients": options.clients, "requests": books.counts, "tokens": books.tokens, "faults": faults, "memory": kinds,
        "longest_pause_s": {"p50": round(pauses[len(pauses) // 2], 3), "p99": round(pauses[int(len(pauses) * 0.99)], 3), "max": round(pauses[-1], 3)},
        "blocks_used_at_the_end": metrics['weir_kv_blocks{state="used"}'], "exit_codes": codes, "clients_stuck": stuck,
    }  # fmt: skip
    print(json.dumps(result, indent=1))
    if options.json:
        with open(options.json, "w") as file:
            json.dump(result, file, indent=1)
    good = not books.wrong and not stuck and set(codes.values()) == {0} and books.counts.get("short", 0) == 0
    grown = [n for n, m in kinds.items() if m["last_quarter_mb"] > 1.2 * m["first_third_mb"] + 16]
    if grown:
        print("memory has grown: " + ", ".join(grown))
    return 0 if good and not grown else 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=10)
    parser.add_argument("--clients", type=int, default=24)
    parser.add_argument("--fault-every", type=float, default=12, help="seconds, on average")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--json", help="write the result to this file, too")
    return run(parser.parse_args())


if __name__ == "__main__":
    sys.exit(main())
