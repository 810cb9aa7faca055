"""The engine: plans run on secret shares. Knows nothing of networks, files or processes.

`plan.py` and `engine.py` need no torch: every layer may read them. All else is loaded in worker processes only.
"""
