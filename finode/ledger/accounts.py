"""Balances of all peers, from nothing but the set of receipts and epoch statements.

Whatever order they come in, and however often, the balances are those of a computation from scratch. What follows from
the set, and when it is worked out:

    one bill per order      of several receipts with the same querier, committee and session the one that more parties
                            (and the dealer) signed counts, then the one with the lower id: an order is paid once
    statements of a group   same models, epoch, vote, classes and kind. One counts if receipts of its own parties,
                            dealer and models stand behind more than half of its inputs, and no other that counts,
                            by the same members and with a lower id, has one of its sessions. All that count are added
                            up for the scheme
    the owners' part        by the group of the statement with the lowest id that covers the session; where none does,
                            it is pending, and paid equally once the latest receipt is `PATIENCE` epochs later

`put_*` only note what changed; a question settles it first. Then a changed bill's old amounts are taken back and the
new ones added, so that the work follows the change and not the ledger.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator
from dataclasses import dataclass, replace

from finode.identity import PeerId
from finode.ledger.postings import AccountRole, Bill, Setting, bill_of, equal_shares, setting_of, settle
from finode.ledger.reasons import reason
from finode.ledger.records import VerifiedReceipt, VerifiedStatement
from finode.ledger.schemes import rule_of
from finode.ledger.schemes.sums import Sums
from finode.wire import canonical
from finode.wire.committee import Scheme, Vote
from finode.wire.receipts import EpochStatement, ReceiptId, StatementId, StatementKind

PATIENCE = 30
"""Epochs that the owners' part waits for a statement: a month of days, longer than any node should be away."""


@dataclass(frozen=True, slots=True)
class Balance:
    """What one peer paid and earned, in micro-credits; what waits for a statement is paid and not yet earned."""

    paid: int
    as_owner: int
    as_party: int
    as_dealer: int

    @property
    def balance(self) -> int:
        """What it earned less what it paid."""
        return self.as_owner + self.as_party + self.as_dealer - self.paid


@dataclass(frozen=True, slots=True)
class Totals:
    """Of all peers: `paid_in` is `paid_out` and `pending`. `schemes`: what owners were paid, by the terms' scheme."""

    receipts: int
    paid_in: int
    paid_out: int
    pending: int
    schemes: dict[Scheme, int]


@dataclass(frozen=True, slots=True)
class Amount:
    """One amount of one peer (negative: paid), the receipt that it comes from, and why."""

    receipt: ReceiptId
    session: bytes
    epoch: int
    role: AccountRole
    amount: int
    scheme: Scheme
    why: str


@dataclass(frozen=True, slots=True)
class _Group:
    """Statements that add up."""

    models: tuple[tuple[bytes, PeerId], ...]
    epoch: int
    vote: Vote
    classes: int
    kind: StatementKind

    @classmethod
    def of(cls, one: EpochStatement) -> _Group:
        return cls(tuple(sorted((m.version, m.owner) for m in one.models)), one.epoch, one.vote, one.classes, one.kind)


Shares = tuple[int, ...]


