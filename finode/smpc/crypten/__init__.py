"""The `crypten` engine: CrypTen 0.4.1 [Knott et al. 2021, arXiv:2109.00984] behind our engine interface.

It is here to compare with. The protocols are CrypTen's, call by call; what surrounds them is ours:

    availability    whether CrypTen is installed; needs neither it nor torch
    operators       which plans it runs; needs neither, too
    compat          imports it under a current torch, and takes its ways out and its randomness from it
    threads         a computation that waits in the middle, as a `PartyRun`
    communicator    one frame to each other party per call: no ports, no pickle
    randomness      zero-sharings and coins from cryptographic streams
    tuples          what the dealer gives instead of CrypTen's trusted first party
    execution       plans and votes by CrypTen's operators
    engine          the engine itself
"""
