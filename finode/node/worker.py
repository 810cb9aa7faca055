"""A worker process: the only place where torch runs. Started as `python -m finode.node.worker FD THREADS DEVICE`.

It answers requests of its daemon one after another; the runs of several sessions interleave between requests, and
while there is none it prepares bundles. What it holds (constants, bundles, runs) dies with it. It ends when the
daemon's end of the socket closes, and at its start, after an error that says why, when it has no such device.

    request     parts                                         reply
    sizes       -                                             correction_bytes, memory_bytes
    masks       secret                                        parts: the party's mask seed of each deployment
    open        mask seeds                                    an outcome; at the end the constants are in their files
    bundle      its seed, mask seeds                          correction_bytes, memory_bytes; pieces may follow
    feed        a piece of the corrections                    -
    stored      -                                             -; all pieces came
    burn        -                                             -
    run         input share, zero keys                        an outcome, with prepare_s for what of its bundle was not
                                                              prepared; at the end the part is the output share
    resume      frames of the other parties                   an outcome
    rest        -                                             an outcome: what follows a run that finished with `more`;
                                                              at the end the parts are sums and ballots
    feedback    ballots, label share, zero keys               an outcome; at the end the part is the counts' share
    drop        -                                             -; of a run, and of what would follow it
    deal        secret                                        correction_bytes; parts: the seed of each party
    next        -                                             more; part: a chunk of the corrections

An outcome is `exchange` (round, expected_bytes, parties; parts: the frames to send) or `finished` (rounds, bytes_sent,
compute_s, transcript, more). What follows a run waits for `rest` or `drop`; beyond `MAX_RESTS` the oldest is dropped.
"""

from __future__ import annotations

import hashlib
import signal
import socket
import sys
import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from finode.errors import FinodeError, LocalError, LocalProtocolError, RemoteError, StorageFull
from finode.node.channel import BlockingChannel, Buffer, Envelope
from finode.node.files import write_private
from finode.node.kept import BundleKeep, HoldingCache, KeptBundle
from finode.smpc.engine import (
    Dealing,
    Engine,
    Exchange,
    Finished,
    Outcome,
    PartyRun,
    Prepared,
    Program,
    StatisticsShare,
)
from finode.smpc.engines import available_engines
from finode.smpc.plan import decode_plan
from finode.wire import canonical

CACHE_BYTES = 1 << 30
"""Deployments kept in memory between sessions; the least recently used go first."""
MAX_RESTS = 64
"""Runs whose answers have left and whose statistics are still to come. A daemon asks for them within a second or drops
them; the limit is for one that does neither."""


