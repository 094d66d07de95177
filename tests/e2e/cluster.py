"""A whole cluster as real processes on this machine: one gateway, one scheduler, tp x dp ranks.

Programs come from WEIR_BIN (default build/release/bin), the model from WEIR_E2E_MODEL (default the built-in demo model).
A process that ends is started again, as an operator's supervisor would, unless its `is_kept_up` says otherwise.
"""
import json
import os
import re
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
import time
import urllib.request

ROOT = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
BIN = os.environ.get("WEIR_BIN", os.path.join(ROOT, "build", "release", "bin"))
MODEL = os.environ.get("WEIR_E2E_MODEL", os.path.join(ROOT, "tools", "demo_model", "weights"))
MODEL_NAME = "demo"


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(condition, timeout_s, what):
    """Polls until condition() is true (anything it raises counts as not yet)."""
    deadline, last = time.monotonic() + timeout_s, None
    while time.monotonic() < deadline:
        try:
            last = condition()
            if last:
                return last
        except Exception as error:  # a process that is not up yet refuses connections
            last = error
        time.sleep(0.02)
    raise AssertionError(f"not within {timeout_s} s: {what} (last: {last!r})")


def parse_metrics(text):
    """{'name{label="x"}': value}."""
    values = {}
    for line in text.splitlines():
        if line and not line.startswith("#"):
            name, value = line.rsplit(" ", 1)
            values[name] = float(value)
    return values


class Process:
    """One program and its successors.  Output goes to a log file."""

    def __init__(self, name, arguments, folder):
        self.name, self.arguments = name, arguments
        self.log_path = os.path.join(folder, name + ".log")
        self.is_kept_up = True
        self.popen = None
        self.exit_codes = []

    def start(self):
        with open(self.log_path, "ab") as log:
            self.popen = subprocess.Popen(self.arguments, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True)

    @property
    def pid(self):
        return self.popen.pid

    def is_running(self):
        return self.popen is not None and self.popen.poll() is None

    def send(self, number):
        os.kill(self.pid, number)

    def log(self):
        with open(self.log_path, encoding="utf-8", errors="replace") as file:
            return file.read()

    def finding(self):
        """The first thing that a sanitizer, if the programs are built with one, has found."""
        found = re.search(r"(WARNING: ThreadSanitizer|ERROR: \w+Sanitizer|: runtime error: ).*(\n.*){0,60}", self.log())
        return found and found.group()

    def resident_mb(self):
        with open(f"/proc/{self.pid}/status") as file:
            return int(re.search(r"VmRSS:\s+(\d+) kB", file.read()).group(1)) / 1024


