"""A run of real (tiny, random-weight) model classes holds what the model gives, crash or no crash."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.models import tiny
from tests.runs.fakes import ArraySource, tree
from vlascope.models import load
from vlascope.runs import capture, read_info


@pytest.mark.parametrize("with_answer", [False, True])
def test_llava_resumed_is_bit_identical(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, with_answer: bool
) -> None:
    model = load(tiny.llava(), processor=tiny.llava_processor())
    settings: dict[str, Any] = {
        "sites": ["*", "language.1.q"],
        "batch_size": 2,
        "block_items": 4,
        "max_new_tokens": 5,
        "with_answer": with_answer,
        "quiet": True,
    }
    whole = capture(model, ArraySource(7), out=tmp_path / "whole", **settings)
    real, calls = type(model).capture, []

    def crash(self: Any, *args: Any, **kwargs: Any) -> Any:
        calls.append(1)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(self, *args, **kwargs)

    with monkeypatch.context() as patch:
        patch.setattr(type(model), "capture", crash)
        with pytest.raises(KeyboardInterrupt):
            capture(model, ArraySource(7), out=tmp_path / "r", **settings)
    assert read_info(tmp_path / "r")["status"] == "interrupted"
    run = capture(model, ArraySource(7), out=tmp_path / "r", resume=True, **settings)
    assert tree(tmp_path / "r") == tree(tmp_path / "whole")

    assert run.sites["language.1.q"].width == whole.acts("language.1.q").shape[1]
    language, answer = run.tokens("language"), run.response(5)
    assert answer is not None and len(answer.token_ids) == 5
    texts = language.layout_of(5).text
    assert ("".join(texts[-5:]) == "".join(answer.token_texts)) == with_answer

    item = ArraySource(7)[5]
    alone = model.prepare([item], answers=[answer] if with_answer else None)  # type: ignore[list-item]
    want = model.capture(alone, ["language.1"])["language.1"][0].numpy()
    got = run.acts("language.1")[language.rows_of(5)]
    np.testing.assert_allclose(got, want, atol=1e-5)  # another batch size, another rounding


def test_only_the_layouts_of_the_captured_sites_are_kept(tmp_path: Path) -> None:
    model = load(tiny.clip(), processor=tiny.tokenizer())
    run = capture(model, ArraySource(3, prompt=False), sites="vision.*", out=tmp_path / "r", quiet=True)
    assert run.layouts == ("vision",) and run.responses == []
    assert not list((tmp_path / "r").glob("tokens.text*"))
