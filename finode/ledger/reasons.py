"""Why a peer was paid an amount, in a few words for a person who doubts it."""

from __future__ import annotations

from finode.ledger.postings import AccountRole, Bill, Settlement
from finode.wire.committee import Scheme


def reason(bill: Bill, role: AccountRole, settlement: Settlement, amount: int, samples: int) -> str:
    """Return why an `amount` of `settlement` is what it is.

    `samples` is the number of inputs of the statements that the owners' shares follow from, 0 if they were equal.
    """
    setting = bill.setting
    rewards = setting.rewards
    pot = bill.pot
    match role:
        case AccountRole.QUERIER:
            if not bill.answered:
                return f"aborted by {bill.culprit or 'nobody known'}: the work of the others is charged"
            copies = f", each with {setting.copies} copies," if setting.copies else ""
            text = f"{bill.count} inputs{copies} at {rewards.price}"
            if settlement.pending:
                text += f"; {settlement.pending} of it pending for the owners"
            return text
        case AccountRole.PARTY:
            return f"{rewards.parties} of 1000 of {pot}, shared by rounds: {', '.join(map(str, bill.counted_rounds()))}"
        case AccountRole.DEALER:
            return f"{rewards.dealer} of 1000 of {pot}, for the bundle"
        case AccountRole.OWNER:
            models = f"{len(setting.models)} models" if len(setting.models) > 1 else "1 model"
            part = f"{rewards.owners} of 1000 of {pot}, {models}"
            if samples:
                whole = sum(paid for _, to, paid in settlement.postings if to is AccountRole.OWNER)
                share = f"{100 * amount / whole:.1f} %" if whole else "nothing"
                return f"{share} of {part}: {rewards.scheme} over {samples} inputs"
            if rewards.scheme is Scheme.EQUAL:
                return f"{part}, equally"
            return f"{part}, equally: {_why_equal(bill)}"


def _why_equal(bill: Bill) -> str:
    if len(bill.setting.models) == 1:
        return "there was one model"
    if bill.setting.pays_at_once:
        return f"the engine {bill.setting.engine} computes no sums of votes"
    return "no sums of votes were opened in time"
