"""Who pays what to whom for one receipt: a pure function, in integer micro-credits.

The pot is price x count. The dealer's part of it is pot * dealer // 1000, the parties' pot * parties // 1000, the
owners' the rest. A part that nobody earned is not charged:

    signatures     nothing is paid unless more than half of the parties and the dealer signed; of these, who did not
                   sign is not paid. The querier's signature changes nothing: it signed the order
    parties        share their part by the rounds that they ran; who did not sign, and the culprit, counts as having
                   run as many as any: nobody earns more because another failed
    answered       the owners' part by the shares of the models, equal ones or those of the scheme; until they are
                   known it is pending: charged, and paid to nobody yet
    aborted        owners get nothing; parties and dealer get their parts, but for the culprit, and only if at least
                   one party ran a round

So what the querier is charged equals what the others are paid and what is pending, to the last unit.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum

from finode.identity import PeerId
from finode.ledger.records import VerifiedReceipt
from finode.ledger.schemes.apportioning import WHOLE, apportion
from finode.wire.committee import PER_MILLE, RewardTerms, Scheme, Vote
from finode.wire.receipts import ModelUse, Outcome, ReceiptId

NATIVE = "native"
"""The engine that computes sums of votes; what another one answered is paid equally."""


class AccountRole(IntEnum):
    """What a peer was in the session that an amount comes from; the number is its place in a row of totals."""

    QUERIER = 0
    OWNER = 1
    PARTY = 2
    DEALER = 3

    @property
    def label(self) -> str:
        """The role's name in lower case."""
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Setting:
    """What the receipts of one committee have in common: kept once for all of them."""

    querier: PeerId
    parties: tuple[PeerId, ...]
    dealer: PeerId
    models: tuple[ModelUse, ...]
    rewards: RewardTerms
    engine: str
    vote: Vote
    classes: int
    copies: int = 0

    @property
    def pays_at_once(self) -> bool:
        """Whether the owners' part is split equally, without a statement."""
        return self.rewards.scheme is Scheme.EQUAL or self.engine != NATIVE or len(self.models) == 1


@dataclass(frozen=True, slots=True)
class Bill:
    """What of a receipt decides about money, without the bytes that proved it."""

    id: ReceiptId
    session: bytes
    committee: bytes
    setting: Setting
    count: int
    ended_ms: int
    answered: bool
    culprit: str
    rounds: tuple[int, ...]
    signers: frozenset[PeerId]

    @property
    def pot(self) -> int:
        """Micro-credits for all inputs and their copies."""
        return self.setting.rewards.price * self.count * (1 + self.setting.copies)

    @property
    def epoch(self) -> int:
        """The epoch in which the session ended."""
        return self.setting.rewards.epoch_of(self.ended_ms)

    def earns(self, peer: PeerId) -> bool:
        """Whether a party or the dealer is paid, if work is paid at all."""
        return peer in self.signers and peer != self.culprit

    def counted_rounds(self) -> tuple[int, ...]:
        """Return the rounds that the parties' part is shared by, as if who is not paid had run as many as any."""
        most = max(self.rounds)
        return tuple(
            [ran if self.earns(peer) else most for peer, ran in zip(self.setting.parties, self.rounds, strict=True)]
        )

    def votes(self) -> int:
        """Return how many of the parties and the dealer signed."""
        return len(self.signers.intersection(self.setting.parties)) + (self.setting.dealer in self.signers)


@dataclass(frozen=True, slots=True)
class Settlement:
    """The amounts of one bill, and what of the owners' part waits for their shares."""

    postings: tuple[tuple[PeerId, AccountRole, int], ...]
    pending: int


def setting_of(verified: VerifiedReceipt) -> Setting:
    """Return what the receipt has in common with others of its committee."""
    one = verified.receipt
    return Setting(
        one.querier, one.parties, one.dealer, one.models, one.rewards, one.engine, one.vote, one.classes, one.copies
    )


def bill_of(verified: VerifiedReceipt, setting: Setting) -> Bill:
    """Return the bill of a receipt with its setting."""
    one = verified.receipt
    return Bill(
        verified.id,
        one.session,
        one.committee,
        setting,
        one.count,
        one.ended_ms,
        one.outcome is Outcome.ANSWERED,
        "" if one.verdict is None else one.verdict.culprit,
        tuple([work.rounds for work in one.work[:-1]]),
        verified.signers,
    )


def settle(bill: Bill, shares: Sequence[int] | None) -> Settlement:
    """Return the amounts of a bill. `shares` are its models' parts of `WHOLE`; None while they are not known."""
    setting = bill.setting
    rewards = setting.rewards
    pot = bill.pot
    if not pot or 2 * bill.votes() <= len(setting.parties) + 1:
        return Settlement((), 0)
    of_dealer, of_parties = pot * rewards.dealer // PER_MILLE, pot * rewards.parties // PER_MILLE
    postings: list[tuple[PeerId, AccountRole, int]] = []
    charged = pending = 0
    if bill.answered or any(bill.rounds):
        for peer, amount in zip(setting.parties, apportion(of_parties, bill.counted_rounds()), strict=True):
            if amount and bill.earns(peer):
                postings.append((peer, AccountRole.PARTY, amount))
                charged += amount
        if of_dealer and bill.earns(setting.dealer):
            postings.append((setting.dealer, AccountRole.DEALER, of_dealer))
            charged += of_dealer
    if bill.answered:
        of_owners = pot - of_dealer - of_parties
        charged += of_owners
        if shares is None:
            pending = of_owners
        else:
            for model, amount in zip(setting.models, apportion(of_owners, shares), strict=True):
                if amount:
                    postings.append((model.owner, AccountRole.OWNER, amount))
    if charged:
        postings.append((setting.querier, AccountRole.QUERIER, -charged))
    return Settlement(tuple(postings), pending)


def equal_shares(setting: Setting) -> tuple[int, ...]:
    """Return the same share for each model."""
    return apportion(WHOLE, [1] * len(setting.models))
