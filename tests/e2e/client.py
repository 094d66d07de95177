"""A gRPC client made from the protos alone, with Python's grpcio: none of the project's own code."""
import threading
import time

import grpc
from google.rpc import error_details_pb2, status_pb2
from weir.v1 import inference_pb2 as pb
from weir.v1 import inference_pb2_grpc

from cluster import MODEL_NAME


class Client:
    """One connection of its own: grpcio would share it with every client of the same address."""

    OPTIONS = [("grpc.max_receive_message_length", 64 << 20), ("grpc.use_local_subchannel_pool", 1)]

    def __init__(self, port, metadata=(), channel=None):
        self.channel = channel or grpc.insecure_channel(f"127.0.0.1:{port}", options=self.OPTIONS)
        self.stub = inference_pb2_grpc.InferenceServiceStub(self.channel)
        self.metadata = list(metadata)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.channel.close()

    def generate(self, prompt, max_tokens, timeout_s=60, wait_for_ready=False, **fields):
        return Stream(self.stub.Generate, generate_request(prompt, max_tokens, **fields), timeout=timeout_s, metadata=self.metadata, wait_for_ready=wait_for_ready)

    def chat(self, *texts, timeout_s=60, **fields):
        messages = [pb.Message(role=pb.ROLE_USER if i % 2 == 0 else pb.ROLE_ASSISTANT, content=text) for i, text in enumerate(texts)]
        return Stream(self.stub.Chat, pb.ChatRequest(model=MODEL_NAME, messages=messages, **fields), timeout=timeout_s, metadata=self.metadata)


def generate_request(prompt, max_tokens, temperature=0.0, seed=None, request_id=None, ignore_eos=True, **fields):
    request = pb.GenerateRequest(
        model=MODEL_NAME,
        sampling=pb.SamplingParams(temperature=temperature, seed=seed),
        stop_conditions=pb.StopConditions(max_tokens=max_tokens, ignore_eos=ignore_eos),
        options=pb.RequestOptions(request_id=request_id),
        **fields,
    )
    if isinstance(prompt, str):
        request.text = prompt
    else:
        request.token_ids.ids.extend(prompt)
    return request


class Stream:
    """Makes a call, reads it on a thread of its own, and keeps what came and when."""

    def __init__(self, method, request, delay_s=0.0, **how):
        self.delay_s = delay_s
        self.began = time.monotonic()
        self.call = method(request, **how)
        self.started = self.finished = None
        self.token_ids, self.text, self.reasoning, self.times, self.events_after_end = [], "", "", [], 0
        self.tool_calls = []
        self.code, self.message, self.details = None, "", []
        self.ended = None
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._read, daemon=True)
        self.thread.start()

    def _read(self):
        try:
            for event in self.call:
                with self.changed:
                    self._take(event)
                    self.changed.notify_all()
                if self.delay_s:
                    time.sleep(self.delay_s)
            self.code = self.call.code()
        except grpc.RpcError as error:
            self.code, self.message = error.code(), error.details() or ""
            self.details = error_details(error)
        finally:
            with self.changed:
                self.ended = time.monotonic()
                self.changed.notify_all()

    def _take(self, event):
        kind = event.WhichOneof("event")
        if self.finished is not None:
            self.events_after_end += 1
        if kind == "started":
            self.started = event.started
        elif kind == "finished":
            self.finished = event.finished
        elif kind == "tool_call_delta":
            self.tool_calls.append(event.tool_call_delta)
        else:
            delta = getattr(event, kind)
            if kind == "reasoning_delta":
                self.reasoning += delta.text
            else:
                self.text += delta.text
            if delta.token_ids and delta.first_token_index != len(self.token_ids):
                raise AssertionError(f"a delta begins at token {delta.first_token_index}, expected {len(self.token_ids)}")
            self.token_ids += delta.token_ids
            self.times.append(time.monotonic())

    def wait_tokens(self, count, timeout_s=30):
        with self.changed:
            came = self.changed.wait_for(lambda: len(self.token_ids) >= count or self.ended is not None, timeout_s)
        assert came, f"{len(self.token_ids)} tokens within {timeout_s} s, expected {count}"
        assert len(self.token_ids) >= count, f"ended with {len(self.token_ids)} tokens: {self.code} {self.message}"

    def cancel(self):
        self.call.cancel()

    def join(self, timeout_s=120):
        self.thread.join(timeout_s)
        assert not self.thread.is_alive(), f"the stream has not ended within {timeout_s} s ({len(self.token_ids)} tokens)"
        return self

    def longest_pause_s(self):
        return max((b - a for a, b in zip(self.times, self.times[1:])), default=0.0)


def error_details(error):
    """The google.rpc details of an error, as messages."""
    kinds = {kind.DESCRIPTOR.full_name: kind for kind in
             (error_details_pb2.ErrorInfo, error_details_pb2.RetryInfo, error_details_pb2.BadRequest, error_details_pb2.QuotaFailure)}  # fmt: skip
    for key, value in error.trailing_metadata() or ():
        if key == "grpc-status-details-bin":
            status = status_pb2.Status.FromString(value)
            return [kinds[d.type_url.rsplit("/", 1)[1]].FromString(d.value) for d in status.details]
    return []


def detail(stream_or_details, kind):
    details = getattr(stream_or_details, "details", stream_or_details)
    return next((d for d in details if d.DESCRIPTOR.name == kind), None)
