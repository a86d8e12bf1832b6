"""The dates: how each form writes them, what follows them, their meaning, and what is held out."""

from __future__ import annotations

import datetime
import itertools

import pytest
import torch

from examples.seq2seq import dates
from examples.seq2seq.dates import END, FORMS, PAD, SYMBOLS

FORM = {form.name: form for form in FORMS}
WORDS, WEEK = "the fifth of march, nineteen ninety-eight", "week 10 of 1998"


@pytest.mark.parametrize("form", FORMS, ids=lambda form: form.name)
def test_a_form_is_named_as_it_writes_5_march_1998(form: dates.Form) -> None:
    day = datetime.date(1998, 3, 5)
    assert form.spell(day) == form.name
    assert form.iso(day) in ("1998-03-05", "1998-03", "1998-W10")


def test_no_spelling_has_two_meanings_and_all_are_made_of_the_symbols() -> None:
    meanings: dict[str, str] = {}
    for day in dates.dates():
        for form in FORMS:
            spelling, iso = form.spell(day), form.iso(day)
            assert meanings.setdefault(spelling, iso) == iso, spelling
    assert {*"".join(meanings), *"".join(meanings.values())} == set(SYMBOLS[3:])


@pytest.mark.parametrize(
    ("form", "day", "spelling", "iso"),
    [
        (WORDS, "1930-01-01", "the first of january, nineteen thirty", "1930-01-01"),
        (WORDS, "1971-02-12", "the twelfth of february, nineteen seventy-one", "1971-02-12"),
        (WORDS, "2000-12-31", "the thirty-first of december, two thousand", "2000-12-31"),
        (WORDS, "2009-08-20", "the twentieth of august, two thousand and nine", "2009-08-20"),
        (WORDS, "2012-05-23", "the twenty-third of may, twenty twelve", "2012-05-23"),
        (WORDS, "2029-09-19", "the nineteenth of september, twenty twenty-nine", "2029-09-19"),
        (WEEK, "1999-01-03", "week 53 of 1998", "1998-W53"),  # still in the old year's last week
        (WEEK, "2008-12-30", "week 1 of 2009", "2009-W01"),
        (WEEK, "1930-01-01", "week 1 of 1930", "1930-W01"),
        (WEEK, "2029-12-30", "week 52 of 2029", "2029-W52"),
    ],
)
def test_words_are_as_people_say_them_and_weeks_as_iso_counts_them(
    form: str, day: str, spelling: str, iso: str
) -> None:
    date = datetime.date.fromisoformat(day)
    assert (FORM[form].spell(date), FORM[form].iso(date)) == (spelling, iso)


@pytest.mark.parametrize(
    ("n", "expected"),
    [
        *((1, "1st"), (2, "2nd"), (3, "3rd"), (4, "4th"), (11, "11th"), (12, "12th"), (13, "13th")),
        *((21, "21st"), (22, "22nd"), (23, "23rd"), (30, "30th"), (51, "51st")),
    ],
)
def test_a_number_has_its_ending(n: int, expected: str) -> None:
    assert dates.numbered(n) == expected


@pytest.mark.parametrize(
    ("form", "day", "row"),
    [
        (WORDS, "1999-12-30", "1999-12-30 1999-12-31 2000-01-01"),
        (WORDS, "2004-02-28", "2004-02-28 2004-02-29 2004-03-01"),
        ("3/1998", "1998-11-30", "1998-11 1998-12 1999-01"),
        ("3/1998", "1998-01-31", "1998-01 1998-02 1998-03"),
        (WEEK, "1998-12-24", "1998-W52 1998-W53 1999-W01"),
        (WEEK, "2029-12-30", "2029-W52 2030-W01 2030-W02"),
    ],
)
def test_a_row_goes_on_with_the_days_months_or_weeks_that_follow(
    form: str, day: str, row: str
) -> None:
    date = datetime.date.fromisoformat(day)
    assert dates.row(FORM[form], date, 3) == row
    assert dates.row(FORM[form], date, 1) == row.split()[0]


def test_no_two_parts_share_a_spelling_or_what_is_read() -> None:
    parts = dates.pairs((3_000, 500, 400), 2, seed=0)
    assert [len(part) for part in parts] == [3_000, 500, 400]
    assert len({pair.spelling for part in parts for pair in part}) == 3_900
    read = [{pair.row.split()[0] for pair in part} for part in parts]
    for one, other in itertools.combinations(read, 2):
        assert not one & other
    for part in parts:
        assert {pair.form for pair in part} == set(FORM)


def test_the_pairs_follow_from_the_seed_and_the_first_do_not_depend_on_how_many() -> None:
    parts = dates.pairs((50, 10, 20), 1, seed=1)
    assert dates.pairs((50, 10, 20), 1, seed=1) == parts
    for part, longer in zip(parts, dates.pairs((80, 30, 30), 1, seed=1), strict=True):
        assert longer[: len(part)] == part
    assert dates.pairs((50, 10, 20), 1, seed=2)[0] != parts[0]


def test_rows_are_padded_symbols_that_read_back() -> None:
    train, *_ = dates.pairs((200, 1, 1), 2, seed=0)
    rows = dates.rows(train)
    assert len(rows) == 200
    for i, pair in enumerate(train):
        x, y = rows.x[i].tolist(), rows.y[i].tolist()
        assert rows.lengths[i] == len(pair.spelling)
        assert rows.targets[i] == len(pair.row) + 1
        assert dates.text(x[: len(pair.spelling)]) == pair.spelling
        assert dates.text(y) == pair.row
        assert y[len(pair.row)] == END
        assert set(x[len(pair.spelling) :]) | set(y[len(pair.row) + 1 :]) <= {PAD}


def test_taken_rows_are_no_wider_than_their_longest() -> None:
    train, *_ = dates.pairs((200, 1, 1), 1, seed=0)
    rows = dates.rows(train)
    months = [i for i, pair in enumerate(train) if len(pair.row) == 7][:3]
    taken = rows.take(torch.tensor(months))
    assert taken.x.shape == (3, max(len(train[i].spelling) for i in months))
    assert taken.y.shape == (3, 8)
    assert [dates.text(y) for y in taken.y.tolist()] == [train[i].row for i in months]
