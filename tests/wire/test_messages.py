"""Every message checks itself on construction, shows no secret, and says what it means."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from finode.config import Role
from finode.errors import FinodeError
from finode.wire import committee, message, preprocessing, reconciliation, shares
from finode.wire.committee import Reveal, Vote, deployment_id
from finode.wire.control import Hello
from finode.wire.directory import Color, DeploymentRef, InputSpec, ServiceSpec
from finode.wire.message import Message
from finode.wire.session import ROUND_HEADER, JoinLane, LaneJoined
from tests.wire.conftest import (
    ACCEPT,
    AUGMENTED,
    DEALER,
    ENVELOPE,
    EXAMPLES,
    FIRST,
    ID32,
    KEY_RANGE,
    OFFER,
    OWNER,
    QUERIER,
    RECORD,
    REWARDS,
    SECOND,
    SPEC,
    TERMS,
    names,
)

OTHER_SPEC = dataclasses.replace(SPEC, name="other")
MODEL = TERMS.models[0]
BY_TYPE: dict[type[Message], Message] = {type(example): example for example in EXAMPLES}


def bad(example: Any, **changes: Any) -> Any:
    return pytest.param(example, changes, id=f"{type(example).__name__}-{'-'.join(changes)}")


BAD_TERMS: list[dict[str, Any]] = [
    {"parties": (FIRST.peer_id,)},
    {"parties": (FIRST.peer_id, FIRST.peer_id)},
    {"parties": (FIRST.peer_id, "nobody")},
    {"parties": (FIRST.peer_id, FIRST.peer_id + "\n")},
    {"parties": (FIRST.peer_id, DEALER.peer_id)},
    {"dealer": QUERIER.peer_id},
    {"dealer": "nobody"},
    {"querier": "nobody"},
    {"models": ()},
    {"models": (MODEL, MODEL)},
    {"models": tuple(dataclasses.replace(MODEL, version=bytes([index] * 32)) for index in range(65))},
    {"classes": 1},
    {"classes": 1025},
    {"input_shape": ()},
    {"input_shape": (1, 0)},
    {"input_shape": (1, 1, 1, 1, 1)},
    {"fractional_bits": 7},
    {"fractional_bits": 21},
    {"max_batch": 0},
    {"max_batch": 4097, "quota": 5000},
    {"quota": 31},
    {"quota": 1 << 53},
    {"party_price": -1},
    {"dealer_price": -1},
    {"session_timeout_s": 0},
    {"session_timeout_s": 86401},
    {"created_ms": 2000},
    {"service_digest": bytes(31)},
    {"nonce": bytes(15)},
    {"federation": ""},
    {"service": "x" * 65},
    {"engine": "\x1b[2J"},
    {"profile": "a\nb"},
    {"vote_weights": (1,)},
    {"vote": Vote.WEIGHTED},
    {"vote": Vote.WEIGHTED, "vote_weights": (1, 1)},
    {"vote": Vote.WEIGHTED, "vote_weights": (0,)},
    {"vote": Vote.WEIGHTED, "vote_weights": (-1,)},
    {"vote": Vote.WEIGHTED, "vote_weights": (65537,)},
    {"copies": 1},
    {"gamma": 1},
    {"vote": Vote.AUGMENTED},
    {"vote": Vote.AUGMENTED, "copies": 16},
    {"vote": Vote.AUGMENTED, "copies": 3, "max_batch": 3},
    {"vote": Vote.AUGMENTED, "copies": 3, "gamma": 4097},
]

BAD = [
    *(bad(TERMS, **changes) for changes in BAD_TERMS),
    bad(MODEL, version=bytes(31)),
    bad(MODEL, plan_digest=bytes(33)),
    bad(MODEL, owner="nobody"),
    bad(MODEL, price=-1),
    bad(ACCEPT, committee=b""),
    bad(ACCEPT, peer="nobody"),
    bad(ACCEPT, holds=(bytes(31),)),
    bad(ACCEPT, holds=(bytes(32),) * 65),
    bad(BY_TYPE[committee.Refuse], committee=b""),
    bad(BY_TYPE[committee.Refuse], subject="x" * 257),
    bad(BY_TYPE[committee.Refuse], detail="x" * 1025),
    bad(BY_TYPE[committee.Seal], committee=b""),
    bad(BY_TYPE[committee.Sealed], committee=b""),
    bad(BY_TYPE[committee.Dissolve], committee=b""),
    bad(BY_TYPE[committee.Dissolve], reason="x" * 1025),
    bad(BY_TYPE[Hello], versions=()),
    bad(BY_TYPE[Hello], versions=(1,) * 17),
    bad(BY_TYPE[Hello], agent="x" * 65),
    bad(BY_TYPE[Hello], federation="x" * 65),
    bad(SPEC, name=""),
    bad(SPEC, name="two words"),
    bad(SPEC, classes=("one",)),
    bad(SPEC, classes=("one", "one")),
    bad(SPEC, classes=("one", "")),
    bad(SPEC, classes=("one", "\x1b[31mtwo")),
    bad(SPEC.input, shape=()),
    bad(SPEC.input, shape=(3, 0, 8)),
    bad(SPEC.input, shape=(3, 1 << 13, 1 << 13)),
    bad(SPEC.input, color=Color.GRAY),
    bad(SPEC.input, shape=(8, 8)),
    bad(SPEC.input, scale=0.0),
    bad(SPEC.input, scale=float("inf")),
    bad(SPEC.input, mean=(1.0,)),
    bad(SPEC.input, mean=(float("nan"),) * 3),
    bad(SPEC.input, deviation=(1.0, 1.0, 0.0)),
    bad(OFFER, version=b""),
    bad(OFFER, plan_digest=b""),
    bad(OFFER, price=-1),
    bad(RECORD.deployments[0], model=b""),
    bad(RECORD.deployments[0], parties=(FIRST.peer_id,)),
    bad(RECORD.deployments[0], dealer="nobody"),
    bad(RECORD, peer="nobody"),
    bad(RECORD, organization="x" * 65),
    bad(RECORD, organization="acme\x1b]0;"),
    bad(RECORD, federation=""),
    bad(RECORD, roles=(Role.OWNER, Role.OWNER)),
    bad(RECORD, addresses=("x",) * 17),
    bad(RECORD, addresses=("x" * 257,)),
    bad(RECORD, versions=(1,) * 17),
    bad(RECORD, services=(SPEC, SPEC)),
    bad(RECORD, services=(OTHER_SPEC,)),
    bad(RECORD, models=(OFFER,) * 65),
    bad(RECORD, deployments=RECORD.deployments * 65),
    bad(RECORD, capacity=-1),
    bad(RECORD, party_price=-1),
    bad(RECORD, dealer_price=1 << 53),
    bad(RECORD, sequence=-1),
    bad(RECORD, expires_ms=1000),
    bad(BY_TYPE[shares.OfferDeployment], deployment=b""),
    bad(BY_TYPE[shares.OfferDeployment], version=b""),
    bad(BY_TYPE[shares.OfferDeployment], share_digest=b""),
    bad(BY_TYPE[shares.OfferDeployment], share_bytes=-1),
    bad(BY_TYPE[shares.Prepare], run=b""),
    bad(BY_TYPE[shares.Prepared], seconds=float("nan")),
    bad(BY_TYPE[shares.StartSession], session=b""),
    bad(BY_TYPE[shares.StartSession], batch=0),
    bad(BY_TYPE[shares.StartSession], batch=4097),
    bad(BY_TYPE[shares.StartSession], input_bytes=-1),
    bad(BY_TYPE[shares.SessionProgress], done=-1),
    bad(BY_TYPE[shares.SessionResult], output_bytes=-1),
    bad(shares.Meter(), rounds=-1),
    bad(shares.Meter(), online_s=float("inf")),
    bad(shares.Meter(), offline_s=-0.5),
    bad(shares.Verdict(culprit="", round=-1, fault=shares.Fault.TIMEOUT), round=-2),
    bad(shares.Verdict(culprit="", round=-1, fault=shares.Fault.TIMEOUT), culprit="x" * 65),
    bad(shares.Verdict(culprit="", round=-1, fault=shares.Fault.TIMEOUT), detail="x" * 1025),
    bad(BY_TYPE[preprocessing.Masks], seeds=(bytes(31),)),
    bad(BY_TYPE[shares.Prepared], max_batch=-1),
    bad(BY_TYPE[shares.StartSession], serial=b""),
    bad(BY_TYPE[preprocessing.Deal], batch=0),
    bad(BY_TYPE[preprocessing.Deal], serial=b""),
    bad(BY_TYPE[preprocessing.Dealt], seconds=-1.0),
    bad(BY_TYPE[preprocessing.Dealt], batch=0),
    bad(BY_TYPE[preprocessing.BundleStored], serial=b""),
    bad(BY_TYPE[preprocessing.Spent], serial=b""),
    bad(BY_TYPE[preprocessing.Dealing], batch=0),
    bad(BY_TYPE[preprocessing.OfferBundle], serial=b""),
    bad(BY_TYPE[preprocessing.OfferBundle], seed=b""),
    bad(BY_TYPE[preprocessing.OfferBundle], correction_bytes=-1),
    bad(BY_TYPE[JoinLane], key=b""),
    bad(BY_TYPE[LaneJoined], committee=b""),
    bad(KEY_RANGE, start=bytes(42)),
    bad(KEY_RANGE, until=bytes(42)),
    bad(KEY_RANGE, start=bytes(9)),
    bad(KEY_RANGE, count=-1),
    bad(KEY_RANGE, count=2),
    bad(KEY_RANGE, fingerprint=bytes(15)),
    bad(KEY_RANGE, fingerprint=bytes(16)),
    bad(KEY_RANGE, hashes=(b"",)),
    bad(KEY_RANGE, count=4097, hashes=(ID32,) * 4097),
    bad(ENVELOPE, data=b""),
    bad(ENVELOPE, data=bytes(5 << 20)),
    bad(BY_TYPE[reconciliation.Compare], ranges=()),
    bad(BY_TYPE[reconciliation.Compare], ranges=(KEY_RANGE, KEY_RANGE)),
    bad(
        BY_TYPE[reconciliation.Compare],
        ranges=(
            dataclasses.replace(KEY_RANGE, count=4096, hashes=(ID32,) * 4096),
            dataclasses.replace(KEY_RANGE, start=bytes(9), until=b""),
        ),
    ),
    bad(BY_TYPE[reconciliation.Compared], ranges=(KEY_RANGE, KEY_RANGE)),
    bad(BY_TYPE[reconciliation.Compared], ranges=(KEY_RANGE,) * 1025),
    bad(BY_TYPE[reconciliation.Compared], have=(ID32,) * 4097),
    bad(BY_TYPE[reconciliation.Compared], want=(b"",)),
    bad(BY_TYPE[reconciliation.Compared], until=bytes(42)),
    bad(BY_TYPE[reconciliation.FetchRecords], hashes=()),
    bad(BY_TYPE[reconciliation.FetchRecords], hashes=(ID32,) * 4097),
    bad(BY_TYPE[reconciliation.FetchRecords], hashes=(b"",)),
    bad(BY_TYPE[reconciliation.LedgerRecords], records=(ENVELOPE,) * 4097),
    bad(BY_TYPE[reconciliation.LedgerRecords], done=-1),
    bad(BY_TYPE[reconciliation.RecordsTaken], new=-1),
]


@pytest.mark.parametrize(("example", "changes"), BAD)
def test_a_message_checks_itself(example: Any, changes: dict[str, Any]) -> None:
    with pytest.raises(FinodeError):
        dataclasses.replace(example, **changes)


@pytest.mark.parametrize("example", EXAMPLES, ids=names(EXAMPLES))
def test_a_message_cannot_be_changed(example: Message) -> None:
    name = dataclasses.fields(example)[0].name

    with pytest.raises(dataclasses.FrozenInstanceError):
        setattr(example, name, getattr(example, name))
    assert not hasattr(example, "__dict__")


@pytest.mark.parametrize(
    "secret",
    [
        preprocessing.Masks(committee=bytes(32), seeds=(ID32,)),
        preprocessing.OfferBundle(
            committee=bytes(32), serial=bytes(16), batch=1, ahead=True, seed=ID32, correction_bytes=0
        ),
        JoinLane(committee=bytes(32), key=ID32, contribution=ID32),
        LaneJoined(committee=bytes(32), key=ID32, contribution=ID32),
    ],
)
def test_a_secret_is_not_shown(secret: Message) -> None:
    for text in (repr(secret), str(secret)):
        assert repr(ID32)[2:-1] not in text
        assert ID32.hex() not in text


def test_what_is_revealed_is_ordered() -> None:
    assert Reveal.LABEL.at_most(Reveal.TOP1)
    assert Reveal.TOP1.at_most(Reveal.PROBABILITIES)
    assert Reveal.TOP1.at_most(Reveal.TOP1)
    assert not Reveal.PROBABILITIES.at_most(Reveal.TOP1)
    assert not Reveal.TOP1.at_most(Reveal.LABEL)


def test_the_seats_of_terms() -> None:
    second = dataclasses.replace(MODEL, version=bytes([1] * 32))
    third = dataclasses.replace(MODEL, version=bytes([2] * 32), owner=FIRST.peer_id)
    terms = dataclasses.replace(TERMS, models=(MODEL, second, third))

    assert terms.owners() == (OWNER.peer_id, FIRST.peer_id)
    assert terms.seats() == (
        (FIRST.peer_id, Role.PARTY, 0),
        (SECOND.peer_id, Role.PARTY, 1),
        (DEALER.peer_id, Role.DEALER, -1),
        (OWNER.peer_id, Role.OWNER, -1),
        (FIRST.peer_id, Role.OWNER, -1),
    )
    assert terms.members() == (FIRST.peer_id, SECOND.peer_id, DEALER.peer_id, OWNER.peer_id)


def test_the_committees_id_covers_every_field_of_the_terms() -> None:
    changes: dict[str, Any] = {
        "models": (dataclasses.replace(MODEL, price=8),),
        "parties": TERMS.parties[::-1],
        "dealer": OWNER.peer_id,
        "querier": OWNER.peer_id,
        "input_shape": (3, 8, 9),
        "vote": committee.Vote.HARD,
        "reveal": committee.Reveal.LABEL,
        "service_digest": bytes(32),
        "nonce": bytes([1] * 16),
        "fractional_bits": 15,
        "rewards": dataclasses.replace(REWARDS, price=1001),
        "vote_weights": (4,),
        "copies": 4,
        "gamma": -255,
    }
    weighted = dataclasses.replace(TERMS, vote=Vote.WEIGHTED, vote_weights=(3,))
    for field in dataclasses.fields(TERMS):
        value = getattr(TERMS, field.name)
        change = changes.get(field.name, value + 1 if isinstance(value, int) else f"{value}x")
        # What belongs to one vote alone changes under that vote.
        base = {"vote_weights": weighted, "copies": AUGMENTED, "gamma": AUGMENTED}.get(field.name, TERMS)
        other = dataclasses.replace(base, **{field.name: change})
        assert other.committee_id() != base.committee_id(), field.name
    assert dataclasses.replace(TERMS).committee_id() == TERMS.committee_id()


def test_a_deployment_is_of_a_model_its_ordered_parties_and_its_dealer() -> None:
    parties = TERMS.parties
    first = deployment_id(MODEL, parties, TERMS.dealer, TERMS.engine, TERMS.fractional_bits)

    def of(model: committee.ModelTerm) -> bytes:
        return deployment_id(model, parties, TERMS.dealer, TERMS.engine, TERMS.fractional_bits)

    assert TERMS.deployment_id(MODEL) == first
    others = [
        deployment_id(MODEL, parties[::-1], TERMS.dealer, TERMS.engine, TERMS.fractional_bits),
        deployment_id(MODEL, parties, OWNER.peer_id, TERMS.engine, TERMS.fractional_bits),
        of(dataclasses.replace(MODEL, version=bytes([1] * 32))),
        of(dataclasses.replace(MODEL, plan_digest=bytes([1] * 32))),
        # Another owner must not get at the mask of a version that it has only seen.
        of(dataclasses.replace(MODEL, owner=TERMS.querier)),
        # One mask for two encodings of the same weights would show the weights.
        deployment_id(MODEL, parties, TERMS.dealer, TERMS.engine, TERMS.fractional_bits + 1),
        deployment_id(MODEL, parties, TERMS.dealer, "another", TERMS.fractional_bits),
    ]
    assert len({first, *others}) == 1 + len(others)


def test_models_of_a_service_agree_on_everything_in_its_spec() -> None:
    changes: list[dict[str, Any]] = [
        {"name": "other"},
        {"classes": ("ill", "healthy")},
        {"input": dataclasses.replace(SPEC.input, color=Color.BGR)},
        {"input": dataclasses.replace(SPEC.input, scale=1.0)},
    ]

    digests = {SPEC.digest(), *(dataclasses.replace(SPEC, **change).digest() for change in changes)}

    assert len(digests) == len(changes) + 1
    assert ServiceSpec(name=SPEC.name, input=SPEC.input, classes=SPEC.classes).digest() == SPEC.digest()
    assert RECORD.service(SPEC.name) == SPEC
    assert RECORD.service("other") is None


def test_images_have_the_channels_of_their_colors() -> None:
    assert InputSpec(shape=(1, 8, 8), color=Color.GRAY).shape == (1, 8, 8)
    assert InputSpec(shape=(5,)).color is Color.NONE
    assert DeploymentRef(model=bytes(32), parties=TERMS.parties, dealer=TERMS.dealer).dealer == DEALER.peer_id


def test_headers_have_their_stated_sizes() -> None:
    assert message.HEADER.size == 7
    assert ROUND_HEADER.size == 20


def test_a_batch_of_an_augmented_vote_is_inputs_with_all_their_copies() -> None:
    assert [batch for batch in range(34) if AUGMENTED.foresees(batch)] == [4, 8, 12, 16, 20, 24, 28, 32]
    assert [batch for batch in range(-1, 40) if TERMS.foresees(batch)] == list(range(1, 33))
