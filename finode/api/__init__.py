"""The local HTTP API: Open Inference Protocol v2 (JSON) under /v2, administration under /finode/v1.

app.py              puts the application together
guard.py            who may ask: host, origin, bearer token; the edge where an unexpected exception ends
inference.py        /v2: what any inference client speaks
administration.py   /finode/v1: status, peers, services, models, sessions, and queries with progress
ledger.py           /finode/v1: receipts, rewards, and labels that come later
inputs.py           request bodies and tensors, checked
asking.py           one query for one request: progress as lines, cancelled when the client goes away
errors.py           which status an error has, and its body
server.py           hypercorn on trio, one listening address
"""

from finode.api.app import build_app
from finode.api.server import serve_api

__all__ = ["build_app", "serve_api"]
