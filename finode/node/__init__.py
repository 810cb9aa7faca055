"""The four roles of a node, its sessions and its worker processes.

interface.py      what the API may ask of a node, as plain types
"""
