"""The finode command.

    __main__.py   the entry point
    root.py       the group of all commands, loaded when they are used; errors as one line and a status
    options.py    options that several commands share
    output.py     tables, JSON, short ids, credits
    setup.py      init, start, id
    models.py     models add | list | show | rm
    peers.py      peers, peers trust | distrust
    views.py      status, services, ps
    query.py      query
    receipts.py   receipts list | show | verify | export
    rewards.py    rewards, rewards explain
    feedback.py   feedback
    progress.py   a query's progress on a terminal

Commands use the client and the daemon package only.
"""
