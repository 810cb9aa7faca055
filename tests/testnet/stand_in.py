"""Stands in for a daemon: reads its home, opens an API that knows the whole roster, and stops on SIGINT.

    stand_in.py [--crash NAME] [--deaf NAME] [--unready] --home HOME

The node NAME ends before it is ready, or ignores SIGINT and SIGTERM; or no node gets ready.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import sys
import threading
import tomllib
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path


def main() -> int:
    parser = argparse.ArgumentParser()
    for option in ("--crash", "--deaf"):
        parser.add_argument(option, default="")
    parser.add_argument("--unready", action="store_true")
    parser.add_argument("--home", type=Path, required=True)
    arguments = parser.parse_args()
    home: Path = arguments.home
    organization = tomllib.loads((home / "finode.toml").read_text())["node"]["organization"]
    sys.stdout.write(json.dumps({"event": "starting", "organization": organization}) + "\n")
    sys.stdout.flush()
    if arguments.crash == home.name:
        sys.stderr.write("something is badly wrong\n")
        return 3

    stopped = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN if arguments.deaf == home.name else lambda *_: stopped.set())
    roster = tomllib.loads((home / "roster.toml").read_text())["peer"]
    peers = [
        {
            "peer": entry["id"],
            "organization": entry["organization"],
            "roles": ["party"],
            "addresses": [],
            "connected": True,
            "rtt_ms": 1.0,
            "standing": 0.0,
            "models": 0,
            "expires_in_s": 100.0,
        }
        for entry in roster
    ]

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            body = json.dumps({"peers": peers}).encode()
            self.send_response(503 if arguments.unready else 200)
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            return

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    url = f"http://127.0.0.1:{server.server_address[1]}"
    partial = home / "api.partial"
    partial.write_text(json.dumps({"url": url, "pid": os.getpid()}))
    partial.replace(home / "api.json")
    while not stopped.wait(1.0):
        pass
    (home / "api.json").unlink()
    return 0


if __name__ == "__main__":
    sys.exit(main())
