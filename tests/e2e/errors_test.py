"""Requests that make no sense, are too large, or come from nobody: what a plain gRPC client is told."""
import os
import subprocess
import tempfile
import unittest

import grpc

from client import Client, Stream, detail, error_details, generate_request, pb
from cluster import BIN, MODEL_NAME, Cluster, wait_until


class ErrorsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster(tp=1, dp=1).start()
        cls.addClassCleanup(cls.cluster.kill)
        cls.client = Client(cls.cluster.port)
        cls.addClassCleanup(cls.client.channel.close)

    def tearDown(self):
        """Nothing else is harmed: the next good request is answered, by the same processes."""
        self.assertEqual(self.client.generate([300], 3).join().code, grpc.StatusCode.OK)
        self.cluster.wait_idle()
        for process in self.cluster.processes.values():
            self.assertEqual(process.exit_codes, [], f"{process.name} ended in the middle of a test")

    def refused(self, request, code, reason=None):
        call = self.client.stub.Chat if isinstance(request, pb.ChatRequest) else self.client.stub.Generate
        stream = Stream(call, request, timeout=20).join()
        self.assertEqual(stream.code, code, stream.message)
        self.assertIsNone(stream.started)
        info = detail(stream, "ErrorInfo")
        self.assertIsNotNone(info, "every error carries ErrorInfo")
        self.assertEqual(info.domain, "weir")
        self.assertRegex(info.reason, "^[A-Z][A-Z_]+$")
        if reason:
            self.assertEqual(info.reason, reason)
        return stream

    def test_a_bad_field_is_named_with_what_is_allowed(self):
        user = pb.Message(role=pb.ROLE_USER, content="x")
        cases = [
            ("sampling.temperature", generate_request([1], 1, temperature=2.5)),
            ("sampling.temperature", generate_request([1], 1, temperature=float("nan"))),
            ("options.request_id", generate_request([1], 1, request_id="no spaces")),
            ("token_ids.ids[1]", generate_request([1, 4_000_000_000], 1)),
            ("messages", pb.ChatRequest(model=MODEL_NAME)),
            ("messages[1].role", pb.ChatRequest(model=MODEL_NAME, messages=[user, pb.Message(content="x")])),
            ("tools[0].name", pb.ChatRequest(model=MODEL_NAME, messages=[user], tools=[pb.Tool(name="a b")])),
            ("tools[0].parameters_json_schema", pb.ChatRequest(model=MODEL_NAME, messages=[user], tools=[pb.Tool(name="a", parameters_json_schema="{")])),
            ("sampling.top_p", pb.ChatRequest(model=MODEL_NAME, messages=[user], sampling=pb.SamplingParams(top_p=0))),
            ("stop_conditions.stop", pb.ChatRequest(model=MODEL_NAME, messages=[user], stop_conditions=pb.StopConditions(stop=["x"] * 17))),
            ("stop_conditions.max_tokens", generate_request([1], 0)),
            ("options.top_logprobs", pb.ChatRequest(model=MODEL_NAME, messages=[user], options=pb.RequestOptions(logprobs=True, top_logprobs=21))),
        ]
        for field, request in cases:
            with self.subTest(field=field):
                stream = self.refused(request, grpc.StatusCode.INVALID_ARGUMENT)
                violations = detail(stream, "BadRequest").field_violations
                self.assertTrue(any(v.field.startswith(field) for v in violations), [v.field for v in violations])
                self.assertGreater(len(violations[0].description), 10)
                self.assertIn(violations[0].field, stream.message)

    def test_over_the_context_both_counts_are_told(self):
        stream = self.refused(generate_request([300] * 5000, 100_000), grpc.StatusCode.FAILED_PRECONDITION, "CONTEXT_LENGTH_EXCEEDED")
        self.assertIn("5000", stream.message.replace(",", ""))
        model = self.client.stub.GetModel(pb.GetModelRequest(model=MODEL_NAME)).model
        self.assertIn(str(model.max_model_len), stream.message.replace(",", ""))

    def test_an_unknown_model_is_not_found(self):
        request = generate_request([1], 1)
        request.model = "dmeo"
        stream = self.refused(request, grpc.StatusCode.NOT_FOUND)
        self.assertIn("demo", stream.message)  # what there is

    def test_a_message_over_the_size_limit_is_refused_and_the_connection_goes_on(self):
        stream = self.refused(generate_request("x" * (9 << 20), 1), grpc.StatusCode.INVALID_ARGUMENT, "MESSAGE_TOO_LARGE")
        self.assertIn(f"at most {8 << 20} are allowed", stream.message)
        self.assertIn(f"at most {8 << 20} are allowed", detail(stream, "BadRequest").field_violations[0].description)
        stream = Stream(self.client.stub.Generate, generate_request("x" * (40 << 20), 1), timeout=20).join()
        self.assertEqual(stream.code, grpc.StatusCode.RESOURCE_EXHAUSTED, stream.message)  # gRPC's own: never received
        self.assertIn(str(16 << 20), stream.message)

    def test_a_small_message_that_unpacks_to_a_large_one_takes_no_memory(self):
        before = self.cluster.gateway.resident_mb()
        request = generate_request("x" * (100 << 20), 1)
        for compression in (grpc.Compression.Gzip, grpc.Compression.Deflate) * 2:
            stream = Stream(self.client.stub.Generate, request, timeout=20, compression=compression).join()
            self.assertEqual(stream.code, grpc.StatusCode.UNIMPLEMENTED, stream.message)
            self.assertIn("is disabled", stream.message)
        self.assertLess(self.cluster.gateway.resident_mb() - before, 64)

    def test_bytes_that_are_no_message_are_refused(self):
        bytes_in_and_out = {"request_serializer": lambda b: b, "response_deserializer": lambda b: b}
        service = pb.DESCRIPTOR.services_by_name["InferenceService"]
        for method in service.methods:
            call = self.client.channel.unary_stream(f"/weir.v1.InferenceService/{method.name}", **bytes_in_and_out)
            for garbage in (b"\xff" * 100, b"\x0a\xff\xff\xff\xff\x0f", b"\x00" + os.urandom(1000)):
                with self.subTest(method=method.name, garbage=garbage[:10]), self.assertRaises(grpc.RpcError) as raised:
                    list(call(garbage, timeout=10))
                self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT)
                self.assertIn(method.input_type.full_name, raised.exception.details())
                details = error_details(raised.exception)
                info = detail(details, "ErrorInfo")
                self.assertEqual((info.domain, info.reason), ("weir", "MALFORMED_MESSAGE"))
                self.assertGreater(len(detail(details, "BadRequest").field_violations[0].description), 10)

    def test_an_unknown_method_is_unimplemented(self):
        call = self.client.channel.unary_unary("/weir.v1.InferenceService/Bill", request_serializer=lambda b: b, response_deserializer=lambda b: b)
        with self.assertRaises(grpc.RpcError) as raised:
            call(b"", timeout=10)
        self.assertEqual(raised.exception.code(), grpc.StatusCode.UNIMPLEMENTED)

    def test_a_request_id_in_use_is_refused_and_the_first_goes_on(self):
        first = self.client.generate([301], 400, request_id="twice")
        first.wait_tokens(1)
        second = self.client.generate([301], 10, request_id="twice").join()
        self.assertEqual(second.code, grpc.StatusCode.ALREADY_EXISTS, second.message)
        self.assertEqual(first.join().code, grpc.StatusCode.OK)
        self.assertEqual(len(first.token_ids), 400)

    def test_a_full_gateway_says_when_to_come_again(self):
        with Cluster(tp=1, dp=1, gateway=["--max-requests", 2]) as cluster, Client(cluster.port) as client:
            held = [client.generate([300 + i], 3000) for i in range(2)]
            for stream in held:
                stream.wait_tokens(1)
            stream = client.generate([1], 1).join()
            self.assertEqual(stream.code, grpc.StatusCode.RESOURCE_EXHAUSTED, stream.message)
            self.assertGreater(detail(stream, "RetryInfo").retry_delay.ToMilliseconds(), 0)
            for stream in held:
                stream.cancel()

    def test_a_full_queue_says_when_to_come_again(self):
        with Cluster(tp=1, dp=1, scheduler=["--max-waiting-requests", 1], worker=["--max-num-seqs", 1]) as cluster, Client(cluster.port) as client:
            streams = [client.generate([300 + i], 300) for i in range(6)]
            codes = [stream.join().code for stream in streams]
            refused = [s for s in streams if s.code == grpc.StatusCode.RESOURCE_EXHAUSTED]
            self.assertGreaterEqual(codes.count(grpc.StatusCode.OK), 1)
            self.assertEqual(len(refused) + codes.count(grpc.StatusCode.OK), 6, codes)
            self.assertGreaterEqual(len(refused), 1)
            for stream in refused:
                self.assertGreater(detail(stream, "RetryInfo").retry_delay.ToMilliseconds(), 0)

    def test_a_wait_for_workers_ends_at_the_deadline_and_is_explained(self):
        with Cluster(tp=1, dp=1) as cluster, Client(cluster.port) as client:
            cluster.rank0.is_kept_up = False
            cluster.rank0.popen.kill()
            wait_until(lambda: cluster.rank0.exit_codes, 5, "the rank has ended")
            stream = client.generate([1], 1, timeout_s=2).join()
            if stream.code == grpc.StatusCode.OK:
                self.assertEqual(stream.finished.reason, pb.FINISH_REASON_DEADLINE)
                self.assertGreater(stream.finished.timing.queued_for_workers_us, 1_000_000)
            else:
                self.assertIn(stream.code, (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED))


