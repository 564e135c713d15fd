"""A SIEM for tests, as a process of its own that can be killed: prints a line of JSON for each event that it has taken.

`python -m tests.delivery.receiver KIND PORT [CERTIFICATE KEY]`; the first line that it prints says that it listens.
"""

import http.server
import json
import re
import socketserver
import ssl
import sys
from typing import IO, cast


def take(kind: str, content: object) -> None:
    print(json.dumps({kind: content}), flush=True)


class Collector(http.server.BaseHTTPRequestHandler):
    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        if self.path == "/refuse":
            self.send_response(403)
            self.end_headers()
            return
        assert self.headers["authorization"] == "Splunk a-token-of-the-receiver"
        assert self.headers["content-type"] == "application/json"
        for event in json.loads(body):
            take("ocsf", event)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *arguments: object) -> None:
        pass


class Stream(socketserver.StreamRequestHandler):
    """RFC 6587 §3.4.1."""

    def handle(self) -> None:
        stream = cast(IO[bytes], self.rfile)
        while (digits := read_length(stream)) is not None:
            take("syslog", stream.read(digits).decode())


def read_length(stream: IO[bytes]) -> int | None:
    digits = b""
    while (byte := stream.read(1)) not in (b" ", b""):
        digits += byte
    if not byte:
        assert not digits
        return None
    assert re.fullmatch(rb"[1-9][0-9]*", digits)
    return int(digits)


class Datagram(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        take("syslog", self.request[0].decode())


class Tcp(socketserver.TCPServer):
    allow_reuse_address = True


class Tls(Tcp):
    context: ssl.SSLContext

    def get_request(self) -> tuple[ssl.SSLSocket, object]:
        connection, address = super().get_request()
        return self.context.wrap_socket(connection, server_side=True), address


def main() -> None:
    kind, port, *files = sys.argv[1:]
    address = ("127.0.0.1", int(port))
    server: socketserver.BaseServer
    if kind.startswith("http"):
        server = http.server.HTTPServer(address, Collector)
    elif kind == "syslog+udp":
        server = socketserver.UDPServer(address, Datagram)
    else:
        server = (Tls if kind == "syslog+tls" else Tcp)(address, Stream)
    if files:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(files[0], files[1])
        if isinstance(server, Tls):
            server.context = context
        else:
            assert isinstance(server, http.server.HTTPServer)
            server.socket = context.wrap_socket(server.socket, server_side=True)
    print("listening", flush=True)
    server.serve_forever()


if __name__ == "__main__":
    main()
