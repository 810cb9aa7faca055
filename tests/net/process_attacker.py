"""Attacks a listening node from a process of its own; prints one line of JSON per attack.

    python process_attacker.py ADDRESS TARGET INSIDER_SEED STRANGER_SEED VICTIM RANDOM_SEED TIMES [ATTACK]

The insider is on the target's roster and says a proper hello before it misbehaves; the stranger is not. VICTIM is an
honest peer, whose id the plaintext dialer claims. `let_in` counts what must never succeed.
"""

# ruff: noqa: S311 - an attacker needs no cryptographic randomness, and its garbage must come out the same again
from __future__ import annotations

import json
import logging
import random
import struct
import sys
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import trio
from libp2p import new_host
from libp2p.crypto.ed25519 import Ed25519PublicKey
from libp2p.crypto.ed25519 import create_new_key_pair as ed25519
from libp2p.crypto.keys import KeyPair
from libp2p.crypto.x25519 import create_new_key_pair as x25519
from libp2p.custom_types import TProtocol
from libp2p.peer.id import ID
from libp2p.pubsub.pb import rpc_pb2
from libp2p.security.insecure.transport import PLAINTEXT_PROTOCOL_ID, InsecureTransport
from libp2p.security.noise.transport import PROTOCOL_ID as NOISE
from libp2p.security.noise.transport import Transport as Noise
from libp2p.utils import encode_varint_prefixed
from multiaddr import Multiaddr

from finode.identity import public_key_of
from finode.net.gossip import PROTOCOLS as GOSSIP
from finode.net.groups import only
from finode.net.negotiation import MULTISTREAM, line
from finode.wire import control, directory, session
from finode.wire.control import Hello
from finode.wire.message import HEADER

FINODE = (control.PROTOCOL, directory.PROTOCOL, session.PROTOCOL)
DIAL_S = 3.0


