"""What a user can mend: shown as one line on stderr, never as a traceback."""

from pathlib import Path


class WorkloadError(Exception):
    """The workload cannot go on; the message says why and what to do."""


class MissingData(WorkloadError):
    """The data is nowhere; the benchmarks then go on with synthetic batches."""


class Diverged(WorkloadError):
    """A loss is nan or infinite; of a training that is to show it, a result."""


class CorruptFile(WorkloadError):
    """A data file is not what it should be."""

    def __init__(self, path: Path, reason: object) -> None:
        super().__init__(f"{path} is corrupt: {reason}; delete the file")
