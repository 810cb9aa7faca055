"""The node's network: libp2p, mended, behind `finode.net.interface`.

    interface.py    what the layers above see: streams, the directory, the network
    framing.py      frames, sans-I/O        stream.py   the framed stream        pipe.py     a pipe in memory
    directory.py    records, sans-I/O       roster.py   whom we accept           standing.py what peers did wrong
    links.py        hello and heartbeats    router.py   protocols and handlers   exchange.py how records travel
    memory.py       a federation in one program, for tests                       loopback.py streams to this node itself

    host.py         puts it together: `open_network`
    hardening.py    the libp2p host         muxer.py    yamux                    negotiation.py multistream-select
    connections.py  who is let in, links    dialer.py   dialing and backoff      addresses.py   multiaddresses
    gossip.py       gossipsub

The lower half imports libp2p; the upper half does not.
"""
