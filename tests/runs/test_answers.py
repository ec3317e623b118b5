"""What a model answered survives the tables of a run: text, action tokens with bins and units, chunks."""

from __future__ import annotations

import numpy as np

from tests.models import tiny
from vlascope.models import Response, load
from vlascope.runs.tables import (
    response_from_record,
    response_record,
    responses_schema,
    table_from_records,
)


def test_every_field_of_an_answer_is_saved():
    chunk = np.arange(15, dtype=np.float32).reshape(5, 3) / 7
    given = Response(
        text="go",
        token_ids=(7, 9),
        token_texts=("go", "<act>"),
        action=chunk[0],
        action_names=("dx", "dy", "grip"),
        action_chunk=chunk,
        action_ids=(9,),
        action_bins=(2,),
        flags=("length_limit",),
    )
    records = [response_record(given, index=3), response_record(Response(text="no"), index=4)]
    rows = [response_from_record(r) for r in table_from_records(records, responses_schema()).to_pylist()]
    assert rows[0].item == 3 and rows[1].action_chunk is None and rows[1].action_bins == ()
    for name in Response.__dataclass_fields__:
        np.testing.assert_array_equal(getattr(rows[0], name), getattr(given, name), err_msg=name)
    assert rows[0].action_chunk is not None and rows[0].action_chunk.dtype == np.float32


def test_runs_without_the_newer_columns_are_read():
    record = response_record(Response(text="old"), index=0)
    del record["action_chunk"], record["action_bins"]
    assert response_from_record(record).text == "old"


def test_bins_are_numbered_from_the_lowest_value():
    model = load(tiny.llava(), processor=tiny.llava_processor())
    bins = model._family.bins
    low, high = np.array(bins.low), np.array(bins.high)
    assert bins.numbers(bins.encode(low)) == (0,) * 4
    assert set(bins.numbers(bins.encode(high))) == {255}
    for answer in model.respond(tiny.items(3), max_new_tokens=4):
        assert answer.action_bins == tuple(bins.vocab_size - 1 - i for i in answer.action_ids)
