"""A server that behaves as vendors' do when things go wrong; started by the tests as a program."""

from __future__ import annotations

import argparse
import http.server
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

SLEEPER = [sys.executable, "-c", "import time; time.sleep(600)"]


class Handler(http.server.BaseHTTPRequestHandler):
    ready_s = 0.0
    hangs = False

    def do_GET(self) -> None:
        if self.hangs:
            time.sleep(600)
        self.send_response(200 if time.monotonic() >= self.ready_s else 503)
        self.end_headers()
        self.wfile.write(os.environ.get("CUDA_VISIBLE_DEVICES", "none").encode())

    def log_message(self, *args: object) -> None:
        del args


def spawn_children(pids: Path) -> None:
    """A worker, a worker that left the session, and one whose parent has gone."""
    parent_gone = (
        f"import subprocess; print(subprocess.Popen({SLEEPER!r}, start_new_session=True,"
        " stdout=subprocess.DEVNULL).pid)"
    )
    orphan = subprocess.check_output([sys.executable, "-c", parent_gone], text=True)
    children = [
        subprocess.Popen(SLEEPER).pid,
        subprocess.Popen(SLEEPER, start_new_session=True).pid,
        int(orphan),
    ]
    with pids.open("a") as file:
        file.write("".join(f"{pid}\n" for pid in children))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--port", type=int, required=True)
    parser.add_argument("--delay", type=float, default=0.0)
    parser.add_argument("--die-after", type=float)
    parser.add_argument("--deaths", type=int, default=1000, help="starts that --die-after ends")
    parser.add_argument("--pids", type=Path, required=True)
    parser.add_argument("--spawn", action="store_true")
    parser.add_argument("--ignore-sigterm", action="store_true")
    parser.add_argument("--hang", action="store_true")
    parser.add_argument("--api-key", default="")
    options = parser.parse_args()
    sys.stderr.write("loading weights:  10%\rloading weights: 100%\n")
    with options.pids.open("a") as file:
        file.write(f"{os.getpid()}\n")
    if options.ignore_sigterm:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if options.spawn:
        spawn_children(options.pids)
    starts = len(options.pids.read_text().split())
    if options.die_after is not None and starts <= options.deaths:
        sys.stderr.write("RuntimeError: out of memory, said the stand-in\n")
        threading.Timer(options.die_after, lambda: os._exit(7)).start()
    Handler.ready_s = time.monotonic() + options.delay
    Handler.hangs = options.hang
    http.server.ThreadingHTTPServer(("127.0.0.1", options.port), Handler).serve_forever()


if __name__ == "__main__":
    main()
