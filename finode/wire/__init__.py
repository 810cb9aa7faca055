"""What finode nodes say to each other: messages, their canonical encoding, their signatures.

A message is a frozen dataclass that checks itself. It travels as [header][canonical msgpack]; the header's type code
gives its size limit before a byte of it is read. Signed statements are `Signed` envelopes around canonical bytes.

    canonical.py      the one encoding, and its strict inverse
    message.py        the base class, the table of types, codes and limits
    signed.py         Ed25519 over a domain tag and canonical bytes
    control.py        hello and heartbeats                              /finode/control/1
    directory.py      node records and their sync                       /finode/directory/1
    committee.py      terms; propose, accept, refuse, seal, dissolve    /finode/committee/1
    shares.py         deployments, input and output shares              /finode/shares/1
    preprocessing.py  weight masks and bundles                          /finode/preprocessing/1
    session.py        lanes between parties                             /finode/session/1
"""
