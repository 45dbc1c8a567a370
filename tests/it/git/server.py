"""A forge in small: `git http-backend` over TLS, and every way in which such a server can go wrong.

Usage: server.py ROOT TLS-DIRECTORY ADDRESS {PORT=CERTIFICATE}...
The first part of a path says how the server behaves; what follows is the repository.
"""

import base64
import os
import ssl
import subprocess
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

ROOT, TLS, ADDRESS = sys.argv[1:4]
LOGIN = "Basic " + base64.b64encode(b"router:s3cret").decode()
ADVERTISEMENT = "application/x-git-upload-pack-advertisement"


class Forge(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def handle_one_request(self):
        try:
            super().handle_one_request()
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True

    def answer(self, status, headers=(), body=b"", length=None):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value)
        self.send_header("Content-Length", str(len(body) if length is None else length))
        self.end_headers()
        self.wfile.write(body)
        self.wfile.flush()

    def serve(self):
        _, how, path = self.path.split("/", 2)
        how = told() if how == "told" else how
        port = self.server.server_address[1]
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        first = self.command == "GET"
        if how == "private" and self.headers.get("Authorization") != LOGIN:
            return self.answer(401, [("WWW-Authenticate", 'Basic realm="git"')])
        if how == "forbidden":
            return self.answer(403)
        if how == "gone":
            return self.answer(404)
        if how == "busy":
            return self.answer(503)
        if how == "moved":
            return self.answer(301, [("Location", f"https://user:pw@{ADDRESS}:{port}/git/{path}?token=x")])
        if how == "downgrade":
            return self.answer(302, [("Location", f"http://{ADDRESS}/git/{path}")])
        if how == "login":
            return self.answer(200, [("Content-Type", "text/html")], b"<html>Welcome to the hotel</html>")
        if how == "garbage":
            return self.answer(200, [("Content-Type", ADVERTISEMENT)], os.urandom(4096))
        if how == "silent":
            return self.hang()
        headers, answer = self.backend(path, body)
        if how == "slow":
            self.answer(200, headers, length=len(answer))
            for byte in answer:
                self.wfile.write(bytes([byte]))
                self.wfile.flush()
                time.sleep(0.05)
            return None
        if how == "closing" and first:
            self.close_connection = True
        if how == "gone-later" and not first:
            return self.answer(404)
        half = len(answer) // 2
        if how in ("truncated", "cut", "hanging", "flipped") and not first:
            if how == "truncated":
                return self.answer(200, headers, answer[:half])
            if how == "flipped":
                return self.answer(200, headers, answer[:half] + bytes([answer[half] ^ 255]) + answer[half + 1 :])
            self.answer(200, headers, answer[:half], length=len(answer))
            if how == "hanging":
                return self.hang()
            self.close_connection = True
            return None
        return self.answer(200, headers, answer)

    do_GET = do_POST = serve

    def hang(self):
        self.connection.settimeout(60)
        try:
            self.connection.recv(1)
        except OSError:
            pass
        self.close_connection = True

    def backend(self, path, body):
        path, _, query = path.partition("?")
        env = dict(
            os.environ,
            GIT_PROJECT_ROOT=ROOT,
            GIT_HTTP_EXPORT_ALL="1",
            PATH_INFO="/" + path,
            QUERY_STRING=query,
            REQUEST_METHOD=self.command,
            CONTENT_TYPE=self.headers.get("Content-Type", ""),
            CONTENT_LENGTH=str(len(body)),
            REMOTE_ADDR=self.client_address[0],
        )
        out = subprocess.run(["git", "http-backend"], input=body, env=env, capture_output=True, check=True).stdout
        head, _, answer = out.partition(b"\r\n\r\n")
        headers = [tuple(line.split(": ", 1)) for line in head.decode().splitlines()]
        return [header for header in headers if header[0] in ("Content-Type", "Cache-Control")], answer


def told():
    """The behaviour that a file names, so that a server can change while somebody follows it."""
    with open(f"{ROOT}/behaviour", encoding="ascii") as file:
        return file.read().strip()


class Server(ThreadingHTTPServer):
    daemon_threads = True

    def get_request(self):
        if os.path.exists(f"{ROOT}/behaviour"):
            name = told() if told() in ("expired", "wrong-name") else "good"
            self.context.load_cert_chain(f"{TLS}/{name}.pem", f"{TLS}/server.key")
        stream, address = super().get_request()
        return self.context.wrap_socket(stream, server_side=True, do_handshake_on_connect=False), address


def listen(port, certificate):
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(f"{TLS}/{certificate}.pem", f"{TLS}/server.key")
    server = Server((ADDRESS, port), Forge)
    server.context = context
    threading.Thread(target=server.serve_forever, daemon=True).start()


for pair in sys.argv[4:]:
    number, name = pair.split("=")
    listen(int(number), name)
print("ready", flush=True)
sys.stdin.read()