class Accounts:
    """The balances that follow from what was put in. Not for several threads at once."""

    def __init__(self) -> None:
        self._settings: dict[bytes, Setting] = {}
        self._bills: dict[bytes, list[Bill]] = {}
        self._session_of: dict[ReceiptId, bytes] = {}
        self._statements: dict[StatementId, EpochStatement] = {}
        self._groups: dict[_Group, list[StatementId]] = {}
        self._covering: dict[bytes, list[StatementId]] = {}
        self._counting: dict[_Group, tuple[StatementId, ...]] = {}
        self._shares: dict[tuple[_Group, Scheme], Shares] = {}
        self._paid: dict[bytes, list[tuple[Bill, Shares | None]]] = {}
        self._rows: dict[PeerId, list[int]] = {}
        self._pending = 0
        self._by_scheme: dict[Scheme, int] = {}
        self._waiting: list[tuple[int, bytes]] = []
        self._latest_ms = 0
        self._dirty: set[bytes] = set()
        self._stale: set[_Group] = set()

    def put_receipt(self, verified: VerifiedReceipt) -> None:
        """Take a receipt, or a version of one with other signatures: what either has counts."""
        setting = setting_of(verified)
        # The committee's id is the hash of its terms; that the receipt says what they say is its signers' word alone.
        if self._settings.setdefault(verified.receipt.committee, setting) == setting:
            setting = self._settings[verified.receipt.committee]
        bill = bill_of(verified, setting)
        bills = self._bills.setdefault(bill.session, [])
        if bill.id in self._session_of:
            known = next(one for one in bills if one.id == bill.id)
            bills.remove(known)
            bill = replace(bill, signers=bill.signers | known.signers)
        bills.append(bill)
        self._session_of[bill.id] = bill.session
        self._latest_ms = max(self._latest_ms, bill.ended_ms)
        self._dirty.add(bill.session)

    def put_statement(self, verified: VerifiedStatement) -> None:
        """Take an epoch statement; one that is here already changes nothing."""
        if verified.id in self._statements:
            return
        statement = verified.statement
        group = _Group.of(statement)
        self._statements[verified.id] = statement
        self._groups.setdefault(group, []).append(verified.id)
        for session in statement.sessions:
            self._covering.setdefault(session, []).append(verified.id)
        self._stale.add(group)

    def balance(self, peer: PeerId) -> int:
        """Return what a peer earned less what it paid; 0 for one that no receipt names."""
        self._settle()
        return sum(self._rows.get(peer, ()))

    def balances(self, epoch: int | None = None) -> dict[PeerId, Balance]:
        """Return the balances of all peers that paid or earned, of all epochs or of the sessions of one."""
        self._settle()
        rows = self._rows
        if epoch is not None:
            rows = {}
            for bill, shares in self._settled(epoch):
                for peer, role, amount in settle(bill, shares).postings:
                    rows.setdefault(peer, [0, 0, 0, 0])[role] += amount
        return {peer: Balance(-row[0], *row[1:]) for peer, row in sorted(rows.items()) if any(row)}

    def totals(self, epoch: int | None = None) -> Totals:
        """Return what was paid in, paid out and is pending."""
        balances = self.balances(epoch)
        pending, schemes, receipts = self._pending, self._by_scheme, len(self._session_of)
        if epoch is not None:
            pending, schemes, receipts = 0, {}, 0
            for bill, shares in self._settled(epoch):
                settlement = settle(bill, shares)
                pending += settlement.pending
                receipts += 1
                _count_owners(schemes, bill, settlement.postings, 1)
        paid_in = sum(one.paid for one in balances.values())
        return Totals(receipts, paid_in, paid_in - pending, pending, {k: v for k, v in sorted(schemes.items()) if v})

    def epochs(self) -> tuple[int, ...]:
        """Return the epochs that receipts are of."""
        return tuple(sorted({bill.epoch for bills in self._bills.values() for bill in bills}))

    def settled(self, receipt: ReceiptId) -> bool:
        """Return whether nothing of this receipt is pending; False for one that is not here."""
        self._settle()
        session = self._session_of.get(receipt)
        return session is not None and not any(
            settle(bill, shares).pending for bill, shares in self._paid.get(session, ()) if bill.id == receipt
        )

    def explain(self, peer: PeerId, epoch: int | None = None) -> tuple[Amount, ...]:
        """Return every amount of a peer, in the order of time; they add up to its balance."""
        self._settle()
        found: list[tuple[int, Amount]] = []
        for bill, shares in self._settled(epoch):
            setting = bill.setting
            members = (setting.querier, setting.dealer, *setting.parties, *(model.owner for model in setting.models))
            if peer not in members:
                continue
            group = self._group_for(bill)
            samples = sum(self._statements[one].samples for one in self._counting[group]) if group else 0
            settlement = settle(bill, shares)
            for who, role, amount in settlement.postings:
                if who == peer:
                    why = reason(bill, role, settlement, amount, samples)
                    scheme = setting.rewards.scheme
                    found.append((bill.ended_ms, Amount(bill.id, bill.session, bill.epoch, role, amount, scheme, why)))
        found.sort(key=lambda one: (one[0], one[1].receipt, one[1].role))
        return tuple(amount for _, amount in found)

    def digest(self) -> bytes:
        """Return the hash of all balances by peer and of what is pending: equal where the records are equal."""
        # In decimal: amounts have no upper bound, the integers of the canonical encoding have.
        rows = [
            [peer, *map(str, (one.paid, one.as_owner, one.as_party, one.as_dealer))]
            for peer, one in self.balances().items()
        ]
        return canonical.digest("balances", canonical.encode([rows, str(self._pending)]))

    def _settled(self, epoch: int | None) -> Iterator[tuple[Bill, Shares | None]]:
        for paid in self._paid.values():
            for bill, shares in paid:
                if epoch is None or bill.epoch == epoch:
                    yield bill, shares

    def _settle(self) -> None:
        """Bring the amounts up to what the records say now."""
        sessions, self._dirty = self._dirty, set()
        stale, self._stale = self._stale, set()
        for session in sessions:
            stale.update(_Group.of(self._statements[one]) for one in self._covering.get(session, ()))
        for group in stale:
            if self._recount(group):
                sessions.update(session for one in self._groups[group] for session in self._statements[one].sessions)
        while self._waiting and self._waiting[0][0] <= self._latest_ms:
            sessions.add(heapq.heappop(self._waiting)[1])
        for session in sessions:
            self._pay(session)

    def _recount(self, group: _Group) -> bool:
        """Find the statements of a group that count; return whether they are others than before."""
        counting: list[StatementId] = []
        # By whom, too: else other members could name a session in a statement of theirs, and this one would not count.
        taken: set[tuple[bytes, tuple[PeerId, ...], PeerId]] = set()
        for id in sorted(self._groups[group]):
            statement = self._statements[id]
            counted = {(session, statement.parties, statement.dealer) for session in statement.sessions}
            if taken.isdisjoint(counted) and self._is_backed(statement):
                counting.append(id)
                taken |= counted
        if tuple(counting) == self._counting.get(group, ()):
            return False
        self._counting[group] = tuple(counting)
        for scheme in Scheme:
            self._shares.pop((group, scheme), None)
        return True

    def _is_backed(self, statement: EpochStatement) -> bool:
        """Whether receipts stand behind more than half of a statement's inputs.

        Otherwise a committee could sign sums of sessions that nobody ordered, and outweigh all others of the group.
        """
        inputs = 0
        for session in statement.sessions:
            inputs += sum(bill.count for bill in _standing(self._bills.get(session, ())) if _covers(statement, bill))
        return 2 * inputs > statement.samples

    def _pay(self, session: bytes) -> None:
        for bill, shares in self._paid.pop(session, ()):
            self._post(bill, shares, -1)
        paid = [(bill, self._shares_for(bill)) for bill in _standing(self._bills.get(session, ()))]
        for bill, shares in paid:
            self._post(bill, shares, 1)
            if shares is None:
                heapq.heappush(self._waiting, (_due_ms(bill), session))
        if paid:
            self._paid[session] = paid

    def _post(self, bill: Bill, shares: Shares | None, sign: int) -> None:
        settlement = settle(bill, shares)
        for peer, role, amount in settlement.postings:
            row = self._rows.get(peer)
            if row is None:
                row = self._rows[peer] = [0, 0, 0, 0]
            row[role] += sign * amount
        self._pending += sign * settlement.pending
        _count_owners(self._by_scheme, bill, settlement.postings, sign)

    def _shares_for(self, bill: Bill) -> Shares | None:
        """Return the shares of a bill's models in their order; None while they are not known."""
        setting = bill.setting
        if not bill.answered or setting.pays_at_once:
            return equal_shares(setting)
        group = self._group_for(bill)
        if group is None:
            return equal_shares(setting) if _due_ms(bill) <= self._latest_ms else None
        scheme = setting.rewards.scheme
        shares = self._shares.get((group, scheme))
        if shares is None:
            sums = Sums.of([self._statements[one] for one in self._counting[group]])
            shares = self._shares[group, scheme] = rule_of(scheme).shares(sums)
        by_version = dict(zip((version for version, _ in group.models), shares, strict=True))
        return tuple(by_version[model.version] for model in setting.models)

    def _group_for(self, bill: Bill) -> _Group | None:
        """Return the group that says how a bill's owners are paid, if there is one."""
        if not bill.answered or bill.setting.pays_at_once:
            return None
        kind = rule_of(bill.setting.rewards.scheme).kind
        for id in sorted(self._covering.get(bill.session, ())):
            statement = self._statements[id]
            if statement.kind is kind and _covers(statement, bill):
                group = _Group.of(statement)
                if id in self._counting.get(group, ()):
                    return group
        return None


