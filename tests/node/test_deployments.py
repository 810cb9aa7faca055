"""A party's deployments: complete or not there, private, bounded, and gone when withdrawn."""

from __future__ import annotations

import hashlib
import os
import shutil
from pathlib import Path

import pytest

from finode.errors import RemoteProtocolError, StorageFull
from finode.identity import Identity
from finode.node.deployments import Deployment, DeploymentStore, check_offer, share_digest
from finode.smpc.plan import INPUT, Op, Plan, Step, WeightSpec
from finode.wire.message import MIB

OWNER = Identity.from_seed(b"o" * 32).peer_id
PARTIES = (Identity.from_seed(b"a" * 32).peer_id, Identity.from_seed(b"b" * 32).peer_id)
DEALER = Identity.from_seed(b"d" * 32).peer_id


def _plan(rows: int) -> Plan:
    step = Step(op=Op.LINEAR, name="l", inputs=(INPUT,), output="y", output_shape=(rows,), weight="w")
    return Plan(
        input_shape=(1024,),
        classes=rows,
        steps=(step,),
        weights=(WeightSpec(name="w", shape=(rows, 1024)),),
        output="y",
        softmax_at_end=False,
    )


def _deployment(name: bytes, rows: int = 2, version: bytes = b"v" * 32) -> tuple[Deployment, bytes]:
    plan = _plan(rows)
    share = os.urandom(8 * plan.weight_numel())
    deployment = Deployment(
        id=name * 32,
        plan=plan,
        version=version,
        owner=OWNER,
        parties=PARTIES,
        dealer=DEALER,
        share_digest=share_digest(share),
    )
    return deployment, share


def test_a_share_is_kept_privately_and_found_again_after_a_restart(tmp_path: Path) -> None:
    deployment, share = _deployment(b"1")
    DeploymentStore(tmp_path, 16).add(deployment, share)

    again = DeploymentStore(tmp_path, 16)

    assert again.get(deployment.id) == deployment
    assert again.share_path(deployment.id).read_bytes() == share
    assert again.share_path(deployment.id).stat().st_mode & 0o777 == 0o600
    assert again.share_path(deployment.id).parent.stat().st_mode & 0o777 == 0o700
    assert not again.is_open(deployment.id, b"mask")
    opened = again.opened_path(deployment.id, b"mask")
    opened.write_bytes(b"constants")
    assert not again.is_open(deployment.id, b"mask")
    opened.with_name(f"{opened.name}.sha256").write_bytes(hashlib.sha256(b"constants").digest())
    assert again.is_open(deployment.id, b"mask")
    again.verify_opened(deployment.id, b"mask")
    assert again.is_open(deployment.id, b"mask")
    assert not again.is_open(deployment.id, b"another mask")
    again.forget_opened(deployment.id, b"mask")
    assert again.is_open(deployment.id, b"mask")
    again.forget_opened(deployment.id, b"another mask")
    assert not again.is_open(deployment.id, b"mask")


def test_constants_that_another_committee_is_writing_are_left_alone_until_a_restart(tmp_path: Path) -> None:
    deployment, share = _deployment(b"1")
    store = DeploymentStore(tmp_path, 16)
    store.add(deployment, share)
    opened = store.opened_path(deployment.id, b"mask")
    writing = opened.with_name(f"{opened.name}.6c49.part")
    writing.write_bytes(b"const")

    store.forget_opened(deployment.id, b"mask")
    assert writing.exists()
    assert DeploymentStore(tmp_path, 16).holds(deployment.id)
    assert not writing.exists()


def test_a_share_that_was_altered_on_disk_is_noticed(tmp_path: Path) -> None:
    deployment, share = _deployment(b"1")
    DeploymentStore(tmp_path, 16).add(deployment, share)
    again = DeploymentStore(tmp_path, 16)
    assert again.verify(deployment.id)
    altered = DeploymentStore(tmp_path, 16)
    altered.share_path(deployment.id).write_bytes(bytes([share[0] ^ 1]) + share[1:])
    assert not altered.verify(deployment.id)


