"""The options of fill-in exercises, and UL2's denoisers on real text."""

from __future__ import annotations

import json
import random
import re
from collections import Counter
from pathlib import Path

import pyarrow as pa
import pytest
from pydantic import ValidationError

from pipelines.rendering import Rendered
from pipelines.templates.denoisers import MODES
from pipelines.templates.fill_in import FillIn, Mix, fill_in


def test_ul2_takes_words_or_tokens():
    options = FillIn(form="ul2", mix=Mix(r=0, s=1, x=0), mode_tokens=False)
    rendered = fill_in("aa bb cc dd", options=options, rng=random.Random(1))
    assert rendered == Rendered("aa bb cc dd", ((8, 11),), divisions=((0, 11),))
    options = FillIn(form="ul2", unit="tokens", mix=Mix(r=0, s=1, x=0))
    rendered = fill_in(
        "abcdefgh", options=options, rng=random.Random(1), ends=lambda text: range(1, len(text) + 1)
    )
    assert rendered == Rendered("[S2S] abcdefgh", ((12, 14),), divisions=((0, 14),))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"form": "oig", "unit": "tokens"}, "`unit` is no option of `form: oig`; leave it out"),
        ({"form": "ul2", "roles": "human"}, "`roles` is no option of `form: ul2`; leave it out"),
        ({"form": "ul2", "mix": {"r": 0, "s": 0, "x": 0}}, "at least one weight must be more than"),
        ({"form": "ul2", "piece_units": 591}, "less than or equal to 590"),
        ({"form": "ul3"}, "'oig' or 'ul2'"),
    ],
)
def test_options_that_mean_nothing_are_refused(values, message):
    with pytest.raises(ValidationError, match=re.escape(message)):
        FillIn(**values)


def books(shared_data: Path, n: int) -> list[str]:
    """The first 300,000 characters of some novels."""
    path = shared_data / "books" / "rp_book_train.jsonl.zst"
    with pa.input_stream(str(path), compression="zstd") as stream:
        records = stream.read(8_000_000).split(b"\n")[:n]
    return [json.loads(record)["text"][:300_000] for record in records]


def test_real_books_are_denoised_exactly_and_at_the_papers_rates(shared_data):
    hidden, total = Counter(), Counter()
    options = FillIn(form="ul2", mix=Mix(r=2, s=1, x=4))
    for i, text in enumerate(books(shared_data, 8)):
        rendered = fill_in(text, options=options, rng=random.Random(i))
        end = 0
        for start, stop in rendered.answers:
            before = rendered.text[end:start].removeprefix("\n\n" if end else "")
            answer = rendered.text[start:stop]
            marks = len(re.findall("<extra_id_\\d+>", answer))
            visible = len(re.sub("<extra_id_\\d+>", " ", before).split()) - 1
            spans = len(re.sub("<extra_id_\\d+>", " ", answer).split())
            assert marks <= 99
            hidden[before[:5]] += spans
            total[before[:5]] += visible + spans
            end = stop
    assert hidden[MODES["r"]] / total[MODES["r"]] == pytest.approx(0.15, rel=0.03)
    assert hidden[MODES["s"]] / total[MODES["s"]] == pytest.approx(0.25, rel=0.03)
    assert hidden[MODES["x"]] / total[MODES["x"]] == pytest.approx(3 * 0.5 / 4 + 0.15 / 4, rel=0.05)
    assert total[MODES["r"]] / sum(total.values()) == pytest.approx(2 / 7, rel=0.1)
