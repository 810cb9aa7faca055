"""`finode bench`: real daemons, emulated links, queries through the client, and what they took.

models.py       the models that are measured, as ONNX files with random weights
work.py         what is measured (presets, sweeps) and a row of the result, with where its time goes
federation.py   the nodes and models for the rows of equal parties
measure.py      a federation's rows, and the queries of one row
series.py       how often something is asked, and what of it counts
quiet.py        what the links carry, and when they are quiet
agreement.py    whether a thousand digits get the classes that plaintext gives them
targets.py      the figures that the engine is held to, and whether they are reached
report.py       what was found as tables, JSON and CSV
plots.py        rows of a sweep as curves
commands.py     the command
"""
