"""`finode bench`: real daemons, emulated links, queries through the client, and what they took.

models.py       the models that are measured, as ONNX files with random weights
work.py         what is measured (presets, sweeps) and a row of the result, with where its time goes
measure.py      a federation for the rows of equal parties, and the queries of one row
report.py       rows as a table, JSON and CSV
plots.py        rows of a sweep as curves
commands.py     the command
"""
