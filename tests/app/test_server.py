"""What the server answers is what the run and its cut hold."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image

from vlascope.app.wire import unpack
from vlascope.views.tokens import TokenIndex

pytest.importorskip("fastapi", reason="needs the extra `app`")


def test_state_names_runs_sites_and_colours(client, books):
    state = client.get("/api/state").json()
    (run,) = state["runs"]
    assert [s["name"] for s in run["sites"]] == ["vision.0", "vision.1", "language.0"]
    assert [s["patches"] for s in run["sites"]] == [True, True, False]
    assert run["default_site"] == "vision.1" and run["ks"] == [3, 5]
    assert state["compared"] is False and "NCut" in run["footer"]


def test_items_and_episode(client, books):
    key, run = books[0].key, books[0].run
    found = client.get(f"/api/runs/{key}/items").json()
    assert [i["id"] for i in found["items"]] == [row.item_id for row in run.items]
    assert found["prompts"][found["items"][2]["prompt"]] == run.items[2].prompt
    assert found["items"][0]["unit"] == "ep0000" and found["items"][0]["outcome"] == "success"
    episode = client.get(f"/api/runs/{key}/episodes/1").json()
    assert episode["items"] == [7, 8] and episode["steps"] == [0, 1]
    assert [s["values"] for s in episode["states"]] == [[7.0, 8.0], [8.0, 9.0], [9.0, 10.0]]
    assert [s["name"] for s in episode["states"]] == ["state 0", "state 1", "state 2"]
    run.info["names"] = {"state": ["x", "y", "gap"]}
    episode = client.get(f"/api/runs/{key}/episodes/1").json()
    assert [s["name"] for s in episode["states"]] == ["x", "y", "gap"]


def test_layout_places_every_token(client, books):
    (book,) = books
    index = TokenIndex(book.cut)
    for site in book.cut.sites:
        part = book.cut.parts[site]
        layout = client.get(f"/api/runs/{book.key}/layout", params={"name": part.layout}).json()
        assert layout["n"] == len(part.token_rows)
        for item in range(book.run.n_items):
            template, start = layout["templates"][layout["template"][item]], layout["starts"][item]
            grids = index.patches(site, item)
            assert len(grids) == len(template["grids"])
            for told, grid in zip(template["grids"], grids, strict=True):
                rows = np.array(told["index"]).reshape(told["rows"], told["cols"]) + start + part.rows.start
                np.testing.assert_array_equal(rows, grid.index_rc)
                np.testing.assert_allclose(told["frame"], grid.frame, atol=1e-3)
            words = index.words(site, item)
            assert [w["text"] for w in template["words"]] == list(words.texts)
            assert [w["token"] + start + part.rows.start for w in template["words"]] == words.index.tolist()


def test_colors_labels_and_another_palette(client, books):
    (book,) = books
    rows = book.cut.parts["vision.1"].rows
    at = f"/api/runs/{book.key}"
    _, (data,) = unpack(client.get(f"{at}/colors?site=vision.1&method=pca&n_eig=6").content)
    np.testing.assert_array_equal(np.frombuffer(data, np.uint8).reshape(-1, 3), book.cut.rgb[rows])
    header, (data,) = unpack(client.get(f"{at}/labels?site=vision.1&k=5").content)
    np.testing.assert_array_equal(np.frombuffer(data, np.uint8), book.cut.labels[5][rows])
    expected = [[int(c[i : i + 2], 16) for i in (1, 3, 5)] for c in header["colors"]]
    np.testing.assert_array_equal(expected, book.cut.cluster_colors(5))
    _, (fewer,) = unpack(client.get(f"{at}/colors?site=vision.1&method=pca&n_eig=3").content)
    assert (
        len(fewer) == len(np.asarray(book.cut.rgb[rows]).reshape(-1))
        and fewer != book.cut.rgb[rows].tobytes()
    )
    assert client.get(f"{at}/colors?site=vision.1&method=pca&n_eig=7").status_code == 400
    assert client.get(f"{at}/labels?site=vision.1&k=4").status_code == 400
    assert client.get(f"{at}/labels?site=vision.9&k=5").status_code == 404


def test_image_is_what_the_model_saw(client, books):
    (book,) = books
    for camera in (0, 1):
        answer = client.get(f"/api/runs/{book.key}/images/3/{camera}")
        assert "immutable" in answer.headers["cache-control"]
        with Image.open(io.BytesIO(answer.content)) as picture:
            np.testing.assert_array_equal(np.array(picture), book.run.image(3, camera))
    assert client.get(f"/api/runs/{book.key}/images/3/2").status_code == 400
    assert client.get(f"/api/runs/{book.key}/images/99/0").status_code == 400


def slow_cosine(rows, query):
    rows, query = rows.astype(np.float64), query.astype(np.float64)
    return rows @ query / np.maximum(np.linalg.norm(rows, axis=1) * np.linalg.norm(query), 1e-30)


def test_similarity_by_concepts_is_the_cosine_of_eigenvectors(client, books):
    (book,) = books
    token = 22
    header, arrays = unpack(
        client.get(f"/api/similar?run={book.key}&site=vision.0&token={token}&n_eig=4").content
    )
    assert [p["site"] for p in header["parts"]] == list(book.cut.sites) and header["exact"]
    vectors = np.asarray(book.cut.eigvecs)[:, :4]
    expected = slow_cosine(vectors, vectors[book.cut.parts["vision.0"].rows.start + token])
    for part, data in zip(header["parts"], arrays, strict=True):
        wanted = np.clip(expected[book.cut.parts[part["site"]].rows], 0, 1) * 255
        assert np.abs(np.frombuffer(data, np.uint8) - wanted).max() <= 0.51


def test_similarity_by_features_is_the_centred_cosine_at_every_layer(client, books):
    (book,) = books
    token = 22
    for site in book.cut.sites:
        book.features[site].prepare()
    url = f"/api/similar?run={book.key}&site=vision.0&token={token}&method=features"
    header, arrays = unpack(client.get(url).content)
    assert [p["site"] for p in header["parts"]] == ["vision.0", "vision.1"]
    assert [p["site"] for p in header["missing"]] == ["language.0"]  # a patch has no place among the words
    for part, data in zip(header["parts"], arrays, strict=True):
        rows = np.asarray(book.run.acts(part["site"])[:], np.float64)
        cut_rows = book.cut.parts[part["site"]].token_rows
        rows = rows - rows.mean(0)
        wanted = np.clip(slow_cosine(rows[cut_rows], rows[cut_rows[token]]), 0, 1) * 255
        assert np.abs(np.frombuffer(data, np.uint8) - wanted).max() <= 1


def test_mask_of_clicks_is_that_of_click(client, books):
    from vlascope.spectral.click import click

    (book,) = books
    clicks = [{"site": "vision.0", "token": 3}, {"site": "vision.1", "token": 40, "positive": False}]
    body = {"clicks": [{"run": book.key, **c} for c in clicks], "n_eig": 6, "threshold": 0.3}
    header, arrays = unpack(client.post("/api/mask", json=body).content)
    start = book.cut.parts["vision.1"].rows.start
    expected = click(
        book.cut.eigvecs, [3], [start + 40], eigenvalues=book.cut.eigenvalues, threshold=0.3
    ).mask(book.cut.eigvecs)
    got = np.concatenate([np.frombuffer(a, np.uint8) for a in arrays]) > 128
    np.testing.assert_array_equal(got, expected)
    assert header["n_in"] == expected.sum() > 0
    both = {"clicks": [{"run": book.key, **clicks[0]}, {"run": book.key, **clicks[0], "positive": False}]}
    both["n_eig"] = 6
    assert client.post("/api/mask", json=both).status_code == 400


def test_labels_are_kept_and_the_last_one_counts(client, tmp_path):
    assert client.get("/api/reviews").json()["reviews"] == {}
    for review in ("failure", "success"):
        answer = client.post("/api/reviews", json={"id": "ep0000", "review": review, "reason": "slipped"})
        assert answer.json()["reviews"] == {"ep0000": {"review": review, "reason": "slipped"}}
    assert (tmp_path / "labels.csv").read_text().count("ep0000") == 2
    assert client.post("/api/reviews", json={"id": "ep0777", "review": "success"}).status_code == 400
    assert client.post("/api/reviews", json={"id": "ep0000", "review": "great"}).status_code == 422


def test_the_page_may_ask_for_every_palette():
    from typing import get_args

    from vlascope.app.questions import PaletteMethod
    from vlascope.palette.palette import METHODS

    assert get_args(PaletteMethod) == METHODS


def test_what_was_measured_about_an_episode(tmp_path):
    from app_runs import client_of, cut_of, make_run

    from vlascope.app import create_app, open_books
    from vlascope.measure import EpisodeSeries, Finding, keep

    run = make_run(tmp_path / "run")
    cut_of(run)
    told = EpisodeSeries(episode=1, site="vision.1", items=(7, 8), steps=(0, 1), change_points=(1,),
                         anomaly=(0.25, float("nan")), threshold=0.5, alarm=1)  # fmt: skip
    keep(run, Finding(measure="monitor", title="t", verdict="v", rows=(), episodes=(told,)))
    books = open_books([run])
    client = client_of(create_app(books))
    found = client.get(f"/api/runs/{books[0].key}/episodes/1/measured").json()
    assert found == {"episode": 1, "changes": [1], "changes_site": "vision.1", "anomaly": [0.25, None],
                     "anomaly_site": "vision.1", "threshold": 0.5, "alarm": 1}  # fmt: skip
    none = client.get(f"/api/runs/{books[0].key}/episodes/0/measured").json()
    assert none["changes"] is None and none["anomaly"] is None
    assert client.get(f"/api/runs/{books[0].key}/episodes/9/measured").status_code == 400
