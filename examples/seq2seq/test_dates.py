"""The dates: how each form writes them, that no spelling has two meanings, and what is held out."""

from __future__ import annotations

import datetime

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


def test_a_test_pair_shares_neither_spelling_nor_meaning_with_training() -> None:
    train, test = dates.pairs(3_000, 500, seed=0)
    assert (len(train), len(test)) == (3_000, 500)
    assert len({pair.spelling for pair in (*train, *test)}) == 3_500
    assert not {pair.iso for pair in train} & {pair.iso for pair in test}
    for part in (train, test):
        assert {pair.form for pair in part} == set(FORM)


def test_the_pairs_follow_from_the_seed_and_the_first_do_not_depend_on_how_many() -> None:
    train, test = dates.pairs(50, 20, seed=1)
    assert dates.pairs(50, 20, seed=1) == (train, test)
    assert dates.pairs(80, 30, seed=1)[0][:50] == train
    assert dates.pairs(50, 20, seed=2)[0] != train


def test_rows_are_padded_symbols_that_read_back() -> None:
    train, _ = dates.pairs(200, 1, seed=0)
    rows = dates.rows(train)
    assert len(rows) == 200
    for i, pair in enumerate(train):
        x, y = rows.x[i].tolist(), rows.y[i].tolist()
        assert rows.lengths[i] == len(pair.spelling)
        assert rows.targets[i] == len(pair.iso) + 1
        assert dates.text(x[: len(pair.spelling)]) == pair.spelling
        assert dates.text(y) == pair.iso
        assert y[len(pair.iso)] == END
        assert set(x[len(pair.spelling) :]) | set(y[len(pair.iso) + 1 :]) <= {PAD}


def test_taken_rows_are_no_wider_than_their_longest() -> None:
    train, _ = dates.pairs(200, 1, seed=0)
    rows = dates.rows(train)
    months = [i for i, pair in enumerate(train) if len(pair.iso) == 7][:3]
    taken = rows.take(torch.tensor(months))
    assert taken.x.shape == (3, max(len(train[i].spelling) for i in months))
    assert taken.y.shape == (3, 8)
    assert [dates.text(y) for y in taken.y.tolist()] == [train[i].iso for i in months]
