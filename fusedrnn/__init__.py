"""Fused RNN, LSTM and GRU that take the place of torch.nn's.

Replace ``torch.nn.LSTM`` by ``fusedrnn.LSTM``: same arguments, parameters, state_dict,
initial values and results; one fused recurrence per layer and direction in place of a
tensor operation per step.
"""

from importlib.metadata import version

from . import functional
from .modules import GRU, LSTM, RNN, GRUCell, LSTMCell, RNNCell
from .plan import explain

__version__ = version("fusedrnn")

__all__ = [
    "GRU",
    "LSTM",
    "RNN",
    "GRUCell",
    "LSTMCell",
    "RNNCell",
    "__version__",
    "explain",
    "functional",
]