class Attacker:
    def __init__(self, address: str, target: str, insider: bytes, stranger: bytes, victim: str, seed: int) -> None:
        self.address = Multiaddr(address)
        self.host, self.port = address.split("/")[2], int(address.split("/")[4])
        self.target = ID.from_base58(target)
        self.insider = insider
        self.stranger = stranger
        self.victim = victim
        self.random = random.Random(seed)
        self.let_in = 0

    # -- ways in -------------------------------------------------------------------------------------------------

    @asynccontextmanager
    async def libp2p(self, seed: bytes) -> AsyncIterator[Any]:
        keys = ed25519(seed)
        host = new_host(key_pair=keys, sec_opt={NOISE: Noise(keys, noise_privkey=x25519().private_key)})
        async with host.run([]):
            with trio.move_on_after(DIAL_S):
                await host.get_network().dial_addr(self.address, self.target)
            try:
                yield host
            finally:
                with trio.move_on_after(2, shield=True):
                    await host.close()

    async def greeted(self, host: Any) -> Any:
        stream = await host.new_stream(self.target, [TProtocol(control.PROTOCOL)])
        hello = Hello(federation="finode", versions=control.VERSIONS, agent="attacker").encode()
        await stream.write(HEADER.pack(len(hello), 0, Hello.code) + hello)
        await stream.read(64)
        return stream

    async def secured(self, host: Any) -> Any:
        swarm = host.get_network()
        raw = await swarm.transport_manager.transport_for_dialing(self.address).dial(self.address)
        return await swarm.upgrader.upgrade_security(raw, True, self.target)

    def garbage(self, most: int = 400) -> bytes:
        return self.random.randbytes(self.random.randint(1, most))

    async def on_tcp(self, *parts: bytes) -> None:
        stream = await trio.open_tcp_stream(self.host, self.port)
        async with stream:
            for part in parts:
                await stream.send_all(part)
                with trio.move_on_after(0.02):
                    await stream.receive_some(4096)

    # -- attacks -------------------------------------------------------------------------------------------------

    async def tcp_bytes(self) -> None:
        await self.on_tcp(self.garbage(), self.garbage(5000))

    async def multiselect_not_utf8(self) -> None:
        text = bytes([0xFF, 0xFE]) + self.garbage(40)
        await self.on_tcp(line(MULTISTREAM), bytes([len(text) + 1]) + text + b"\n")

    async def noise_garbage(self) -> None:
        body = self.garbage(300)
        await self.on_tcp(line(MULTISTREAM), line(str(NOISE)), struct.pack(">H", len(body)) + body, self.garbage())

    async def half_a_handshake(self) -> None:
        await self.on_tcp(line(MULTISTREAM) + line(str(NOISE)) + b"\0\x20" + bytes(32))

    async def muxer_garbage(self) -> None:
        async with self.libp2p(self.insider) as host:
            connection = await self.secured(host)
            await connection.write(self.garbage())
            await connection.close()

    async def yamux_garbage(self) -> None:
        async with self.libp2p(self.insider) as host:
            connection = await self.secured(host)
            await connection.write(line(MULTISTREAM) + line("/yamux/1.0.0"))
            await trio.sleep(0.02)
            for _ in range(20):
                kind, flags = self.random.randrange(6), self.random.randrange(16)
                stream, length = self.random.randrange(8), self.random.choice([0, 1, 50, 2**20, 2**32 - 1])
                await connection.write(
                    struct.pack(">BBHII", self.random.choice([0, 0, 9]), kind, flags, stream, length)
                )
                await connection.write(self.garbage(60))
            await connection.close()

    async def yamux_flood(self) -> None:
        async with self.libp2p(self.insider) as host:
            await self.greeted(host)
            stream = (await host.new_stream(self.target, [TProtocol(session.PROTOCOL)])).muxed_stream
            # Frames for a handler that answers each, from one who does not read the answers, regardless of any window.
            body = HEADER.pack(49_993, 1, 0) + bytes(49_993)
            for _ in range(400):
                await stream.conn._write_frame(struct.pack(">BBHII", 0, 0, 0, stream.stream_id, len(body)) + body)
            await trio.sleep(0.5)
            self.let_in += not stream.conn.is_closed

    async def many_streams(self) -> None:
        async with self.libp2p(self.stranger) as host:
            for _ in range(40):
                await host.get_network().new_stream(self.target)

    async def stream_multiselect_not_utf8(self) -> None:
        async with self.libp2p(self.insider) as host:
            stream = await host.get_network().new_stream(self.target)
            text = bytes([0xC3, 0x28]) + self.garbage(20)
            await stream.write(line(MULTISTREAM) + bytes([len(text) + 1]) + text + b"\n")
            await stream.write(self.garbage())

    async def gossip_garbage(self) -> None:
        for body in (self.garbage(), self.bad_rpc(), self.bad_rpc() + self.garbage()):
            async with self.libp2p(self.insider) as host:
                await self.greeted(host)
                stream = await host.new_stream(self.target, list(GOSSIP))
                await stream.write(encode_varint_prefixed(body))
                await trio.sleep(0.1)

    def bad_rpc(self) -> bytes:
        topic = "finode/records/1/finode"
        message = rpc_pb2.Message(
            from_id=self.random.choice([self.garbage(40), ID.from_pubkey(ed25519(self.insider).public_key).to_bytes()]),
            data=self.garbage(),
            seqno=self.garbage(9),
            topicIDs=[topic],
            signature=self.garbage(64),
            key=self.garbage(60),
        )
        rpc = rpc_pb2.RPC(publish=[message])
        rpc.subscriptions.extend([rpc_pb2.RPC.SubOpts(subscribe=True, topicid=topic)])
        rpc.control.CopyFrom(
            rpc_pb2.ControlMessage(
                graft=[rpc_pb2.ControlGraft(topicID=topic)],
                prune=[rpc_pb2.ControlPrune(topicID=topic, peers=[rpc_pb2.PeerInfo(peerID=self.garbage(9))])],
                ihave=[rpc_pb2.ControlIHave(topicID=topic, messageIDs=[b"nonsense"])],
            )
        )
        return bytes(rpc.SerializeToString())

    async def finode_garbage(self) -> None:
        for protocol in FINODE:
            async with self.libp2p(self.insider) as host:
                if protocol != control.PROTOCOL:
                    await self.greeted(host)
                stream = await host.new_stream(self.target, [TProtocol(protocol)])
                await stream.write(self.garbage())

    async def oversized_headers(self) -> None:
        for code in (Hello.code, directory.DirectorySync.code, 0):
            async with self.libp2p(self.insider) as host:
                protocol = control.PROTOCOL if code == Hello.code else directory.PROTOCOL
                if protocol != control.PROTOCOL:
                    await self.greeted(host)
                stream = await host.new_stream(self.target, [TProtocol(protocol)])
                await stream.write(HEADER.pack(0xFFFFFFF0, 1 if code == 0 else 0, code) + bytes(70_000))

    async def no_hello(self) -> None:
        async with self.libp2p(self.insider) as host:
            stream = await host.new_stream(self.target, [TProtocol(session.PROTOCOL)])
            await stream.write(HEADER.pack(1, 1, 0) + b"x")
            with trio.move_on_after(0.3):
                self.let_in += bool(await stream.read(1))

    async def stranger_streams(self) -> None:
        async with self.libp2p(self.stranger) as host:
            for protocol in (*FINODE, *GOSSIP):
                with trio.move_on_after(DIAL_S):
                    try:
                        await host.new_stream(self.target, [TProtocol(protocol)])
                    except Exception:  # noqa: S112 - whatever the refusal looks like, it is one
                        continue
                    self.let_in += 1

    async def plaintext_impersonation(self) -> None:
        victim = Ed25519PublicKey.from_bytes(public_key_of(self.victim))
        keys = KeyPair(_KeyOf(victim), victim)
        host = new_host(key_pair=ed25519(self.stranger), sec_opt={PLAINTEXT_PROTOCOL_ID: InsecureTransport(keys)})
        async with host.run([]):
            try:
                with trio.fail_after(DIAL_S):
                    await host.get_network().dial_addr(self.address, self.target)
                self.let_in += 1
            finally:
                with trio.move_on_after(2, shield=True):
                    await host.close()


