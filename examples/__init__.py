"""A course on recurrent networks: a folder is one system on one task, tests beside it.

A folder holds the task (data, model, update, score) as plain functions in ``model``, so that the
benchmarks measure the very code that trains, and in ``workload`` what the driver asks of it: its
configurations and runs, and what their results say. ``driver`` is the rest, once: the command line,
epochs, checkpoints, several processes, results, tables, plots and the page. ``data`` gets the
corpora.
"""
