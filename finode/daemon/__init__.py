"""The composition root: what a daemon is made of, and what the commands may ask of a home.

home.py     the home directory: identity, settings, roster, lock
logs.py     logging without secrets
admin.py    models and roster of a home, for the commands
run.py      builds a node and its API, and owns the root nursery
"""
