"""How a committee is agreed: the querier's choice, the members' consent, the seal. Logic only: no I/O, no clock.

    policy.py         the querier's choice of models, parties and dealer       matching.py, organizations.py
    negotiation.py    the querier's machine                                    replacement.py
    rules.py          what every member checks                                 consent.py: what an owner checks
    membership.py     a member's machine                                       desk.py: all machines of one node
    sealed.py         the sealed committee, a type that is its own proof
    agreement.py      what a negotiation came to, and which models an answer goes without
    book.py           the sealed committees of a member, and those a querier may use again

The querier; `pump` sends an action's message to its peer and hands back what comes, `Silent` when nothing comes:

    negotiation = Negotiation(request, candidates, deadline_ms=now() + 30_000)
    actions = negotiation.start(now())
    while negotiation.state in (State.PROPOSED, State.SEALING):
        peer, answer = await pump(actions)                            # any one of negotiation.waiting_for()
        if answer is None:
            actions = negotiation.handle(Silent(peer), now())
        else:
            actions = negotiation.receive(peer, answer, now())        # on RemoteError: handle(Silent(peer, why))
    [*dissolves, last] = actions                                      # to be sent; Done(committee) or Failed(error)

A member, for each message that arrives:

    desk = Desk(identity, view=lambda: MemberView(peer=..., ...), book=CommitteeBook(capacity=4))
    outcome = desk.receive(stream.peer, message, now())               # Propose, Seal or Dissolve
    if outcome.reply is not None:
        await stream.send(outcome.reply)
    for end in outcome.ended: ...                                     # end the sessions of end.committee
    sealed = desk.book.begin(start.committee, start.session, start.batch, now())   # and desk.book.end(session)
"""
