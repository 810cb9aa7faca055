"""A party's deployments: its share of each model's weights, and the opened masked weights, as files.

    HOME/deployments/<id>/meta.bin     the plan, the model's version, its owner, the parties and the dealer
    HOME/deployments/<id>/share.bin    the party's share of the weights, little-endian int64
    HOME/deployments/<id>/opened-<mask>.bin   the engine's constants: what opening W - A gave, under that mask A

Files have mode 0600. The space is bounded: the least recently used deployment goes first, never one in use. A share
counts only once it is complete and its digest was checked; a crash leaves a directory without meta.bin, which the
next start removes.
"""

from __future__ import annotations

import hashlib
import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import trio

from finode.errors import BadSignature, FinodeError, RemoteProtocolError, StorageFull
from finode.identity import PeerId
from finode.node.files import write_private
from finode.smpc.plan import Plan, decode_plan
from finode.wire import canonical
from finode.wire.directory import DeploymentRef
from finode.wire.message import MIB

MAX_RECORDED = 64
SPARE_BYTES = 16 * MIB
"""What a deployment must leave free on the disk, for the databases and the log."""
MAX_VALUES = 1 << 27
"""Values of one input through a whole plan; ResNet-50 on 3x224x224 has under 2^25."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Deployment:
    """What the party knows of one deployment; the shares themselves stay in their files."""

    id: bytes
    plan: Plan
    version: bytes
    owner: PeerId
    parties: tuple[PeerId, ...]
    dealer: PeerId
    share_digest: bytes

    def ref(self) -> DeploymentRef:
        return DeploymentRef(model=self.version, parties=self.parties, dealer=self.dealer)


def share_digest(data: bytes | bytearray | memoryview) -> bytes:
    """Return the digest by which owner and party agree that a share arrived whole."""
    return hashlib.sha256(b"finode/share\0" + data).digest()


class DeploymentStore:
    """The deployments of one home. Synchronous; large writes belong in a thread."""

    def __init__(self, home: Path, space_mb: int) -> None:
        self._root = home / "deployments"
        self._space_bytes = space_mb * MIB
        self._kept: dict[bytes, Deployment] = {}
        self._in_use: dict[bytes, int] = {}
        self._verified: set[bytes] = set()
        self._opened_verified: set[Path] = set()
        self._changed = trio.Event()
        self._root.mkdir(mode=0o700, parents=True, exist_ok=True)
        for directory in sorted(self._root.iterdir(), key=lambda path: path.stat().st_mtime):
            self._recover(directory)

    def _recover(self, directory: Path) -> None:
        try:
            deployment = canonical.decode((directory / "meta.bin").read_bytes(), Deployment)
            whole = (directory / "share.bin").stat().st_size == 8 * _share_elements(deployment.plan)
        except (OSError, FinodeError):
            whole = False
        if whole:
            self._kept[deployment.id] = deployment
            for unfinished in directory.glob("*.part"):
                unfinished.unlink(missing_ok=True)
        else:
            shutil.rmtree(directory, ignore_errors=True)

    def get(self, deployment: bytes) -> Deployment | None:
        return self._kept.get(deployment)

    def holds(self, deployment: bytes) -> bool:
        return deployment in self._kept

    def all(self) -> tuple[Deployment, ...]:
        """Return every deployment, the least recently used first."""
        return tuple(self._kept.values())

    def refs(self) -> tuple[DeploymentRef, ...]:
        """Return the latest used deployments, as the directory record shows them."""
        return tuple(deployment.ref() for deployment in list(self._kept.values())[-MAX_RECORDED:])

    def share_path(self, deployment: bytes) -> Path:
        return self._root / deployment.hex() / "share.bin"

    def opened_path(self, deployment: bytes, mask_seed: bytes) -> Path:
        """Return where the constants are that go with the mask of which this party has `mask_seed`.

        A dealer that lost its secret gives other masks: constants opened under the old ones must not be used.
        """
        mask = hashlib.sha256(b"finode/mask\0" + mask_seed).hexdigest()[:16]
        return self._root / deployment.hex() / f"opened-{mask}.bin"

    def is_open(self, deployment: bytes, mask_seed: bytes) -> bool:
        """Whether the masked weights were opened already under this mask."""
        path = self.opened_path(deployment, mask_seed)
        return path.exists() and _digest_path(path).exists()

    def verify_opened(self, deployment: bytes, mask_seed: bytes) -> None:
        """Remove constants that are not what was written, so that they are opened again. May run in a thread."""
        path = self.opened_path(deployment, mask_seed)
        if path in self._opened_verified or not self.is_open(deployment, mask_seed):
            return
        try:
            whole = hashlib.sha256(path.read_bytes()).digest() == _digest_path(path).read_bytes()
        except OSError:
            whole = False
        if whole:
            self._opened_verified.add(path)
        else:
            path.unlink(missing_ok=True)

    def forget_opened(self, deployment: bytes, mask_seed: bytes) -> None:
        """Remove constants of other masks than this one: they are of no use any more."""
        current = self.opened_path(deployment, mask_seed)
        for path in (self._root / deployment.hex()).glob("opened-*"):
            # Another committee on the same deployment may be writing those of this mask, under a name that begins so.
            if not path.name.startswith(current.name):
                path.unlink(missing_ok=True)

    def make_room(self, plan: Plan) -> None:
        """Drop the least recently used deployments until one of `plan` fits.

        Raises `StorageFull` when what is in use leaves no room, or the disk itself is full.
        """
        needed = 16 * _share_elements(plan)
        while self.used_bytes() + needed > self._space_bytes:
            idle = next((key for key in self._kept if not self._in_use.get(key)), None)
            if idle is None:
                raise StorageFull(
                    f"{needed} bytes for a deployment do not fit beside those in use",
                    hint="raise [party] deployment_space_mb",
                )
            self.drop(idle)
        if shutil.disk_usage(self._root).free < needed + SPARE_BYTES:
            raise StorageFull(f"the disk of {self._root} is full: a deployment needs {needed} bytes")

    def is_full(self) -> bool:
        """Whether the disk has no room for even a small deployment."""
        return shutil.disk_usage(self._root).free < SPARE_BYTES

    def used_bytes(self) -> int:
        """Return the bytes that shares and constants take; an opened weight has the size of its share."""
        return sum(16 * _share_elements(deployment.plan) for deployment in self._kept.values())

    def add(self, deployment: Deployment, share: bytes | bytearray) -> None:
        """Keep a share that arrived whole: `write`, then `enter`."""
        self.drop(deployment.id)
        self.make_room(deployment.plan)
        self.write(deployment, share)
        self.enter(deployment)

    def write(self, deployment: Deployment, share: bytes | bytearray) -> None:
        """Write a share's files; may run in a thread of its own, for it leaves the bookkeeping alone.

        Raises `RemoteProtocolError` naming the owner when the digest differs, `StorageFull` when it does not fit.
        """
        if share_digest(share) != deployment.share_digest:
            raise RemoteProtocolError(
                f"the share of model {deployment.version.hex()[:12]} from {deployment.owner} has the wrong digest",
                peer=deployment.owner,
            )
        directory = self._root / deployment.id.hex()
        try:
            directory.mkdir(mode=0o700, exist_ok=True)
            write_private(self.share_path(deployment.id), share)
            write_private(directory / "meta.bin", canonical.encode(deployment))
        except OSError as error:
            shutil.rmtree(directory, ignore_errors=True)
            raise StorageFull(f"cannot keep a deployment in {directory}: {error.strerror}") from None

    def enter(self, deployment: Deployment) -> None:
        """Count a deployment whose files are written as kept, and wake those who wait for it."""
        self._kept[deployment.id] = deployment
        self._verified.add(deployment.id)
        changed, self._changed = self._changed, trio.Event()
        changed.set()

    def in_use(self, deployment: bytes) -> bool:
        return bool(self._in_use.get(deployment))

    def verify(self, deployment: bytes) -> bool:
        """Whether the share on disk still has its digest; read once after a start. May run in a thread of its own."""
        if deployment not in self._verified:
            kept = self._kept.get(deployment)
            try:
                whole = kept is not None and share_digest(self.share_path(deployment).read_bytes()) == kept.share_digest
            except OSError:
                whole = False
            if not whole:
                return False
            self._verified.add(deployment)
        return True

    def touch(self, deployment: bytes) -> None:
        """Mark a deployment as the most recently used."""
        if deployment in self._kept:
            self._kept[deployment] = self._kept.pop(deployment)
            try:
                os.utime(self._root / deployment.hex())
            except FileNotFoundError:  # somebody removed it under us: it is not kept any more
                self.drop(deployment)

    @contextmanager
    def using(self, deployments: tuple[bytes, ...]) -> Iterator[None]:
        """Keep deployments from being dropped to make room."""
        for deployment in deployments:
            self._in_use[deployment] = self._in_use.get(deployment, 0) + 1
            self.touch(deployment)
        try:
            yield
        finally:
            for deployment in deployments:
                self._in_use[deployment] -= 1

    def drop(self, deployment: bytes) -> None:
        """Forget a deployment and remove its files."""
        self._kept.pop(deployment, None)
        self._verified.discard(deployment)
        self._opened_verified = {path for path in self._opened_verified if path.parent.name != deployment.hex()}
        shutil.rmtree(self._root / deployment.hex(), ignore_errors=True)

    def withdraw(self, owner: PeerId, offered: frozenset[bytes]) -> int:
        """Drop `owner`'s deployments of versions that it no longer offers; return how many these were."""
        gone = [key for key, kept in self._kept.items() if kept.owner == owner and kept.version not in offered]
        for key in gone:
            self.drop(key)
        return len(gone)

    async def wait_for(self, deployment: bytes) -> None:
        """Wait until a deployment is kept."""
        while deployment not in self._kept:
            await self._changed.wait()


def _digest_path(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _share_elements(plan: Plan) -> int:
    return plan.weight_numel()


def check_offer(deployment: bytes, plan_bytes: bytes, plan_digest: bytes, owner: PeerId) -> Plan:
    """Return the plan of an offer; raise `RemoteProtocolError` when it is not the one that the terms name."""
    try:
        plan = decode_plan(plan_bytes)
    except (BadSignature, FinodeError) as error:
        raise RemoteProtocolError(f"{owner} offered a plan that is not valid: {error.message}", peer=owner) from None
    if sum(math.prod(shape) for shape in plan.shapes().values()) > MAX_VALUES:
        raise RemoteProtocolError(f"{owner} offered a plan of over {MAX_VALUES} values per input", peer=owner)
    if plan.digest() != plan_digest:
        raise RemoteProtocolError(
            f"{owner} offered another plan for deployment {deployment.hex()[:12]} than the terms name", peer=owner
        )
    return plan