class _KeyOf:
    """A private key that only knows its public one: all that a plaintext forger needs."""

    def __init__(self, public: Ed25519PublicKey) -> None:
        self._public = public

    def get_public_key(self) -> Ed25519PublicKey:
        return self._public


def _name(error: BaseException) -> str:
    error = only(error)
    return f"{type(error).__name__}: {error}"[:100]


async def main(attacker: Attacker, times: int, chosen: str) -> None:
    attacks: list[Callable[[], Awaitable[None]]] = [
        attacker.tcp_bytes,
        attacker.multiselect_not_utf8,
        attacker.noise_garbage,
        attacker.half_a_handshake,
        attacker.muxer_garbage,
        attacker.yamux_garbage,
        attacker.yamux_flood,
        attacker.many_streams,
        attacker.stream_multiselect_not_utf8,
        attacker.gossip_garbage,
        attacker.finode_garbage,
        attacker.oversized_headers,
        attacker.no_hello,
        attacker.stranger_streams,
        attacker.plaintext_impersonation,
    ]
    for attack in attacks:
        if chosen not in ("", getattr(attack, "__name__", "")):
            continue
        attacker.let_in, ended = 0, []
        for _ in range(times):
            with trio.move_on_after(3 * DIAL_S):
                try:
                    await attack()
                except Exception as error:
                    # The target may cut an attack short at any byte, through any of libp2p's exceptions.
                    ended.append(_name(error))
        name = getattr(attack, "__name__", "")
        print(json.dumps({"attack": name, "let_in": attacker.let_in, "ended": ended}), flush=True)  # noqa: T201


if __name__ == "__main__":
    logging.disable(logging.CRITICAL)
    where, who, insider, stranger, victim, seed, times, *chosen = sys.argv[1:]
    trio.run(
        main,
        Attacker(where, who, bytes.fromhex(insider), bytes.fromhex(stranger), victim, int(seed)),
        int(times),
        "".join(chosen),
    )
