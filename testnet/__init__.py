"""A federation on one machine: several daemons as separate processes, with their own homes and a common roster.

topology.py     what nodes there are, from a TOML file
homes.py        their homes: identity, roster, settings, a free port each
processes.py    one daemon as a process: started, watched and stopped by its process id
network.py      all of them: started, waited for, stopped, and written down so that another command finds them
links.py        what links there are between them: named kinds, or a TOML matrix
shaping.py      what a link does to bytes: rate, delay, a window that grows
relay.py        the process that joins the nodes and lets the links be felt
emulation.py    the relay from outside: started, changed, counted
digits.py       the demo's data and models: scikit-learn's digits, split unevenly among the owners
demo.py         the demo: train, register, ask, compare with the plaintext answer
report.py       what the demo prints
commands.py     `finode testnet up | down | demo`
"""