class KeysTest(unittest.TestCase):
    def test_only_those_with_a_key_are_served_and_as_their_tenant(self):
        folder = self.enterContext(tempfile.TemporaryDirectory())
        keys = os.path.join(folder, "keys.yaml")
        made = subprocess.run([os.path.join(BIN, "weir"), "keys", "create", "--file", keys, "--tenant", "guangdong/foshan/online-services"],
                              capture_output=True, text=True)  # fmt: skip
        self.assertEqual(made.returncode, 0, made.stderr)
        key = next(word for word in made.stdout.split() if word.startswith("weir_"))
        with open(keys) as file:
            self.assertNotIn(key, file.read(), "keys are stored hashed")
        with Cluster(tp=1, dp=1, gateway=["--keys", keys]) as cluster:
            with Client(cluster.port) as nobody:
                stream = nobody.generate([1], 1).join()
                self.assertEqual(stream.code, grpc.StatusCode.UNAUTHENTICATED)
                self.assertEqual(detail(stream, "ErrorInfo").domain, "weir")
            with Client(cluster.port, [("authorization", "Bearer weir_wrong")]) as wrong:
                self.assertEqual(wrong.generate([1], 1).join().code, grpc.StatusCode.UNAUTHENTICATED)
            with Client(cluster.port, [("authorization", f"Bearer {key}")]) as known:
                self.assertEqual(known.generate([1], 1).join().code, grpc.StatusCode.OK)
            log = "".join(process.log() for process in cluster.processes.values())
            self.assertNotIn(key, log)


if __name__ == "__main__":
    unittest.main()
