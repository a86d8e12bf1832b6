"""Fused RNN, LSTM and GRU that take the place of torch.nn's.

Replace ``torch.nn.LSTM`` by ``fusedrnn.LSTM``: same arguments, parameters, state_dict,
initial values and results; one fused recurrence per layer and direction in place of a
tensor operation per step. ``convert`` does it to a model that exists, ``patch`` to code
that builds its own.
"""

from . import _binary

_binary.load()

from . import functional
from . import hooks as hooks  # for torch.compile, torch.onnx and opacus
from ._explain import explain
from .cells import GRUCell, LSTMCell, RNNCell
from .convert import convert, to_torch
from .freeze import freeze, load, thaw
from .frozen import FrozenGRU, FrozenLSTM, FrozenMGU, FrozenRNN
from .mgu import MGU, MGUCell
from .modules import GRU, LSTM, RNN
from .patch import Patch, patch
from .stream import Stream
from .tuning import tune

__version__: str = _binary.build_info()["version"]

__all__ = [
    "GRU",
    "LSTM",
    "MGU",
    "RNN",
    "FrozenGRU",
    "FrozenLSTM",
    "FrozenMGU",
    "FrozenRNN",
    "GRUCell",
    "LSTMCell",
    "MGUCell",
    "Patch",
    "RNNCell",
    "Stream",
    "__version__",
    "convert",
    "explain",
    "freeze",
    "functional",
    "load",
    "patch",
    "thaw",
    "to_torch",
    "tune",
]
