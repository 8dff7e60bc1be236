"""A collector of traces: takes what is sent to it over HTTP."""
import http.server
import threading


class Collector(http.server.ThreadingHTTPServer):
    """`requests` is what came: (path, content type, body). @param refuse  of so many it says 503 before it takes any"""

    def __init__(self, host, port=0, refuse=0):
        self.requests, self.refuse = [], refuse
        super().__init__((host, port), Handler)
        threading.Thread(target=self.serve_forever, daemon=True).start()


class Handler(http.server.BaseHTTPRequestHandler):
    def do_POST(self):  # noqa: N802
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.server.refuse > 0:
            self.server.refuse -= 1
            self.send_response(503)
        else:
            self.server.requests.append((self.path, self.headers["Content-Type"], body))
            self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"{}")

    def log_message(self, *_):
        pass
