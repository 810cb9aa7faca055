"""What the API shows of the ledger: pure functions from verified records and accounts to views.

Peers of one organization are one line: names are compared as rosters compare them (`organization_key`), and a peer that
no roster names stands for itself, under its peer id.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from finode.committee.organizations import organization_key
from finode.errors import InputError, UnknownRecord
from finode.identity import PeerId
from finode.ledger.accounts import Accounts, Balance
from finode.ledger.records import VerifiedReceipt
from finode.node.interface import (
    BalanceView,
    ExplainedView,
    ExplanationView,
    ModelUseView,
    ReceiptView,
    RewardsView,
    WorkView,
)
from finode.wire.receipts import ModelUse
from finode.wire.shares import Verdict

OrganizationOf = Callable[[PeerId], str]
"""What this node calls the organization of a peer; "" if it does not know it."""
LEAST_TAIL = 6
"""Characters of a peer id's end that may stand for it: tables show the last eight."""


@dataclass(frozen=True, slots=True)
class Organization:
    """Peers that count as one, under the name that is shown."""

    name: str
    peers: tuple[PeerId, ...]


def receipt_view(
    verified: VerifiedReceipt,
    *,
    organization_of: OrganizationOf,
    is_deployed: Callable[[ModelUse], bool],
    settled: bool,
) -> ReceiptView:
    """Return what the API shows of a receipt. `is_deployed`: whether the owner's signature of a deployment is here."""
    receipt = verified.receipt
    return ReceiptView(
        id=verified.id.hex(),
        session=receipt.session.hex(),
        committee=receipt.committee.hex(),
        sealed=receipt.sealed.hex(),
        service=receipt.service,
        querier=receipt.querier,
        organization=organization_of(receipt.querier),
        parties=receipt.parties,
        dealer=receipt.dealer,
        models=tuple(
            ModelUseView(
                version=model.version.hex(),
                owner=model.owner,
                organization=organization_of(model.owner),
                deployment=model.deployment.hex(),
                signed=is_deployed(model),
            )
            for model in receipt.models
        ),
        engine=receipt.engine,
        vote=receipt.vote.value,
        reveal=receipt.reveal.value,
        count=receipt.count,
        epoch=receipt.epoch,
        started=receipt.started_ms / 1000,
        ended=receipt.ended_ms / 1000,
        outcome=receipt.outcome.value,
        verdict=verdict_text(receipt.verdict),
        work=tuple(
            WorkView(
                peer=work.peer,
                organization=organization_of(work.peer),
                role="dealer" if work.peer == receipt.dealer else "party",
                rounds=work.rounds,
                bytes_sent=work.bytes_sent,
                bundle_bytes=work.bundle_bytes,
                seconds=work.milliseconds / 1000,
            )
            for work in receipt.work
        ),
        transcript=receipt.transcript.hex(),
        price=receipt.price,
        scheme=receipt.rewards.scheme.value,
        signers=tuple(peer for peer in receipt.signers() if peer in verified.signers),
        withheld=verified.withheld,
        settled=settled,
    )


def verdict_text(verdict: Verdict | None) -> str:
    """Return a verdict in words; what a peer wrote into it cannot move anybody's cursor."""
    if verdict is None:
        return ""
    where = f"at round {verdict.round}" if verdict.round >= 0 else "before rounds"
    text = f"{verdict.culprit or 'nobody'}: {verdict.fault.value} {where}"
    if verdict.detail:
        text += f": {verdict.detail}"
    return "".join(character if character.isprintable() else " " for character in text)


def rewards_view(
    accounts: Accounts, epoch: int | None, *, statements: int, organization_of: OrganizationOf
) -> RewardsView:
    """Return the balances of all organizations, the highest first. `statements` are those of the epochs asked for."""
    totals, balances = accounts.totals(epoch), accounts.balances(epoch)
    lines = [_line(one, balances) for one in organizations(balances, organization_of)]
    return RewardsView(
        epoch=epoch,
        epochs=accounts.epochs(),
        receipts=totals.receipts,
        statements=statements,
        paid_in=totals.paid_in,
        paid_out=totals.paid_out,
        pending=totals.pending,
        schemes={scheme.value: amount for scheme, amount in totals.schemes.items()},
        balances=tuple(sorted(lines, key=lambda line: (-line.balance, line.organization))),
        digest=accounts.digest().hex(),
    )


def explanation_view(
    accounts: Accounts, organization: str, epoch: int | None, *, organization_of: OrganizationOf
) -> ExplanationView:
    """Return every amount of an organization, by epoch and receipt, and their sum.

    `organization` is a name, a peer id (then of this peer alone), or the end of one. Raises `UnknownRecord` for one
    that neither paid nor earned, and `InputError` for an end of several.
    """
    balances = accounts.balances(epoch)
    found = _find(organization, balances, organization_of)
    if not found.peers:
        known = ", ".join(one.name for one in organizations(balances, organization_of)) or "nobody"
        raise UnknownRecord(
            f"{organization!r} neither paid nor earned anything" + (f" in epoch {epoch}" if epoch is not None else ""),
            hint=f"those who did: {known}",
        )
    amounts = [amount for peer in found.peers for amount in accounts.explain(peer, epoch)]
    amounts.sort(key=lambda one: (one.epoch, one.receipt, one.role))
    return ExplanationView(
        organization=found.name,
        balance=sum(balances[peer].balance for peer in found.peers),
        amounts=tuple(
            ExplainedView(
                receipt=one.receipt.hex(),
                session=one.session.hex(),
                epoch=one.epoch,
                role=one.role.label,
                amount=one.amount,
                scheme=one.scheme.value,
                why=one.why,
            )
            for one in amounts
        ),
    )


def organizations(peers: Iterable[PeerId], organization_of: OrganizationOf) -> tuple[Organization, ...]:
    """Return the organizations of these peers, by name; of the ways to write a name the first one is shown."""
    grouped: dict[str, list[PeerId]] = {}
    for peer in sorted(peers):
        grouped.setdefault(organization_key(organization_of(peer)) or peer, []).append(peer)
    named = (
        Organization(min(organization_of(peer).strip() for peer in members) or members[0], tuple(members))
        for members in grouped.values()
    )
    return tuple(sorted(named, key=lambda one: one.name))


def _find(asked: str, balances: Mapping[PeerId, Balance], organization_of: OrganizationOf) -> Organization:
    """Return the organization, or the one peer, that is asked for; one without peers if there is none."""
    key = organization_key(asked)
    for one in organizations(balances, organization_of):
        if key and key == organization_key(one.name):
            return one
    tail = asked.strip().lstrip("…")
    ending = tuple(peer for peer in balances if peer.endswith(tail)) if len(tail) >= LEAST_TAIL else ()
    if len(ending) > 1:
        raise InputError(f"{len(ending)} peers end with {tail!r}", hint="give more of the peer id")
    return Organization(ending[0] if ending else asked, ending)


def _line(organization: Organization, balances: Mapping[PeerId, Balance]) -> BalanceView:
    ours = [balances[peer] for peer in organization.peers]
    return BalanceView(
        organization=organization.name,
        peers=organization.peers,
        balance=sum(one.balance for one in ours),
        paid=sum(one.paid for one in ours),
        as_owner=sum(one.as_owner for one in ours),
        as_party=sum(one.as_party for one in ours),
        as_dealer=sum(one.as_dealer for one in ours),
    )
