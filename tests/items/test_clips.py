"""Clips of successive frames, cut inside episodes."""

from __future__ import annotations

import numpy as np
import pytest

import vlascope as vs
from vlascope.errors import InputError
from vlascope.items.clips import clips


@pytest.fixture(scope="module")
def source():
    return vs.items("demo:pick")


def test_clips_stay_inside_their_episode(source):
    made = clips(source, n_frames=4, stride=3, hop=5)
    lengths = source.episode_lengths
    assert len(made) == sum(max(0, -(-(n - 9) // 5)) for n in lengths) and len(lengths) > 1
    for index in (0, 1, len(made) - 1):
        item = made[index]
        frames = [
            f for f in source if f.episode == item.episode and f.step in range(item.step, item.step + 10, 3)
        ]
        assert len(frames) == 4 and item.item_id == f"{frames[0].item_id}+4"
        for ours, frame in zip(item.images, frames, strict=True):
            np.testing.assert_array_equal(ours, frame.images[0])
    assert len({item.item_id for item in made}) == len(made)
    assert made[0].cameras == ("t0", "t1", "t2", "t3")


def test_clips_do_not_overlap_unless_asked(source):
    made = clips(source, n_frames=4, stride=2)
    assert [made[i].step for i in range(3)] == [0, 8, 16]
    assert clips(source, n_frames=4).fingerprint() != clips(source, n_frames=4, stride=2).fingerprint()


def test_what_cannot_be_cut_is_refused(source, tmp_path):
    from PIL import Image

    from vlascope.items import ImageFolder

    longest = max(source.episode_lengths)
    assert len(clips(source, n_frames=longest)) >= 1
    with pytest.raises(InputError, match=f"longest episode.*has {longest}"):
        clips(source, n_frames=longest + 1)
    with pytest.raises(InputError, match="need 1 or more"):
        clips(source, n_frames=0)
    with pytest.raises(InputError, match="no camera 7"):
        clips(source, n_frames=2, camera=7)[0]
    Image.new("RGB", (8, 8)).save(tmp_path / "a.png")
    with pytest.raises(InputError, match="no episodes"):
        clips(ImageFolder(tmp_path), n_frames=2)  # type: ignore[arg-type]
