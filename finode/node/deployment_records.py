"""An owner's signed word that a deployment may be computed with: written once, checked by all who take part in it."""

from __future__ import annotations

from dataclasses import replace

from finode.errors import RemoteProtocolError, WireError
from finode.wire.committee import ModelTerm, Terms
from finode.wire.receipts import Deployment
from finode.wire.signed import Signed, open_signed


def deployment_of(terms: Terms, model: ModelTerm, signed_ms: int) -> Deployment:
    """Return the record of one model's deployment to the parties and the dealer of these terms."""
    return Deployment(
        federation=terms.federation,
        deployment=terms.deployment_id(model),
        version=model.version,
        plan_digest=model.plan_digest,
        owner=model.owner,
        parties=terms.parties,
        dealer=terms.dealer,
        engine=terms.engine,
        fractional_bits=terms.fractional_bits,
        signed_ms=signed_ms,
    )


def check_signed_deployment(signed: Signed, terms: Terms, model: ModelTerm) -> None:
    """Raise `RemoteProtocolError` unless the model's owner signed just this deployment."""
    try:
        stated = open_signed(signed, Deployment, signer=model.owner)
    except WireError as error:
        raise RemoteProtocolError(f"the deployment's signature: {error.message}", peer=model.owner) from None
    if replace(stated, signed_ms=1) != deployment_of(terms, model, 1):
        raise RemoteProtocolError(f"{model.owner} signed another deployment than it offers", peer=model.owner)
