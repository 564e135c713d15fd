"""Something between a verifier and its broker that passes the feed on, or pretends to."""

import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import httpx2

from tests.support import PLAIN, BrokerProcess

Passing = Callable[[str], Iterable[str]]


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: "Mirror"

    def do_GET(self) -> None:
        mirror = self.server
        with mirror.lock:
            mirror.seen[self.path.partition("?")[0]] += 1
        with suppress(httpx2.HTTPError, OSError):  # either side may be gone
            if "event-stream" in self.headers.get("accept", ""):
                self._pass_events()
            elif mirror.is_cut_off:
                self.send_error(503)
            else:
                self._pass_on("GET", None)

    def do_POST(self) -> None:
        with self.server.lock:
            self.server.seen[self.path] += 1
        with suppress(httpx2.HTTPError, OSError):
            self._pass_on("POST", self.rfile.read(int(self.headers.get("content-length", 0))))

    def _pass_on(self, method: str, content: bytes | None) -> None:
        mirror = self.server
        answer = httpx2.request(method, mirror.broker.url + self.path, content=content, trust_env=False, verify=PLAIN)
        body = mirror.instead.get(self.path, answer.content)
        mirror.passed[self.path] = answer.content
        self.send_response(answer.status_code)
        self.send_header("content-length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _pass_events(self) -> None:
        mirror = self.server
        self.close_connection = True
        headers = {"accept": "text/event-stream"}
        with httpx2.stream(
            "GET", mirror.broker.url + self.path, headers=headers, trust_env=False, verify=PLAIN
        ) as answer:
            self.send_response(answer.status_code)
            self.end_headers()
            for line in answer.iter_lines():
                if mirror.is_closing:
                    return
                if line.startswith("data:"):
                    page = line.removeprefix("data:").strip()
                    mirror.pages.append(page)
                    for passed in mirror.passing(page):
                        self.wfile.write(f"data: {passed}\n\n".encode())

    def log_message(self, *_: object) -> None:
        """Nothing."""


class Mirror(ThreadingHTTPServer):
    """`passing`: what becomes of a page of the stream. `instead`: bodies to give for other paths. `is_cut_off`: whether
    nothing but the stream is passed on.
    """

    daemon_threads = True

    def __init__(self, broker: BrokerProcess) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.broker = broker
        self.passing: Passing = lambda page: [page]
        self.pages: list[str] = []
        self.instead: dict[str, bytes] = {}
        self.passed: dict[str, bytes] = {}
        self.seen: Counter[str] = Counter()
        self.is_closing = False
        self.is_cut_off = False
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def handle_error(self, request: object, client_address: object) -> None:
        """A connection that broke is no news."""


@contextmanager
def mirror_of(broker: BrokerProcess) -> Iterator[Mirror]:
    mirror = Mirror(broker)
    thread = threading.Thread(target=mirror.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield mirror
    finally:
        mirror.is_closing = True
        mirror.shutdown()
        thread.join()
        mirror.server_close()