def test_constants_that_were_altered_on_disk_are_opened_again(tmp_path: Path) -> None:
    deployment, share = _deployment(b"1")
    store = DeploymentStore(tmp_path, 16)
    store.add(deployment, share)
    opened = store.opened_path(deployment.id, b"mask")
    opened.with_name(f"{opened.name}.sha256").write_bytes(hashlib.sha256(b"constants").digest())
    opened.write_bytes(b"Constants")

    store.verify_opened(deployment.id, b"mask")

    assert not store.is_open(deployment.id, b"mask")


def test_a_deployment_removed_under_a_running_party_is_not_kept_any_more(tmp_path: Path) -> None:
    deployment, share = _deployment(b"1")
    store = DeploymentStore(tmp_path, 16)
    store.add(deployment, share)
    shutil.rmtree(store.share_path(deployment.id).parent)
    with store.using((deployment.id,)):
        assert not store.holds(deployment.id)


def test_a_share_of_the_wrong_digest_names_its_owner_and_is_not_kept(tmp_path: Path) -> None:
    store = DeploymentStore(tmp_path, 16)
    deployment, share = _deployment(b"1")
    with pytest.raises(RemoteProtocolError, match="wrong digest") as caught:
        store.add(deployment, share[:-1] + bytes([share[-1] ^ 1]))
    assert caught.value.peer == OWNER
    assert not store.holds(deployment.id)


@pytest.mark.parametrize("lost", ["meta.bin", "share.bin"])
def test_what_a_crash_left_half_written_is_removed_at_the_next_start(tmp_path: Path, lost: str) -> None:
    deployment, share = _deployment(b"1")
    store = DeploymentStore(tmp_path, 16)
    store.add(deployment, share)
    (store.share_path(deployment.id).parent / lost).unlink()

    again = DeploymentStore(tmp_path, 16)

    assert not again.holds(deployment.id)
    assert not again.share_path(deployment.id).parent.exists()


def test_the_least_recently_used_goes_first_and_never_one_in_use(tmp_path: Path) -> None:
    rows = MIB // (16 * 1024)  # each takes 1 MiB: the share and what opening it gives
    store = DeploymentStore(tmp_path, 3)
    for name in (b"1", b"2", b"3"):
        store.add(*_deployment(name, rows))
    store.touch(b"1" * 32)

    with store.using((b"2" * 32,)):
        store.add(*_deployment(b"4", rows))

    assert {entry.id[:1] for entry in store.all()} == {b"1", b"2", b"4"}
    with store.using(tuple(entry.id for entry in store.all())), pytest.raises(StorageFull, match="in use"):
        store.make_room(_plan(rows))


def test_a_withdrawn_version_is_dropped_and_others_stay(tmp_path: Path) -> None:
    store = DeploymentStore(tmp_path, 16)
    store.add(*_deployment(b"1", version=b"x" * 32))
    store.add(*_deployment(b"2", version=b"y" * 32))

    assert store.withdraw(OWNER, frozenset({b"y" * 32})) == 1
    assert store.withdraw(DEALER, frozenset()) == 0
    assert {entry.id[:1] for entry in store.all()} == {b"2"}


def test_a_plan_other_than_the_terms_name_is_the_owner_s_fault() -> None:
    plan = _plan(2)
    assert check_offer(b"1" * 32, plan.encode(), plan.digest(), OWNER) == plan
    for data in (_plan(3).encode(), b"garbage"):
        with pytest.raises(RemoteProtocolError) as caught:
            check_offer(b"1" * 32, data, plan.digest(), OWNER)
        assert caught.value.peer == OWNER


def test_a_plan_that_no_gate_is_right_for_is_the_owner_s_fault() -> None:
    plan = _plan(2)
    object.__setattr__(plan, "range_bits", 3)

    with pytest.raises(RemoteProtocolError, match="range_bits") as caught:
        check_offer(b"1" * 32, plan.encode(), plan.digest(), OWNER)
    assert caught.value.peer == OWNER
