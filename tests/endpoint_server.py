"""A local OpenAI-compatible server for tests: it answers by a scripted policy and misbehaves on demand."""

import json
import socket
import struct
import threading
import time
from collections.abc import Callable, Iterable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from itertools import pairwise


def completion(text: str | None, prompt: int, spent: int, reason: str | None = "stop", total: int = 0) -> dict:
    usage = {"prompt_tokens": prompt, "completion_tokens": spent, "total_tokens": total or prompt + spent}
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": reason}
    return {"id": "x", "object": "chat.completion", "model": "m", "choices": [choice], "usage": usage}


def error(status: int, message: str = "no", code=None, kind: str = "error", **headers: str) -> Callable:
    """A fault: the server answers with this status."""
    body = json.dumps({"error": {"message": message, "code": code, "type": kind, "param": None}})
    return lambda handler, _: handler.send(status, body, headers)


def models(*names: str) -> Callable:
    """A listing: the server's models."""
    return answer({"object": "list", "data": [{"id": name, "object": "model"} for name in names]})


FULL = "This model's maximum context length is 4096 tokens. However, you requested"
CONTEXT_REFUSALS = {  # what servers say when a conversation does not fit
    "openai": error(400, f"{FULL} 5012.", "context_length_exceeded", "invalid_request_error"),
    "vllm": error(400, f"{FULL} 1024 output tokens and your prompt has 3073 input tokens.", 400, "BadRequestError"),
    "llama.cpp": error(400, "request (4390 tokens) exceeds the context size", 400, "exceed_context_size_error"),
    "sglang": error(400, "The input (5012 tokens) is longer than the model's context length.", 400, "BadRequestError"),
}


def answer(value: dict | str) -> Callable:
    """A fault: the server answers 200 with this body."""
    return lambda handler, _: handler.send(200, value if isinstance(value, str) else json.dumps(value))


def reset(handler, _) -> None:
    """The connection ends without an answer."""
    handler.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    handler.close_connection = True


def cut(handler, body: dict) -> None:
    """Less than a whole answer, then the end of the connection."""
    handler.send(200, handler.server.policy_body(body), length=1_000_000)
    handler.close_connection = True


def hang(handler, _) -> None:
    """No answer until the server closes."""
    handler.server.closing.wait(30)
    handler.close_connection = True


def drip(handler, _) -> None:
    """A byte now and then, never the whole answer."""
    handler.send(200, " ", length=1_000_000)
    while not handler.server.closing.wait(0.05):
        handler.wfile.write(b" ")
        handler.wfile.flush()
    handler.close_connection = True


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        fault = self.server.next_fault(self.path, dict(self.headers), body)
        self.attempt(fault or (lambda *_: self.send(200, self.server.policy_body(body))), body)

    def do_GET(self) -> None:
        self.attempt(self.server.listing, None)

    def attempt(self, reply: Callable, body: dict | None) -> None:
        try:
            reply(self, body)
        except OSError:  # the client has given up
            self.close_connection = True

    def send(self, status: int, text: str, headers: dict[str, str] | None = None, length: int | None = None) -> None:
        """An answer that claims to have ``length`` bytes: None for those that it has."""
        data = text.encode()
        self.send_response(status)
        own = {"Content-Type": "application/json", "Content-Length": str(length or len(data))}
        for name, value in (own | (headers or {})).items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        self.wfile.write(data)

    def log_message(self, *_) -> None:
        pass


class EndpointServer(ThreadingHTTPServer):
    """Use as a context manager. ``policy``: conversation → text; a token is four characters.

    ``faults`` happen to the first requests in this order (None: answer well); ``fault_for(number, body)``, if given,
    decides for the later ones. ``requests`` holds (seconds, path, headers, body) of every request. ``listing`` answers
    who asks for the models.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, policy: Callable[[list[dict]], str], faults: Iterable[Callable | None] = (), fault_for=None):
        super().__init__(("127.0.0.1", 0), _Handler)
        self.policy, self.faults, self.fault_for, self.listing = policy, list(faults), fault_for, models("m")
        self.requests: list[tuple[float, str, dict, dict]] = []
        self.closing = threading.Event()
        self._lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/v1"

    @property
    def bodies(self) -> list[dict]:
        return [body for _, _, _, body in self.requests]

    @property
    def gaps(self) -> list[float]:
        """Seconds between one request and the next."""
        return [later[0] - sooner[0] for sooner, later in pairwise(self.requests)]

    def next_fault(self, path: str, headers: dict, body: dict) -> Callable | None:
        with self._lock:
            self.requests.append((time.monotonic(), path, headers, body))
            if self.faults:
                return self.faults.pop(0)
            return self.fault_for(len(self.requests), body) if self.fault_for else None

    def policy_body(self, body: dict) -> str:
        text = self.policy(body["messages"])
        prompt = sum(len(message["content"]) for message in body["messages"]) // 4
        return json.dumps(completion(text, prompt, max(1, len(text) // 4)))

    def handle_error(self, *_) -> None:
        """Connections that a client drops are part of the tests."""

    def __enter__(self):
        threading.Thread(target=self.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_) -> None:
        self.closing.set()
        self.shutdown()
        self.server_close()
