"""Measures whole queries between hosts whose links something else makes slow: what `finode bench --link` is held to.

    export PYTHONPATH=.
    python scripts/measure_hosts.py prepare DIR --model lenet --models 5
    TOOL -- python scripts/measure_hosts.py run DIR --batch 32 --queries 5

TOOL runs the command once on each of four hosts (network namespaces, say) at the same time, in this directory, and
says who is where: WAN_HOST is 0 to 3, WAN_IPS are the four addresses, with commas between. Two hosts are parties, which
own the models, one is the dealer, one the querier, which asks and prints medians after two queries to warm up.
"""

from __future__ import annotations

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import trio

from finode import Client
from finode.config import IDENTITY_NAME
from finode.identity import Identity
from finode.testnet.bench import models
from finode.testnet.bench.federation import Querier, topology_of, wait_until_it_can_ask
from finode.testnet.bench.work import Work
from finode.testnet.homes import make_homes

HOSTS = ("party-1", "party-2", "dealer", Querier.KEEPING.value)
"""The nodes of the benchmark's federation, by host."""
PORT = 4001
WARM_UP = 2
PAUSE_S = 3.0
"""After each query: the pool of bundles is filled again meanwhile."""
RUN_S = 900.0


def prepare(directory: Path, work: Work) -> None:
    """Make the four homes with their models."""
    topology = topology_of([work], directory / "models")
    nodes = tuple(node for node in topology.nodes if node.name in HOSTS)
    make_homes(replace(topology, nodes=nodes), directory)
    told = {"model": work.model, "models": work.models, "service": work.service}
    (directory / "work.json").write_text(json.dumps(told), encoding="utf-8")


@contextmanager
def daemon(directory: Path, host: int, addresses: list[str]) -> Iterator[Path]:
    """Run this host's daemon; give its home."""
    home = directory / HOSTS[host]
    first = Identity.load(directory / HOSTS[0] / IDENTITY_NAME).peer_id
    command = [sys.executable, "-m", "finode.cli", "start", "--home", str(home)]
    command += ["--listen", f"/ip4/{addresses[host]}/tcp/{PORT}", "--api", "127.0.0.1:0"]
    if host:
        command += ["--bootstrap", f"/ip4/{addresses[0]}/tcp/{PORT}/p2p/{first}"]
    with (directory / f"{HOSTS[host]}.log").open("wb") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log)  # noqa: S603 - this interpreter, our module
        try:
            yield home
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait()


async def ask(home: Path, batch: int, queries: int, work: dict[str, Any]) -> dict[str, float]:
    """Ask until there are enough answers; return medians in seconds."""
    online, total = [], []
    while not (home / "api.json").exists():  # noqa: ASYNC110 - another process writes it
        await trio.sleep(0.2)
    x = models.inputs(batch, shape=models.input_shape(work["model"]))
    async with Client(home=home) as client:
        await wait_until_it_can_ask(client, work["service"], work["models"])
        for query in range(WARM_UP + queries):
            began = time.perf_counter()
            answer = await client.query(work["service"], x, parties=2)
            if query >= WARM_UP:
                online.append(answer.timings.online_s)
                total.append(time.perf_counter() - began)
            await trio.sleep(PAUSE_S)
    return {"online_s": round(statistics.median(online), 3), "total_s": round(statistics.median(total), 3)}


def run(directory: Path, batch: int, queries: int) -> None:
    """Be one of the four hosts; the querier ends the others."""
    host, addresses = int(os.environ["WAN_HOST"]), os.environ["WAN_IPS"].split(",")
    done = directory / "done"
    if host == len(HOSTS) - 1:
        done.unlink(missing_ok=True)
    ip = Path("/sbin/ip")
    if ip.exists():  # a fresh network namespace has its loopback down, and the API listens there
        subprocess.run([ip, "link", "set", "lo", "up"], check=False)  # noqa: S603 - a fixed command
    with daemon(directory, host, addresses) as home:
        if host == len(HOSTS) - 1:
            work = json.loads((directory / "work.json").read_text(encoding="utf-8"))
            try:
                medians = trio.run(ask, home, batch, queries, work)
            finally:
                done.touch()
            sys.stdout.write(f"{json.dumps(medians)}\n")
            return
        began = time.monotonic()
        time.sleep(PAUSE_S)
        while not done.exists() and time.monotonic() - began < RUN_S:
            time.sleep(0.3)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("prepare", "run"))
    parser.add_argument("directory", type=Path)
    parser.add_argument("--model", default="lenet")
    parser.add_argument("--models", type=int, default=5)
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--queries", type=int, default=5)
    asked = parser.parse_args()
    if asked.what == "prepare":
        prepare(asked.directory, Work(model=asked.model, models=asked.models))
    else:
        run(asked.directory, asked.batch, asked.queries)


if __name__ == "__main__":
    main()
