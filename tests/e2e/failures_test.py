"""Processes that die, stand still or are told to go, in the middle of streams."""
import random
import signal
import time
import unittest

import grpc

from client import Client, detail, pb
from cluster import Cluster, generate_alone, wait_until

# Long enough that no stream ends before the fault it is to survive.
NUM_TOKENS = 250


def prompts_of(seed, count):
    rng = random.Random(seed)
    return [[rng.randrange(300, 3000) for _ in range(rng.choice((2, 40, 130)))] for _ in range(count)]


class FailuresTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.prompts = prompts_of(1, 6)
        cls.expected = generate_alone(cls.prompts, [NUM_TOKENS] * 6, flags=["--ignore-eos"])

    def setUp(self):
        self.cluster = Cluster().start()
        self.addCleanup(self.cluster.kill)
        self.client = Client(self.cluster.port)
        self.addCleanup(self.client.channel.close)

    def doCleanups(self):
        if self._outcome.result.failures or self._outcome.result.errors or not self._outcome.success:
            self.cluster.tell()
        return super().doCleanups()

    def streams_in_the_middle(self):
        streams = [self.client.generate(prompt, NUM_TOKENS, timeout_s=120) for prompt in self.prompts]
        for stream in streams:
            stream.wait_tokens(8)
        return streams

    def check_continued(self, streams):
        for stream, expected in zip(streams, self.expected):
            stream.join()
            self.assertEqual(stream.code, grpc.StatusCode.OK, stream.message)
            self.assertEqual(stream.finished.reason, pb.FINISH_REASON_LENGTH)
            self.assertEqual(stream.token_ids, expected)
            self.assertEqual(stream.finished.usage.completion_tokens, NUM_TOKENS)

    def check_serves(self):
        """A new request gets the right answer, and nothing of the old ones is left."""
        self.cluster.wait_ready()
        stream = wait_until(lambda: self.ok_or_none(), 20, "a request is answered")
        self.assertEqual(stream.token_ids, self.expected[0][:20])
        self.cluster.wait_idle()

    def ok_or_none(self):
        with Client(self.cluster.port) as client:
            stream = client.generate(self.prompts[0], 20, timeout_s=10).join()
        return stream if stream.code == grpc.StatusCode.OK else None

    def say(self, what, streams):
        pause = max(stream.longest_pause_s() for stream in streams)
        print(f"  {what}: the longest pause of a stream was {1000 * pause:.0f} ms", flush=True)

    def test_a_rank_that_dies_is_not_seen_in_any_stream(self):
        streams = self.streams_in_the_middle()
        self.cluster.rank1.send(signal.SIGKILL)
        self.check_continued(streams)
        self.say("kill -9 of a rank", streams)
        self.assertTrue(any(s.finished.timing.recovering_us > 0 for s in streams))
        self.check_serves()
        self.assertEqual(self.cluster.rank1.exit_codes, [-signal.SIGKILL])

    def test_a_rank_that_stands_still_is_not_seen_in_any_stream(self):
        streams = self.streams_in_the_middle()
        self.cluster.rank2.send(signal.SIGSTOP)
        self.check_continued(streams)
        self.say("SIGSTOP of a rank", streams)
        self.check_serves()

    def test_two_ranks_die_one_after_the_other(self):
        streams = self.streams_in_the_middle()
        self.cluster.rank0.send(signal.SIGKILL)
        time.sleep(0.05)
        self.cluster.rank3.send(signal.SIGKILL)
        self.check_continued(streams)
        self.check_serves()

    def test_a_request_in_flight_at_two_losses_is_quarantined(self):
        streams = self.streams_in_the_middle()
        for _ in range(2):
            counts = [len(s.token_ids) for s in streams]
            self.cluster.rank1.send(signal.SIGKILL)
            wait_until(lambda: all(len(s.token_ids) > n + 5 or s.ended for s, n in zip(streams, counts)), 30, "streams go on")
        for stream, expected in zip(streams, self.expected):
            stream.join()
            self.assertEqual(stream.code, grpc.StatusCode.OK, stream.message)
            self.assertEqual(stream.finished.reason, pb.FINISH_REASON_ERROR)
            self.assertEqual(stream.finished.error.reason, "QUARANTINED")
            self.assertEqual(stream.token_ids, expected[: len(stream.token_ids)])
            self.assertEqual(stream.finished.usage.completion_tokens, len(stream.token_ids))
        self.check_serves()

    def test_a_scheduler_that_dies_is_not_seen_in_any_stream(self):
        streams = self.streams_in_the_middle()
        self.cluster.scheduler.send(signal.SIGKILL)
        self.check_continued(streams)
        self.say("kill -9 of the scheduler", streams)
        self.check_serves()

    def test_a_gateway_that_dies_tells_its_clients_and_frees_their_work(self):
        streams = self.streams_in_the_middle()
        began = time.monotonic()
        self.cluster.gateway.send(signal.SIGKILL)
        for stream in streams:
            stream.join(5)
            self.assertEqual(stream.code, grpc.StatusCode.UNAVAILABLE)
        self.cluster.wait_idle(timeout_s=5)
        self.check_serves()
        print(f"  kill -9 of the gateway: all clients knew, and it served again, after {time.monotonic() - began:.2f} s", flush=True)

    def test_a_gateway_told_to_go_finishes_its_streams_and_takes_no_more(self):
        streams = self.streams_in_the_middle()
        self.cluster.gateway.is_kept_up = False
        self.cluster.gateway.send(signal.SIGTERM)
        refused = wait_until(lambda: self.refusal(), 5, "new requests are refused")
        self.assertEqual(refused.code, grpc.StatusCode.UNAVAILABLE)
        self.check_continued(streams)
        wait_until(lambda: self.cluster.gateway.exit_codes == [0], 10, "the gateway has ended with 0")

    def refusal(self):
        stream = self.client.generate([1, 2], 2, timeout_s=5).join()
        return stream if stream.code != grpc.StatusCode.OK else None

    def test_a_scheduler_told_to_go_loses_nothing(self):
        streams = self.streams_in_the_middle()
        self.cluster.scheduler.send(signal.SIGTERM)
        self.check_continued(streams)
        wait_until(lambda: self.cluster.scheduler.exit_codes[:1] == [0], 40, "the scheduler has ended with 0")
        self.check_serves()

    def test_a_rank_told_to_go_loses_nothing(self):
        streams = self.streams_in_the_middle()
        self.cluster.rank0.send(signal.SIGTERM)
        self.check_continued(streams)
        self.check_serves()
        self.assertEqual(self.cluster.rank0.exit_codes, [0])

    def test_all_told_to_go_under_load_end_with_zero_and_lose_nothing(self):
        streams = self.streams_in_the_middle()
        codes = self.cluster.stop(timeout_s=30)
        self.check_continued(streams)
        self.assertEqual(codes, {name: 0 for name in codes})
        for process in self.cluster.processes.values():
            self.assertIsNotNone(process.popen.poll(), f"{process.name} is still there")


if __name__ == "__main__":
    unittest.main()
