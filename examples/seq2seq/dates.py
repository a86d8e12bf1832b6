"""Dates as people write them, and what they are in ISO 8601: the pairs that seq2seq learns from.

Eighteen forms, from ``05.03.98`` to ``the fifth of march, nineteen ninety-eight``, say a day, a
month or a week, so that both sides differ in length. What is to be written is a row: the date in
ISO 8601 and the days, months or weeks after it, ``1998-03-05 1998-03-06 1998-03-07``. Each follows
from the spelling, and from the one before as well: a writer may read, or copy and count on.

The years are one century, 1930 to 2029, for which two digits suffice; dots put the day first and
slashes the month, so that no spelling has two meanings. Everything follows from a seed: no file is
needed. No spelling of training says a date that is validated or tested, in any form: a model can
only get it right by reading. (Such a date may have been written in training, after another.)
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
HELD_OUT = 0.1  # of the dates, months and weeks; to validate, and as many to test
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
    """One way to write a date; `iso` is what it says of it, `after` the next day, month or week."""

    name: str
    spell: Says
    iso: Says
    after: Callable[[datetime.date], datetime.date]


class Pair(NamedTuple):
    """A spelling and the row of dates to be written, in ISO 8601 with a space between two."""

    spelling: str
    row: str
    form: str


@dataclass(frozen=True)
class Rows:
    """Pairs as symbols, on any device; their lengths, which packing asks for, on the CPU."""

    x: Tensor  # int64 [N, S]  spellings, padded at the end
    y: Tensor  # int64 [N, T]  rows of dates, each ended by END, then padded
    lengths: Tensor  # int64 [N]  of the spellings
    targets: Tensor  # int64 [N]  lengths of the rows of dates, END included

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


def _days(count: int) -> Callable[[datetime.date], datetime.date]:
    return lambda date: date + datetime.timedelta(count)


def _next_month(date: datetime.date) -> datetime.date:
    return (date.replace(day=1) + datetime.timedelta(31)).replace(day=1)


_DAY = "{:%Y-%m-%d}".format, _days(1)
_MONTH = "{:%Y-%m}".format, _next_month
_WEEK = "{:%G-W%V}".format, _days(7)

FORMS = (  # each is named as it writes 5 March 1998
    Form("5.3.1998", lambda d: f"{d.day}.{d.month}.{d.year}", *_DAY),
    Form("05.03.98", "{:%d.%m.%y}".format, *_DAY),
    Form("3/5/1998", lambda d: f"{d.month}/{d.day}/{d.year}", *_DAY),
    Form("03/05/98", "{:%m/%d/%y}".format, *_DAY),
    Form("19980305", "{:%Y%m%d}".format, *_DAY),
    Form("5 march 1998", lambda d: f"{d.day} {_month(d)} {d.year}", *_DAY),
    Form("march 5, 1998", lambda d: f"{_month(d)} {d.day}, {d.year}", *_DAY),
    Form("5th of march 1998", lambda d: f"{numbered(d.day)} of {_month(d)} {d.year}", *_DAY),
    Form("mar 5th '98", lambda d: f"{_mon(d)} {numbered(d.day)} '{d:%y}", *_DAY),
    Form("5-mar-98", lambda d: f"{d.day}-{_mon(d)}-{d:%y}", *_DAY),
    Form(
        "thursday, 5 mar 1998",
        lambda d: f"{DAYS[d.weekday()]}, {d.day} {_mon(d)} {d.year}",
        *_DAY,
    ),
    Form(
        "the fifth of march, nineteen ninety-eight",
        lambda d: f"the {ordinal(d.day)} of {_month(d)}, {year(d.year)}",
        *_DAY,
    ),
    Form("march 1998", lambda d: f"{_month(d)} {d.year}", *_MONTH),
    Form("mar '98", lambda d: f"{_mon(d)} '{d:%y}", *_MONTH),
    Form("3/1998", lambda d: f"{d.month}/{d.year}", *_MONTH),
    Form("week 10 of 1998", lambda d: f"week {_week(d)} of {d:%G}", *_WEEK),
    Form("the 10th week of '98", lambda d: f"the {numbered(_week(d))} week of '{d:%g}", *_WEEK),
    Form("cw 10/98", lambda d: f"cw {_week(d)}/{d:%g}", *_WEEK),
)


def dates() -> list[datetime.date]:
    """Every day of the century, in order."""
    return [FIRST + datetime.timedelta(n) for n in range((LAST - FIRST).days + 1)]


def row(form: Form, date: datetime.date, length: int) -> str:
    """What is to be written: `date` as ISO 8601 has it, and what follows; `length` in all."""
    written = []
    for _ in range(length):
        written.append(form.iso(date))
        date = form.after(date)
    return " ".join(written)


def pairs(counts: tuple[int, int, int], length: int, seed: int) -> tuple[list[Pair], ...]:
    """Different spellings to train, to validate and to test; none in two parts says the same.

    The forms are drawn equally often, but a spelling drawn again is passed over: those of months,
    which are few, are the rarer the more pairs there are.

    Args:
        counts: of the pairs of each part.
        length: of the rows of dates.
        seed: draws what is held out, then the pairs.
    """
    rng = random.Random(seed)
    days = dates()
    isos = {form.iso for form in FORMS}  # three: of a day, a month, a week
    meanings = sorted({iso(day) for iso in isos for day in days})
    held_out = rng.sample(meanings, 2 * round(HELD_OUT * len(meanings)))
    part_of = {meaning: 1 + i % 2 for i, meaning in enumerate(held_out)}  # 0: to train
    drawn: tuple[dict[str, Pair], ...] = ({}, {}, {})  # by the spelling
    while any(len(part) < count for part, count in zip(drawn, counts, strict=True)):
        day, form = rng.choice(days), rng.choice(FORMS)
        number = part_of.get(form.iso(day), 0)
        if len(drawn[number]) < counts[number]:
            pair = Pair(form.spell(day), row(form, day, length), form.name)
            drawn[number].setdefault(pair.spelling, pair)
    return tuple(list(part.values()) for part in drawn)


def symbols(text: str) -> list[int]:
    """The symbols of `text`, which is made of those in ``SYMBOLS``."""
    return [_INDEX[character] for character in text]


def next_digit(symbols: Tensor) -> Tensor:
    """The digit after each digit, 0 after 9; of another symbol any digit."""
    zero = _INDEX["0"]
    return (symbols - zero + 1) % 10 + zero


def text(row: Sequence[int]) -> str:
    """What a row of symbols says before its END; a marker in it shows as its name."""
    ended = row[: row.index(END)] if END in row else row
    return "".join(SYMBOLS[i] for i in ended)


def rows(chosen: Sequence[Pair], device: torch.device | str = "cpu") -> Rows:
    """`chosen` as padded symbols."""
    x = [torch.tensor(symbols(pair.spelling)) for pair in chosen]
    y = [torch.tensor([*symbols(pair.row), END]) for pair in chosen]
    padded = (rnn.pad_sequence(part, batch_first=True, padding_value=PAD) for part in (x, y))
    lengths = (torch.tensor([len(row) for row in part]) for part in (x, y))
    return Rows(*(part.to(device) for part in padded), *lengths)
