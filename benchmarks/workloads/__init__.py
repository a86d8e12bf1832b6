"""The two training workloads, Reuters and Time Machine, runnable and importable.

Each workload module holds its task (data, model, update, score) as plain functions, so that the
benchmarks measure the very code that trains. What both share stands once: ``fetch`` and ``data``
get the corpora, ``training`` runs epochs, ``common`` is the command line and the results, ``plots``
the chart.
"""
