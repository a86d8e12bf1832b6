"""The training workloads, runnable and importable: one module is one system on one task.

Each holds its task (data, model, update, score) as plain functions, so that the benchmarks measure
the very code that trains. What they share stands once: ``fetch`` and ``data`` get the corpora,
``training`` runs epochs, ``checkpoint`` saves and resumes them, ``parallel`` shares batches between
processes, ``common`` is the command line and the results, ``summary`` what results say and
``plots`` the charts. ``suite`` runs them all.
"""