class Worker:
    """The state of one worker process and its request handlers."""

    def __init__(self, engines: dict[str, Engine]) -> None:
        self._engines = engines
        self._holdings = HoldingCache(CACHE_BYTES)
        self._bundles = BundleKeep()
        self._runs: dict[bytes, PartyRun] = {}
        self._rests: OrderedDict[bytes, PartyRun] = OrderedDict()
        self._constant_paths: dict[bytes, list[str]] = {}
        self._dealings: dict[bytes, Iterator[Buffer]] = {}
        self._handlers: dict[str, Callable[[dict[str, Any], tuple[Buffer, ...]], Envelope]] = {
            "sizes": self._sizes,
            "masks": self._masks,
            "open": self._open,
            "bundle": self._bundle,
            "feed": self._feed,
            "stored": self._stored,
            "burn": self._burn,
            "run": self._run,
            "resume": self._resume,
            "rest": self._rest,
            "feedback": self._feedback,
            "drop": self._drop,
            "deal": self._deal,
            "next": self._next,
        }

    def handle(self, request: Envelope) -> Envelope:
        """Return the reply to one request. A failed run is dropped: what it took of its bundle is burned."""
        header = request.header
        try:
            return self._handlers[header["kind"]](header, request.parts)
        except FinodeError as error:
            self._forget(header.get("run"))
            return Envelope(_error(error))
        except OSError as error:
            self._forget(header.get("run"))
            code = StorageFull.code if error.errno in (28, 122) else "finode-error"
            return Envelope({"error": code, "message": f"{error.filename}: {error.strerror}", "hint": "", "peer": ""})

    @property
    def bundles(self) -> int:
        """How many bundles lie here."""
        return len(self._bundles)

    @property
    def runs(self) -> int:
        """How many runs are under way here, or wait for what follows their answer."""
        return len(self._runs) + len(self._rests)

    def advance(self) -> bool:
        """Do a piece of what can be done ahead; return whether there was any."""
        return self._bundles.advance()

    def _forget(self, run: bytes | None) -> None:
        if run is not None:
            self._runs.pop(run, None)
            self._rests.pop(run, None)
            self._constant_paths.pop(run, None)
            self._dealings.pop(run, None)

    def _sizes(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        program = canonical.decode(header["program"], Program)
        return self._sizes_of(self._engines[header["engine"]], program, last=True)

    @staticmethod
    def _sizes_of(engine: Engine, program: Program, *, last: bool) -> Envelope:
        return Envelope(
            {
                "correction_bytes": engine.correction_bytes(program) if last else 0,
                "memory_bytes": engine.memory_bytes(program),
            }
        )

    def _masks(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        engine, secret = self._engines[header["engine"]], bytes(parts[0])
        return Envelope(
            {}, tuple(engine.mask_seed(secret, name, header["party_index"]) for name in header["deployments"])
        )

    def _open(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        run = self._engines[header["engine"]].open_weights(
            [decode_plan(plan) for plan in header["plans"]],
            [Path(path).read_bytes() for path in header["shares"]],
            [bytes(seed) for seed in parts],
            header["party_index"],
            header["parties"],
        )
        self._constant_paths[header["run"]] = header["constants"]
        return self._outcome(header["run"], run, run.start())

    def _bundle(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        engine, party_index = self._engines[header["engine"]], header["party_index"]
        program = canonical.decode(header["program"], Program)
        seed, *mask_seeds = map(bytes, parts)
        holding = self._holdings.get(
            engine, program, party_index, header["constants"], header["shares"], tuple(mask_seeds)
        )
        sizes = self._sizes_of(engine, program, last=party_index == program.parties - 1)

        def prepare(corrections: Buffer) -> Prepared:
            return engine.prepare(program, party_index, holding, seed, corrections)

        # Its memory is touched, and so taken, only as the pieces come.
        corrections = bytearray(sizes.header["correction_bytes"])
        self._bundles.begin(header["bundle"], KeptBundle(engine, prepare, corrections))
        return sizes

    def _feed(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        self._bundles.feed(header["bundle"], parts[0])
        return Envelope({})

    def _stored(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        self._bundles.close(header["bundle"])
        return Envelope({})

    def _burn(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        self._bundles.burn(header["bundle"])
        return Envelope({})

    def _run(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        began = time.perf_counter()
        bundle = self._bundles.take(header["bundle"])
        if (prepared := bundle.prepared) is None:
            raise LocalProtocolError("a bundle is taken before it is whole")
        input_share, *keys = parts
        # The engine prepares what is left for the answer here, and what follows it when it is asked for.
        run = bundle.engine.run(prepared, input_share, _zero_keys(header, keys), count=header.get("count"))
        prepare_s = time.perf_counter() - began
        outcome = self._outcome(header["run"], run, run.start())
        return Envelope({"prepare_s": prepare_s, **outcome.header}, outcome.parts)

    def _resume(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        run = self._runs[header["run"]]
        return self._outcome(header["run"], run, run.resume(dict(zip(header["parties"], parts, strict=True))))

    def _rest(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        run = self._rests.pop(header["run"], None)
        if run is None:
            raise LocalProtocolError("nothing follows this run, or it was dropped")
        return self._outcome(header["run"], run, run.start())

    def _feedback(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        program = canonical.decode(header["program"], Program)
        ballots, label_share, *keys = parts
        run = self._engines[header["engine"]].feedback(
            program, header["party_index"], ballots, label_share, _zero_keys(header, keys), count=header["count"]
        )
        return self._outcome(header["run"], run, run.start())

    def _outcome(self, name: bytes, run: PartyRun, outcome: Outcome) -> Envelope:
        if isinstance(outcome, Exchange):
            self._runs[name] = run
            return Envelope(
                {
                    "state": "exchange",
                    "round": outcome.round,
                    "expected_bytes": outcome.expected_bytes,
                    "parties": list(outcome.frames),
                },
                tuple(outcome.frames.values()),
            )
        paths = self._constant_paths.pop(name, None)
        self._forget(name)
        if outcome.rest is not None:
            self._rests[name] = outcome.rest
            while len(self._rests) > MAX_RESTS:
                self._rests.popitem(last=False)
        summary = {
            "state": "finished",
            "rounds": outcome.rounds,
            "bytes_sent": outcome.bytes_sent,
            "compute_s": outcome.compute_s,
            "transcript": outcome.transcript,
            "more": outcome.rest is not None,
        }
        return Envelope(summary, self._deliver(outcome, paths))

    @staticmethod
    def _deliver(outcome: Finished, paths: list[str] | None) -> tuple[Buffer, ...]:
        if isinstance(outcome.value, StatisticsShare):
            return (outcome.value.sums, outcome.value.ballots)
        if paths is None:
            return (outcome.value,)
        for path, constants in zip(paths, outcome.value, strict=True):
            write_private(Path(path), constants)
            write_private(Path(f"{path}.sha256"), hashlib.sha256(constants).digest())
        return ()

    def _drop(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        self._forget(header["run"])
        return Envelope({})

    def _deal(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        program = canonical.decode(header["program"], Program)
        dealing: Dealing = self._engines[header["engine"]].deal(program, bytes(parts[0]))
        self._dealings[header["run"]] = iter(dealing.corrections)
        return Envelope({"correction_bytes": dealing.correction_bytes}, dealing.seeds)

    def _next(self, header: dict[str, Any], parts: tuple[Buffer, ...]) -> Envelope:
        chunk = next(self._dealings[header["run"]], None)
        if chunk is None:
            self._forget(header["run"])
            return Envelope({"more": False})
        return Envelope({"more": True}, (chunk,))


def _zero_keys(header: dict[str, Any], keys: Sequence[Buffer]) -> dict[int, bytes]:
    return dict(zip(header["zero_parties"], map(bytes, keys), strict=True))


def _error(error: FinodeError) -> dict[str, Any]:
    return {
        "error": error.code,
        "message": error.message,
        "hint": error.hint,
        "peer": error.peer if isinstance(error, RemoteError) else "",
    }


def serve(channel: BlockingChannel, worker: Worker) -> None:
    """Answer requests until the daemon is gone, or the device is; do what can be done ahead while there is none."""
    while True:
        _work_ahead(channel, worker)
        request = channel.receive()
        if request is None:
            return
        lost = False
        try:
            reply = worker.handle(request)
        except Exception as error:
            # The edge of the worker: a bug in one session must be told and must not end the others. The traceback
            # shows code, never values.
            traceback.print_exc()
            reply, lost = _told(error)
        channel.send({"id": request.header["id"], **reply.header}, reply.parts)
        if lost:
            return


def _told(error: Exception) -> tuple[Envelope, bool]:
    """Return the reply to what only a bug or the device can be blamed for, and whether the device is lost."""
    from finode.smpc.devices import fault_of

    fault = fault_of(error)
    if fault is None:
        return Envelope(_error(LocalError("internal error in the worker"))), False
    return Envelope(_error(fault.error)), fault.lost


def _work_ahead(channel: BlockingChannel, worker: Worker) -> None:
    try:
        while not channel.has_request() and worker.advance():
            pass
    except Exception:
        traceback.print_exc()  # the same edge; the bundle is burned, and its session will be told


def engines(device: str = "cpu") -> dict[str, Engine]:
    """Return the engines that this installation can run, by name; the native one computes on `device`.

    Raises `ConfigError` when there is no such device.
    """
    from finode.smpc.crypten.engine import CryptenEngine
    from finode.smpc.devices import open_device
    from finode.smpc.native import NativeEngine

    found: dict[str, Engine] = {"native": NativeEngine(open_device(device)), "crypten": CryptenEngine()}
    return {name: found[name] for name in available_engines()}


def main() -> None:
    """Entry of the process: import torch, say that the worker is warm, serve."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C on the terminal is the daemon's to handle
    descriptor, threads, device = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
    channel = BlockingChannel(socket.socket(fileno=descriptor))

    import torch

    torch.set_num_threads(threads)
    torch.set_grad_enabled(False)
    try:
        worker = Worker(engines(device))
    except FinodeError as error:
        channel.send({"id": 0, **_error(error)})
        sys.exit(1)
    channel.send({"id": 0, "warm": True})
    try:
        serve(channel, worker)
    except OSError:
        sys.exit(0)


if __name__ == "__main__":
    main()
