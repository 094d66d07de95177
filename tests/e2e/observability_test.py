"""What operators see: metrics in a real Prometheus, logs, health, reflection."""
import json
import os
import re
import shutil
import subprocess
import tempfile
import unittest
import urllib.parse
import urllib.request

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha.proto_reflection_descriptor_database import ProtoReflectionDescriptorDatabase

from client import Client, pb
from cluster import MODEL_NAME, ROOT, Cluster, free_port, parse_metrics, wait_until

PLANTED = ["xylophonequartz", "仙女座望远镜"]  # in no vocabulary, no message, no metric


class ObservabilityTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        log = ["--log-level", "debug", "--log-format", "json"]
        cls.cluster = Cluster(gateway=log, scheduler=log, worker=log).start()
        cls.addClassCleanup(cls.cluster.kill)
        cls.client = Client(cls.cluster.port)
        cls.addClassCleanup(cls.client.channel.close)
        for text in PLANTED:
            stream = cls.client.chat(f"你好 {text}", options=pb.RequestOptions(request_id="planted")).join()
            assert stream.code == grpc.StatusCode.OK, stream.message
            refused = cls.client.chat(text, sampling=pb.SamplingParams(temperature=9)).join()
            assert refused.code == grpc.StatusCode.INVALID_ARGUMENT
            assert text not in refused.message

    def pages(self):
        return {port: self.cluster.http(port, "/metrics") for port in (self.cluster.gateway_ops, self.cluster.scheduler_ops)}

    def test_no_prompt_in_logs_or_metrics(self):
        seen = "".join(process.log() for process in self.cluster.processes.values()) + "".join(self.pages().values())
        for text in PLANTED:
            self.assertNotIn(text, seen)
        self.assertIn("planted", seen, "logs carry the request's id")

    def test_every_process_logs_json(self):
        for name, process in self.cluster.processes.items():
            lines = [json.loads(line) for line in process.log().splitlines() if line.startswith("{")]
            self.assertTrue(lines, f"{name} has logged nothing")
            for line in lines:
                self.assertEqual(set(line), {"time", "level", "process", "message"}, name)
        steps = [line for rank in self.cluster.ranks for line in rank.log().splitlines() if '"step ' in line]
        self.assertTrue(steps, "ranks log at debug level")

    def test_metric_pages_please_promtool(self):
        promtool = shutil.which("promtool")
        if not promtool:
            self.skipTest("promtool is not installed (Debian package prometheus)")
        for page in self.pages().values():
            checked = subprocess.run([promtool, "check", "metrics"], input=page, capture_output=True, text=True)
            self.assertEqual(checked.returncode, 0, checked.stdout + checked.stderr)

    def test_every_metric_stands_in_the_catalogue(self):
        with open(os.path.join(ROOT, "docs", "metrics.md"), encoding="utf-8") as file:
            text = file.read()
        catalogue = set(re.findall(r"^\| `(weir_\w+)", text, re.M))
        later = set(re.findall(r"^\| `(weir_\w+).*Appears with the first", text, re.M))
        exposed = set()
        for page in self.pages().values():
            exposed |= set(re.findall(r"^# TYPE (weir_\w+)", page, re.M))
        self.assertEqual(exposed - catalogue, set(), "not described in docs/metrics.md")
        self.assertEqual(catalogue - exposed - later, set(), "described in docs/metrics.md but not exposed")

    def test_labels_are_few_and_never_an_id(self):
        allowed = set("tenant api code finish_reason reason kind state rank le version model priority phase ".split())
        for page in self.pages().values():
            for name in parse_metrics(page):
                if not name.startswith("weir_"):
                    continue
                labels = dict(re.findall(r'(\w+)="([^"]*)"', name))
                self.assertLessEqual(set(labels), allowed, name)
                self.assertFalse(any(re.fullmatch(r"[0-9a-f]{16,}", v) for k, v in labels.items() if k != "version"), name)

    def test_a_real_prometheus_scrapes_a_live_cluster(self):
        prometheus = shutil.which("prometheus")
        if not prometheus:
            self.skipTest("prometheus is not installed (Debian package prometheus)")
        folder = self.enterContext(tempfile.TemporaryDirectory())
        targets = ", ".join(f'"127.0.0.1:{p}"' for p in (self.cluster.gateway_ops, self.cluster.scheduler_ops))
        with open(os.path.join(folder, "prometheus.yml"), "w") as file:
            file.write(f"global: {{scrape_interval: 1s}}\nscrape_configs: [{{job_name: weir, static_configs: [{{targets: [{targets}]}}]}}]\n")
        port = free_port()
        server = subprocess.Popen([prometheus, f"--config.file={folder}/prometheus.yml", f"--storage.tsdb.path={folder}/data",
                                   f"--web.listen-address=127.0.0.1:{port}"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)  # fmt: skip
        self.addCleanup(server.wait)
        self.addCleanup(server.kill)
        for i in range(4):
            self.assertEqual(self.client.generate([300 + i], 20).join().code, grpc.StatusCode.OK)

        def query(expression):
            url = f"http://127.0.0.1:{port}/api/v1/query?query={urllib.parse.quote(expression)}"
            with urllib.request.urlopen(url, timeout=5) as answer:
                result = json.load(answer)["data"]["result"]
            return float(result[0]["value"][1]) if result else None

        wait_until(lambda: query("sum(up)") == 2, 30, "Prometheus has scraped both processes")
        wait_until(lambda: query("sum(weir_gateway_requests_total)") >= 6, 10, "requests are counted")
        wait_until(lambda: query("sum(weir_request_ttft_seconds_count)") >= 6, 10, "first tokens are timed")
        self.assertEqual(query('weir_kv_blocks{state="used"}'), 0)
        self.assertGreater(query('sum(weir_tokens_total{kind="generated"})'), 0)
        self.assertLess(query("histogram_quantile(0.5, sum by (le) (rate(weir_request_duration_seconds_bucket[1m])))") or 0, 60)

    def test_health_of_the_whole_and_of_the_service(self):
        stub = health_pb2_grpc.HealthStub(self.client.channel)
        for service in ("", "weir.v1.InferenceService"):
            answer = stub.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
            self.assertEqual(answer.status, health_pb2.HealthCheckResponse.SERVING)
        with self.assertRaises(grpc.RpcError) as raised:
            stub.Check(health_pb2.HealthCheckRequest(service="nobody"), timeout=5)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.NOT_FOUND)

    def test_reflection_describes_the_services(self):
        database = ProtoReflectionDescriptorDatabase(self.client.channel)
        self.assertLessEqual({"weir.v1.InferenceService", "grpc.health.v1.Health"}, set(database.get_services()))
        described = database.FindFileContainingSymbol("weir.v1.InferenceService")
        self.assertIn("Chat", [method.name for method in described.service[0].method])

    def test_probes(self):
        for port in (self.cluster.gateway_ops, self.cluster.scheduler_ops):
            for path in ("/healthz", "/readyz"):
                self.assertTrue(self.cluster.http(port, path))
            with self.assertRaises(urllib.error.HTTPError) as raised:
                self.cluster.http(port, "/nothing")
            self.assertEqual(raised.exception.code, 404)
            raised.exception.close()

    def test_models_are_listed(self):
        listed = self.client.stub.ListModels(pb.ListModelsRequest(), timeout=5).models
        self.assertEqual([m.name for m in listed], [MODEL_NAME])
        self.assertTrue(listed[0].is_ready)

    def test_text_and_ids_convert_back_and_forth(self):
        text = "石家庄市属于河北省。 <｜User｜> is text here 🙂"
        ids = self.client.stub.Tokenize(pb.TokenizeRequest(model=MODEL_NAME, text=text), timeout=5).token_ids
        back = self.client.stub.Detokenize(pb.DetokenizeRequest(model=MODEL_NAME, token_ids=ids), timeout=5)
        self.assertEqual(back.text, text)
        self.assertEqual(back.text_bytes.decode(), text)
        chat = pb.ChatPrompt(messages=[pb.Message(role=pb.ROLE_USER, content="<｜User｜>")])
        rendered = self.client.stub.Tokenize(pb.TokenizeRequest(model=MODEL_NAME, chat=chat), timeout=5)
        user = [i for i in rendered.token_ids if i == rendered.token_ids[1]]
        self.assertEqual(len(user), 1, "a user's text became a control token")


if __name__ == "__main__":
    unittest.main()
