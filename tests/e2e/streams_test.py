"""Many clients at once: what they get, when they leave, and when their time is up."""
import random
import time
import unittest

import grpc

from client import Client, Stream, generate_request, pb
from cluster import Cluster, generate_alone

FIRST_TEXT_ID = 300  # ids from here on are plain text in every tokenizer that the tests run with


def prompts_of(rng, count, longest=200):
    return [[rng.randrange(FIRST_TEXT_ID, 3000) for _ in range(rng.choice((1, 3, 17, 64, 65, longest)))] for _ in range(count)]


class StreamsTest(unittest.TestCase):
    @classmethod
    def setUpClass(cls):
        cls.cluster = Cluster().start()
        cls.addClassCleanup(cls.cluster.kill)
        cls.client = Client(cls.cluster.port)
        cls.addClassCleanup(cls.client.channel.close)

    def tearDown(self):
        self.cluster.wait_idle()
        for process in self.cluster.processes.values():
            self.assertEqual(process.exit_codes, [], f"{process.name} ended in the middle of a test")

    def check_whole(self, stream, num_tokens=None):
        self.assertEqual(stream.code, grpc.StatusCode.OK, stream.message)
        self.assertIsNotNone(stream.started)
        self.assertIsNotNone(stream.finished)
        self.assertEqual(stream.events_after_end, 0)
        self.assertEqual(stream.finished.usage.completion_tokens, len(stream.token_ids))
        if num_tokens is not None:
            self.assertEqual(len(stream.token_ids), num_tokens)

    def test_sixty_four_streams_say_what_each_says_alone(self):
        rng = random.Random(1)
        prompts, limits = prompts_of(rng, 64), [rng.randint(1, 60) for _ in range(64)]
        streams = [self.client.generate(p, n) for p, n in zip(prompts, limits)]
        for stream, limit in zip(streams, limits):
            self.check_whole(stream.join(), limit)
        alone = generate_alone(prompts, limits, flags=["--ignore-eos"])
        for stream, expected in zip(streams, alone):
            self.assertEqual(stream.token_ids, expected)

    def test_a_sampled_answer_depends_on_its_seed_and_on_nothing_else(self):
        ask = lambda seed, name: self.client.generate([400, 401, 402], 40, temperature=1.0, seed=seed, request_id=name)
        alone = ask(7, "once").join().token_ids
        crowd = [self.client.generate(p, 50, temperature=1.0) for p in prompts_of(random.Random(2), 12)]
        again, other = ask(7, "again").join().token_ids, ask(8, "other").join().token_ids
        for stream in crowd:
            self.check_whole(stream.join(), 50)
        self.assertEqual(again, alone)
        self.assertNotEqual(other, alone)

    def test_the_parts_of_the_time_add_up_to_what_the_client_measured(self):
        streams = [self.client.generate(p, 30) for p in prompts_of(random.Random(3), 20)]
        for stream in streams:
            self.check_whole(stream.join(), 30)
            timing = stream.finished.timing
            parts = sum(getattr(timing, value.name) for value in timing.DESCRIPTOR.fields
                        if value.name not in ("total_us", "time_to_first_token_us"))  # fmt: skip
            self.assertLessEqual(abs(parts - timing.total_us), 1000)
            self.assertLessEqual(timing.total_us / 1e6, stream.ended - stream.began)
            self.assertLess(timing.time_to_first_token_us, timing.total_us)

    def test_a_cached_prompt_is_billed_as_cached_and_answers_the_same(self):
        prompt = prompts_of(random.Random(4), 1)[0] + list(range(400, 600))
        first = self.client.generate(prompt, 20).join()
        self.cluster.wait_idle()
        second = self.client.generate(prompt, 20).join()
        self.assertEqual(first.token_ids, second.token_ids)
        self.assertEqual(first.finished.usage.cached_tokens, 0)
        self.assertGreaterEqual(second.finished.usage.cached_tokens, 128)
        self.assertEqual(second.finished.usage.prompt_tokens, len(prompt))

    def test_clients_that_leave_at_any_instant_leave_nothing_behind(self):
        rng = random.Random(5)
        streams = []
        for prompt in prompts_of(rng, 48):
            streams.append((self.client.generate(prompt, 2000), time.monotonic() + rng.uniform(0, 0.6)))
        witness = self.client.generate([777], 60)
        for stream, leaves in sorted(streams, key=lambda s: s[1]):
            time.sleep(max(0, leaves - time.monotonic()))
            stream.cancel()
        for stream, _ in streams:
            self.assertEqual(stream.join().code, grpc.StatusCode.CANCELLED)
        self.check_whole(witness.join(), 60)
        self.cluster.wait_idle(timeout_s=2)

    def test_a_connection_that_breaks_ends_its_requests(self):
        client = Client(self.cluster.port)
        streams = [client.generate([500 + i], 4000) for i in range(4)]
        for stream in streams:
            stream.wait_tokens(2)
        client.channel.close()
        self.cluster.wait_idle(timeout_s=2)

    def test_a_deadline_is_kept(self):
        stream = self.client.generate([600, 601], 3000, timeout_s=0.5)
        stream.join(5)
        self.assertLess(stream.ended - stream.began, 1.0)
        if stream.code == grpc.StatusCode.OK:  # the terminal frame came just in time
            self.assertEqual(stream.finished.reason, pb.FINISH_REASON_DEADLINE)
        else:
            self.assertEqual(stream.code, grpc.StatusCode.DEADLINE_EXCEEDED)
        self.cluster.wait_idle(timeout_s=1)

    def test_a_slow_reader_holds_up_nobody_and_no_memory(self):
        slow = [self.client.generate([650 + i], 1500) for i in range(2)]
        for stream in slow:
            stream.delay_s = 0.2
        before = self.cluster.gateway.resident_mb()
        began = time.monotonic()
        quick = [self.client.generate([700 + i], 100).join() for i in range(4)]
        for stream in quick:
            self.check_whole(stream, 100)
        self.assertLess(time.monotonic() - began, 60)
        self.assertLess(self.cluster.gateway.resident_mb() - before, 64)
        for stream in slow:
            stream.cancel()
            stream.join()

    def test_stop_texts_end_the_output_and_never_show(self):
        whole = self.client.generate([800, 801], 60).join()
        text = whole.text
        middle = next((text[i : i + 3] for i in range(len(text) // 2, len(text) - 3) if "\ufffd" not in text[i : i + 3]), None)
        if not middle:
            self.skipTest("the model said nothing to stop at")
        conditions = pb.StopConditions(max_tokens=60, ignore_eos=True, stop=[middle])
        request = generate_request([800, 801], 60)
        request.stop_conditions.CopyFrom(conditions)
        stopped = Stream(self.client.stub.Generate, request, timeout=60).join()
        self.assertEqual(stopped.finished.reason, pb.FINISH_REASON_STOP)
        self.assertEqual(stopped.text, text[: text.index(middle)])

    def test_log_probabilities_come_with_every_token(self):
        request = generate_request([900, 901], 8)
        request.options.logprobs, request.options.top_logprobs = True, 5
        stream = self.client.stub.Generate(request, timeout=60)
        logprobs = [l for event in stream if event.WhichOneof("event") == "content_delta" for l in event.content_delta.logprobs]
        self.assertEqual(len(logprobs), 8)
        for entry in logprobs:
            self.assertEqual(len(entry.top), 5)
            self.assertEqual(entry.top[0].token_id, entry.token_id)  # greedy
            self.assertLessEqual(entry.logprob, 0)


if __name__ == "__main__":
    unittest.main()
