"""The programs of the course's texts, run as they stand, and their weights converted.

``python -m examples.texts PROGRAM``: `d2l` runs the code of that package, `reuters_program`,
`simple_rnn` and `sentiment_lstm` are programs as a course has them, each run with torch.nn's layers
and again with nothing changed but the import; `conversions` shows what of one convention's weights
another can load.
"""
