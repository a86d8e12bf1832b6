"""Dates as people write them, and what they are in ISO 8601: the pairs that seq2seq learns from.

Eighteen forms, from ``05.03.98`` to ``the fifth of march, nineteen ninety-eight``, say a day, a
month or a week, so that both sides differ in length. The years are one century, 1930 to 2029, for
which two digits suffice; dots put the day first and slashes the month, so that no spelling has two
meanings. Everything follows from a seed: no file is needed. What is tested is never among what is
trained, neither as a spelling nor as a date: a model can only get it right by reading.
"""

from __future__ import annotations

import datetime
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn.utils import rnn

FIRST, LAST = datetime.date(1930, 1, 1), datetime.date(2029, 12, 30)  # the 31st is in 2030's week 1
HELD_OUT = 0.1  # of the dates, months and weeks
SOURCE = "generated dates"

PAD, START, END = range(3)
SYMBOLS = ("<pad>", "<start>", "<end>", *" ',-./0123456789Wabcdefghijklmnoprstuvwxy")
_INDEX = {symbol: i for i, symbol in enumerate(SYMBOLS)}

MONTHS = (
    *("january", "february", "march", "april", "may", "june", "july", "august", "september"),
    *("october", "november", "december"),
)
DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
_UNITS = (
    *("", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven"),
    *("twelve", "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen"),
)
_TENS = ("", "", "twenty", "thirty", "forty", "fifty", "sixty", "seventy", "eighty", "ninety")
_ORDINALS = {
    "one": "first",
    "two": "second",
    "three": "third",
    "five": "fifth",
    "eight": "eighth",
    "nine": "ninth",
    "twelve": "twelfth",
    "twenty": "twentieth",
    "thirty": "thirtieth",
}


Says = Callable[[datetime.date], str]


class Form(NamedTuple):
    """One way to write a date; `iso` is what it says of it."""

    name: str
    spell: Says
    iso: Says


class Pair(NamedTuple):
    """A spelling and its meaning."""

    spelling: str
    iso: str
    form: str


@dataclass(frozen=True)
class Rows:
    """Pairs as symbols, on any device; their lengths, which packing asks for, on the CPU."""

    x: Tensor  # int64 [N, S]  spellings, padded at the end
    y: Tensor  # int64 [N, T]  meanings, each ended by END, then padded
    lengths: Tensor  # int64 [N]  of the spellings
    targets: Tensor  # int64 [N]  lengths of the meanings, END included

    def __len__(self) -> int:
        return len(self.x)

    def take(self, rows: Tensor) -> Rows:
        """Those rows, no wider than they need to be; `rows` int64 on the CPU."""
        lengths, targets, at = self.lengths[rows], self.targets[rows], rows.to(self.x.device)
        x, y = self.x[at, : int(lengths.max())], self.y[at, : int(targets.max())]
        return Rows(x, y, lengths, targets)


def cardinal(n: int) -> str:
    """1..99 in words: ``ninety-eight``."""
    if n < len(_UNITS):
        return _UNITS[n]
    tens, unit = divmod(n, 10)
    return f"{_TENS[tens]}-{_UNITS[unit]}" if unit else _TENS[tens]


def ordinal(n: int) -> str:
    """1..99 in words: ``twenty-first``."""
    head, dash, last = cardinal(n).rpartition("-")
    return f"{head}{dash}{_ORDINALS.get(last, f'{last}th')}"


def numbered(n: int) -> str:
    """1..99 with its ending: ``21st``."""
    endings = {1: "st", 2: "nd", 3: "rd"}
    return f"{n}{'th' if n in (11, 12, 13) else endings.get(n % 10, 'th')}"


def year(n: int) -> str:
    """1930..2029 in words: ``nineteen ninety-eight``, ``two thousand and five``."""
    century, rest = divmod(n, 100)
    if n < 2000:
        return f"nineteen {cardinal(rest)}"
    if rest < 10:
        return f"two thousand and {cardinal(rest)}" if rest else "two thousand"
    return f"{cardinal(century)} {cardinal(rest)}"


def _month(date: datetime.date) -> str:
    return MONTHS[date.month - 1]


def _mon(date: datetime.date) -> str:
    return _month(date)[:3]


def _week(date: datetime.date) -> int:
    return date.isocalendar().week


_DAY: Says = "{:%Y-%m-%d}".format
_MONTH: Says = "{:%Y-%m}".format
_WEEK: Says = "{:%G-W%V}".format

FORMS = (  # each is named as it writes 5 March 1998
    Form("5.3.1998", lambda d: f"{d.day}.{d.month}.{d.year}", _DAY),
    Form("05.03.98", "{:%d.%m.%y}".format, _DAY),
    Form("3/5/1998", lambda d: f"{d.month}/{d.day}/{d.year}", _DAY),
    Form("03/05/98", "{:%m/%d/%y}".format, _DAY),
    Form("19980305", "{:%Y%m%d}".format, _DAY),
    Form("5 march 1998", lambda d: f"{d.day} {_month(d)} {d.year}", _DAY),
    Form("march 5, 1998", lambda d: f"{_month(d)} {d.day}, {d.year}", _DAY),
    Form("5th of march 1998", lambda d: f"{numbered(d.day)} of {_month(d)} {d.year}", _DAY),
    Form("mar 5th '98", lambda d: f"{_mon(d)} {numbered(d.day)} '{d:%y}", _DAY),
    Form("5-mar-98", lambda d: f"{d.day}-{_mon(d)}-{d:%y}", _DAY),
    Form(
        "thursday, 5 mar 1998",
        lambda d: f"{DAYS[d.weekday()]}, {d.day} {_mon(d)} {d.year}",
        _DAY,
    ),
    Form(
        "the fifth of march, nineteen ninety-eight",
        lambda d: f"the {ordinal(d.day)} of {_month(d)}, {year(d.year)}",
        _DAY,
    ),
    Form("march 1998", lambda d: f"{_month(d)} {d.year}", _MONTH),
    Form("mar '98", lambda d: f"{_mon(d)} '{d:%y}", _MONTH),
    Form("3/1998", lambda d: f"{d.month}/{d.year}", _MONTH),
    Form("week 10 of 1998", lambda d: f"week {_week(d)} of {d:%G}", _WEEK),
    Form("the 10th week of '98", lambda d: f"the {numbered(_week(d))} week of '{d:%g}", _WEEK),
    Form("cw 10/98", lambda d: f"cw {_week(d)}/{d:%g}", _WEEK),
)


def dates() -> list[datetime.date]:
    """Every day of the century, in order."""
    return [FIRST + datetime.timedelta(n) for n in range((LAST - FIRST).days + 1)]


def pairs(train: int, test: int, seed: int) -> tuple[list[Pair], list[Pair]]:
    """`train` and `test` different spellings; no meaning in both.

    The forms are drawn equally often, but a spelling drawn again is passed over: those of months,
    which are few, are the rarer the more pairs there are.

    Args:
        seed: draws what is held out, then the pairs.
    """
    rng = random.Random(seed)
    days = dates()
    isos = {form.iso for form in FORMS}  # three: of a day, a month, a week
    meanings = sorted({iso(day) for iso in isos for day in days})
    held_out = set(rng.sample(meanings, round(HELD_OUT * len(meanings))))
    wanted = (train, test)
    drawn: tuple[dict[str, Pair], dict[str, Pair]] = ({}, {})  # by the spelling
    while any(len(part) < count for part, count in zip(drawn, wanted, strict=True)):
        day, form = rng.choice(days), rng.choice(FORMS)
        pair = Pair(form.spell(day), form.iso(day), form.name)
        tested = pair.iso in held_out
        if len(drawn[tested]) < wanted[tested]:
            drawn[tested].setdefault(pair.spelling, pair)
    return list(drawn[False].values()), list(drawn[True].values())


def symbols(text: str) -> list[int]:
    """The symbols of `text`, which is made of those in ``SYMBOLS``."""
    return [_INDEX[character] for character in text]


def text(row: Sequence[int]) -> str:
    """What a row of symbols says before its END; a marker in it shows as its name."""
    ended = row[: row.index(END)] if END in row else row
    return "".join(SYMBOLS[i] for i in ended)


def rows(chosen: Sequence[Pair], device: torch.device | str = "cpu") -> Rows:
    """`chosen` as padded symbols."""
    x = [torch.tensor(symbols(pair.spelling)) for pair in chosen]
    y = [torch.tensor([*symbols(pair.iso), END]) for pair in chosen]
    padded = (rnn.pad_sequence(part, batch_first=True, padding_value=PAD) for part in (x, y))
    lengths = (torch.tensor([len(row) for row in part]) for part in (x, y))
    return Rows(*(part.to(device) for part in padded), *lengths)