class Cluster:
    def __init__(self, tp=2, dp=2, gateway=(), scheduler=(), worker=(), model=MODEL, keys=None, host="127.0.0.1"):
        self.tp, self.dp, self.model, self.keys = tp, dp, model, keys
        self.folder = tempfile.mkdtemp(prefix="weir-e2e-")
        self.port, self.gateway_ops, self.scheduler_ops = free_port(), free_port(), free_port()
        self.is_stopping = threading.Event()
        self.processes = {}
        unix = lambda name: "unix:" + os.path.join(self.folder, name)
        ranks = range(tp * dp)
        for rank in ranks:
            self._add(f"rank{rank}", "weir-worker", "--model", model, "--tp", tp, "--dp", dp, "--rank", rank, "--threads", 1,
                      "--listen", unix(f"rank{rank}.sock"), "--communicator", unix(f"group{rank}.sock"), *worker)  # fmt: skip
        self._add("scheduler", "weir-scheduler", "--listen", unix("scheduler.sock"), "--ops-listen", f"127.0.0.1:{self.scheduler_ops}",
                  "--kill-hung-local-ranks", *(f"--rank={unix(f'rank{rank}.sock')}" for rank in ranks), *scheduler)  # fmt: skip
        self._add("gateway", "weir-gateway", "--model", f"{MODEL_NAME}={model}", "--scheduler", unix("scheduler.sock"),
                  "--listen", f"{host}:{self.port}", "--ops-listen", f"127.0.0.1:{self.gateway_ops}", *gateway)  # fmt: skip
        self.supervisor = threading.Thread(target=self._supervise, daemon=True)

    def _add(self, name, program, *arguments):
        self.processes[name] = Process(name, [os.path.join(BIN, program), *map(str, arguments)], self.folder)

    def __getattr__(self, name):
        try:
            return self.__dict__["processes"][name]
        except KeyError:
            raise AttributeError(name) from None

    @property
    def ranks(self):
        return [self.processes[f"rank{r}"] for r in range(self.tp * self.dp)]

    def start(self):
        for process in self.processes.values():
            process.start()
        self.supervisor.start()
        try:
            self.wait_ready()
        except BaseException:
            self.tell()
            self.kill()
            raise
        return self

    def __enter__(self):
        return self.start()

    def __exit__(self, kind, *_):
        if kind is not None:
            self.tell()
        self.kill()

    def _supervise(self):
        while not self.is_stopping.wait(0.02):
            for process in self.processes.values():
                if process.popen is not None and not process.is_running():
                    process.exit_codes.append(process.popen.returncode)
                    process.popen = None
                    if process.is_kept_up and not self.is_stopping.is_set():
                        process.start()

    def http(self, port, path):
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5) as answer:
            return answer.read().decode()

    def scheduler_metrics(self):
        return parse_metrics(self.http(self.scheduler_ops, "/metrics"))

    def gateway_metrics(self):
        return parse_metrics(self.http(self.gateway_ops, "/metrics"))

    def wait_ready(self, timeout_s=30):
        wait_until(lambda: self.http(self.scheduler_ops, "/readyz"), timeout_s, "the scheduler is ready")
        wait_until(lambda: self.http(self.gateway_ops, "/readyz"), timeout_s, "the gateway is ready")

    def wait_idle(self, timeout_s=10):
        """Nothing runs or waits, and no block has an owner."""

        def is_idle():
            values = self.scheduler_metrics()
            waiting = sum(v for k, v in values.items() if k.startswith("weir_scheduler_waiting{"))
            return values['weir_scheduler_requests{state="running"}'] == 0 and waiting == 0 and values['weir_kv_blocks{state="used"}'] == 0

        wait_until(is_idle, timeout_s, "the scheduler is idle and owns no block")

    def stop(self, timeout_s=20):
        """SIGTERM to all, from the clients' side inwards.  Returns {name: exit code}."""
        self.is_stopping.set()
        self.supervisor.join()
        codes = {}
        for name in ["gateway", "scheduler", *(r.name for r in self.ranks)]:
            process = self.processes[name]
            if process.popen is None:
                continue
            process.send(signal.SIGTERM)
            try:
                codes[name] = process.popen.wait(timeout_s)
            except subprocess.TimeoutExpired:
                codes[name] = None
        return codes

    def kill(self):
        self.is_stopping.set()
        if self.supervisor.is_alive():
            self.supervisor.join()
        for process in self.processes.values():
            if process.popen is not None:
                process.popen.kill()
                process.popen.wait()
        findings = [(p.name, p.finding()) for p in self.processes.values() if os.path.exists(p.log_path)]
        shutil.rmtree(self.folder, ignore_errors=True)
        for name, finding in findings:
            if finding:
                raise AssertionError(f"{name}: {finding}")

    def tell(self, num_lines=15):
        """The last lines of every log: what a person needs when a test fails."""
        for process in self.processes.values():
            if os.path.exists(process.log_path):
                print(f"---- {process.name} (exit codes so far {process.exit_codes})")
                print("\n".join(process.log().splitlines()[-num_lines:]), flush=True)


def generate_alone(prompts, max_tokens, tp=2, dp=2, model=MODEL, flags=()):
    """What `weir generate` says to each prompt, one process group per prompt; the ranks' layout is the cluster's."""
    answers = []
    for prompt, limit in zip(prompts, max_tokens):
        ids = ",".join(map(str, prompt))
        command = [os.path.join(BIN, "weir"), "generate", "--model", model, "--tp", tp, "--dp", dp, "--threads", 1, "--prompt-ids", ids,
                   "--max-tokens", limit, "--json", *flags]  # fmt: skip
        done = subprocess.run(list(map(str, command)), capture_output=True, text=True, timeout=120, check=True)
        answers.append(json.loads(done.stdout)["generated_ids"])
    return answers