def _standing(bills: list[Bill] | tuple[()]) -> list[Bill]:
    """Return of the bills of one session those that count: one for each order."""
    if len(bills) < 2:
        return list(bills)
    best: dict[tuple[PeerId, bytes], Bill] = {}
    for bill in sorted(bills, key=lambda one: (-one.votes(), one.id)):
        best.setdefault((bill.setting.querier, bill.committee), bill)
    return list(best.values())


def _covers(statement: EpochStatement, bill: Bill) -> bool:
    """Whether a statement that names the bill's session is by those who ran it, of the models that it ran."""
    setting = bill.setting
    return (
        bill.answered
        and statement.parties == setting.parties
        and statement.dealer == setting.dealer
        and statement.vote is setting.vote
        and statement.classes == setting.classes
        and set(statement.models) == set(setting.models)
    )


def _due_ms(bill: Bill) -> int:
    """Return from when on a bill that no statement covers is paid equally: the latest receipt's end decides."""
    return (bill.epoch + PATIENCE) * 1000 * bill.setting.rewards.epoch_s


def _count_owners(
    schemes: dict[Scheme, int], bill: Bill, postings: tuple[tuple[PeerId, AccountRole, int], ...], sign: int
) -> None:
    paid = sum(amount for _, role, amount in postings if role is AccountRole.OWNER)
    if paid:
        scheme = bill.setting.rewards.scheme
        schemes[scheme] = schemes.get(scheme, 0) + sign * paid
