"""What one connection may ask for: metadata, streams at once, pings, and how much may wait for it."""
import socket
import struct
import time
import unittest

import grpc

from client import Client, detail, error_details, generate_request, pb
from cluster import Cluster, wait_until

MAX_STREAMS = 4
NUM_SLOW = 8
NO_READING_AHEAD = [("grpc.http2.bdp_probe", 0), ("grpc.http2.lookahead_bytes", 64 << 10)]


class RawHttp2:
    """Enough of HTTP/2 to send frames and read what comes back."""

    PREFACE = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n"
    SETTINGS, PING, GOAWAY = 4, 6, 7

    def __init__(self, port):
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=20)
        self.socket.sendall(self.PREFACE)
        self.send(self.SETTINGS, b"")

    def send(self, kind, payload):
        self.socket.sendall(len(payload).to_bytes(3, "big") + bytes([kind, 0]) + (0).to_bytes(4, "big") + payload)

    def read(self, count):
        data = b""
        while len(data) < count:
            more = self.socket.recv(count - len(data))
            if not more:
                raise EOFError
            data += more
        return data

    def next_frame(self):
        header = self.read(9)
        return header[3], self.read(int.from_bytes(header[:3], "big"))


class LimitsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        flags = ["--max-streams-per-connection", MAX_STREAMS, "--max-unread-kb", 64, "--slow-reader-timeout-ms", 60000]
        cls.cluster = Cluster(tp=1, dp=1, gateway=flags, worker=["--max-num-seqs", 32]).start()
        cls.addClassCleanup(cls.cluster.kill)

    def setUp(self):
        self.client = self.enterContext(Client(self.cluster.port))
        self.neighbour = self.enterContext(Client(self.cluster.port))

    def tearDown(self):
        self.assertEqual(self.neighbour.generate([300], 3).join().code, grpc.StatusCode.OK)
        self.cluster.wait_idle()
        for process in self.cluster.processes.values():
            self.assertEqual(process.exit_codes, [], f"{process.name} ended in the middle of a test")

    def list_models(self, client, metadata=()):
        return client.stub.ListModels(pb.ListModelsRequest(), metadata=metadata, timeout=20).models

    def test_metadata_over_the_limit_are_refused_and_streams_of_the_connection_go_on(self):
        running = self.client.generate([301], 1000)
        running.wait_tokens(1)
        self.assertEqual(len(self.list_models(self.client, [("x-note", "a" * 6000)])), 1)
        for metadata in ([("x-note", "a" * 9000)], [(f"x-note-{i}", "a" * 100) for i in range(100)]):
            with self.assertRaises(grpc.RpcError) as raised:
                self.list_models(self.client, metadata)
            self.assertEqual(raised.exception.code(), grpc.StatusCode.INVALID_ARGUMENT, raised.exception.details())
            self.assertIn(f"at most {8 << 10} are allowed", raised.exception.details())
            self.assertEqual(detail(error_details(raised.exception), "ErrorInfo").reason, "METADATA_TOO_LARGE")
        self.assertEqual((running.join().code, running.message, len(running.token_ids)), (grpc.StatusCode.OK, "", 1000))

    def test_metadata_far_over_the_limit_cost_their_own_connection_only(self):
        witness = self.neighbour.generate([302], 1000)
        witness.wait_tokens(1)
        with self.assertRaises(grpc.RpcError) as raised:
            self.list_models(self.client, [("x-note", "a" * 200_000)])
        self.assertEqual(raised.exception.code(), grpc.StatusCode.RESOURCE_EXHAUSTED, raised.exception.details())
        self.assertEqual(len(witness.join().token_ids), 1000)
        self.assertEqual(len(self.list_models(self.client)), 1)

    def test_streams_over_the_limit_wait_for_those_before_them(self):
        streams = [self.client.generate([302 + i], 3000) for i in range(MAX_STREAMS)]
        for stream in streams:
            stream.wait_tokens(1)
        late = [self.client.generate([310 + i], 5) for i in range(3)]
        other = self.neighbour.generate([320], 50).join()  # another connection has streams of its own
        self.assertEqual((other.code, len(other.token_ids)), (grpc.StatusCode.OK, 50))
        self.assertTrue(all(stream.ended is None for stream in streams), "the first have ended before the others were looked at")
        self.assertTrue(all(stream.started is None for stream in late))
        inflight = lambda: self.cluster.gateway_metrics()["weir_gateway_inflight_requests"]
        wait_until(lambda: inflight() == MAX_STREAMS, 5, "the gateway knows of those alone")
        for stream in streams:
            stream.cancel()
        for stream in late:
            self.assertEqual(stream.join().code, grpc.StatusCode.OK, stream.message)
            self.assertEqual(len(stream.token_ids), 5)

    def test_who_pings_too_often_is_disconnected_and_nobody_else(self):
        witness = self.neighbour.generate([330], 1500)
        witness.wait_tokens(1)
        connection = RawHttp2(self.cluster.port)
        self.addCleanup(connection.socket.close)
        farewell = None
        try:
            for i in range(50):
                connection.send(RawHttp2.PING, struct.pack(">Q", i))
            while farewell is None:
                kind, payload = connection.next_frame()
                farewell = payload if kind == RawHttp2.GOAWAY else None
            while True:
                connection.next_frame()
        except (EOFError, ConnectionError):
            pass  # closed, as it should be
        self.assertIsNotNone(farewell, "the connection was closed without a word")
        self.assertEqual(int.from_bytes(farewell[4:8], "big"), 11)  # ENHANCE_YOUR_CALM
        self.assertIn(b"too_many_pings", farewell[8:])
        self.assertEqual(witness.join().code, grpc.StatusCode.OK)
        self.assertEqual(len(witness.token_ids), 1500)

    def begin_and_stop_reading(self, client, prompt):
        """A stream with large frames of which only the first is read."""
        request = generate_request(prompt, 3000)
        request.options.logprobs, request.options.top_logprobs = True, 20
        call = client.stub.Generate(request, timeout=120)
        self.assertEqual(next(call).WhichOneof("event"), "started")
        return call

    def test_who_does_not_read_ends_its_own_request_only(self):
        slow_before = self.cluster.gateway_metrics().get("weir_gateway_slow_readers_total", 0)
        alone = self.neighbour.generate([350, 351], 1000).join().token_ids
        before_mb = self.cluster.gateway.resident_mb()
        options = [*Client.OPTIONS, *NO_READING_AHEAD]
        channels = [grpc.insecure_channel(f"127.0.0.1:{self.cluster.port}", options) for _ in range(NUM_SLOW)]
        clients = [self.enterContext(Client(self.cluster.port, channel=channel)) for channel in channels]
        calls = [self.begin_and_stop_reading(client, [340 + i]) for i, client in enumerate(clients)]
        beside = self.neighbour.generate([350, 351], 1000)
        same_connection = clients[0].generate([350, 351], 1000)
        slow = lambda: self.cluster.gateway_metrics()["weir_gateway_slow_readers_total"] - slow_before
        wait_until(lambda: slow() == NUM_SLOW, 60, "all who do not read are seen")
        self.assertEqual(beside.join().token_ids, alone)
        self.assertEqual(same_connection.join().token_ids, alone)
        self.cluster.wait_idle()  # the replica has let go of them, though their clients have read nothing yet
        # Each may hold the bound, a window of HTTP/2 and what the system buffers.
        self.assertLess(self.cluster.gateway.resident_mb() - before_mb, 4 * NUM_SLOW)
        for call in calls:
            events = list(call)  # now it reads
            finished = events[-1].finished
            self.assertEqual(finished.reason, pb.FINISH_REASON_ERROR)
            self.assertEqual((finished.error.reason, finished.error.is_retriable), ("SLOW_READER", True))
            num_tokens = sum(len(event.content_delta.token_ids) for event in events)
            self.assertEqual(num_tokens, finished.usage.completion_tokens)
            self.assertLess(num_tokens, 3000)


if __name__ == "__main__":
    unittest.main()
