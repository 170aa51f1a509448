import http.client
import json
import socket
import struct
import threading
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wsi_pipeline.errors import ViewError
from wsi_pipeline.heatmaps.files import read_heatmap
from wsi_pipeline.inference.scores import read_scores, write_scores
from wsi_pipeline.layout import RunFolder
from wsi_pipeline.viewer.answers import Answers
from wsi_pipeline.viewer.review import Reviews
from wsi_pipeline.viewer.server import Viewer
from wsi_pipeline.viewer.shown_run import ShownRun
from wsi_pipeline.viewer.shown_slide import PATCH


class Client:
    """Asks a viewer that runs in a thread."""

    def __init__(self, run):
        folder = RunFolder(run)
        self.viewer = Viewer(Answers(ShownRun(folder), Reviews(folder)))
        self.address = self.viewer.address
        threading.Thread(target=self.viewer.serve_forever, daemon=True).start()
        self.connection = http.client.HTTPConnection("127.0.0.1", self.address.port, timeout=60)

    def ask(self, path, *, method="GET", body=None, token=None, **headers):
        token = self.address.token if token is None else token
        self.connection.request(method, f"/{token}/{path}", body, headers)
        answer = self.connection.getresponse()
        return answer.status, answer.read(), answer.headers

    def json(self, path):
        status, body, _ = self.ask(path)
        assert status == 200, body
        return json.loads(body)

    def close(self):
        self.connection.close()
        self.viewer.shutdown()
        self.viewer.server_close()


@pytest.fixture
def client(copy):
    one = Client(copy / "run")
    yield one
    one.close()


@pytest.fixture(scope="module")
def reading(finished):
    one = Client(finished / "run")
    yield one
    one.close()


class TestWhoIsServed:
    def test_only_this_machine_is_listened_to(self, reading):
        assert reading.viewer.server_address[0] == "127.0.0.1"

    @pytest.mark.parametrize("token", ["", "x", "../", "%00"])
    def test_nothing_is_served_without_the_token(self, reading, token):
        for path in ("", "viewer.js", "api/run", "tile/s5/0/0/0", "thumbnail/s5"):
            status, body, _ = reading.ask(path, token=token)
            assert status == 403
            assert "wsi-pipeline view printed" in json.loads(body)["error"]

    def test_a_page_of_another_name_for_this_machine_gets_nothing(self, reading):
        status, body, _ = reading.ask("api/run", Host="evil.example")
        assert (status, json.loads(body)["error"]) == (403, "only this machine is served")

    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": "http://evil.example", "Content-Type": "application/json"},
            {"Content-Type": "text/plain"},
        ],
    )
    def test_other_pages_cannot_change_a_review(self, client, copy, headers):
        body = json.dumps({"add": {"points": [[0, 0], [1, 0], [1, 1]], "verdict": "right"}})
        status, _, _ = client.ask("api/review/s5", method="POST", body=body, **headers)
        assert status == 403
        assert not (copy / "run" / "review").exists()

    @pytest.mark.parametrize(
        "path",
        [
            "../manifest.csv",
            "api/slide/..%2Fs5",
            "api/slide/%2Fetc%2Fpasswd",
            "map/s5/..%2F..%2Fdata/scores",
            "map/s5/patchnet/..%2Fs5",
            "api/model/s5/..%2F..",
            "patches/s5?model=..%2F..",
            "tile/s5/0/0/-1",
            "tile/s5/99/0/0",
            "tile/s5/0/0/9999999999999999999",
            "patch/s5/100000",
            "api/at/s5?x=nan&y=0",
            "api/at/s5",
            "run.json",
            "slides.csv",
        ],
    )
    def test_only_what_is_named_in_the_run_is_served(self, reading, path):
        status, body, _ = reading.ask(path)
        assert status == 404
        assert list(json.loads(body)) == ["error"]

    def test_no_answer_names_a_folder_of_this_machine(self, client, copy):
        (copy / "data" / "s4.tif").unlink()
        for path in ("", "api/run", "api/slide/s5", "api/slide/s4", "api/model/s5/patchnet", "x"):
            _, body, headers = client.ask(path)
            assert str(copy).encode() not in body
            assert headers["Cache-Control"] == "no-store"
            assert "default-src 'none'" in headers["Content-Security-Policy"]

    def test_the_message_of_a_damaged_file_names_no_folder(self, client, copy):
        """That of a score file did, and came with every click."""
        (copy / "run/scores/patchnet/s4.h5").write_bytes(b"damaged")
        assert len(client.json("api/run")["slides"]) == 6
        _, body, _ = client.ask("patches/s4?model=patchnet")
        assert json.loads(body)["error"].startswith("scores/patchnet/s4.h5: damaged")
        found = client.json("api/at/s4?x=100&y=100")
        assert found["problems"] == [json.loads(body)["error"]]
        assert copy.name.encode() not in body
        assert found["patches"], "a click still finds the patch"
        assert found["values"]["patchnet"]["scores"] is not None

    def test_a_damaged_evaluation_leaves_the_rest_as_it_is(self, client, copy):
        """One damaged table, and the viewer showed nothing at all."""
        folder = copy / "run/evaluation/patchnet"
        for name, content in (("metrics.json", b"{"), ("errors.csv", b"kind\nx\n")):
            before = (folder / name).read_bytes()
            (folder / name).write_bytes(content)
            found = client.json("api/run")
            assert len(found["slides"]) == 6
            assert "evaluation/patchnet is damaged" in found["problems"][0]
            status, body, _ = client.ask("api/model/s5/patchnet")
            assert status == 404, body
            (folder / name).write_bytes(before)
        assert client.json("api/run")["problems"] == []

    def test_a_port_that_is_taken_is_named(self, reading, finished):
        folder = RunFolder(finished / "run")
        with pytest.raises(ViewError, match=f"port {reading.address.port} .*--port"):
            Viewer(Answers(ShownRun(folder), Reviews(folder)), port=reading.address.port)


class TestWhatIsServed:
    def test_the_run(self, reading):
        found = reading.json("api/run")
        assert [slide["id"] for slide in found["slides"]] == [f"s{n}" for n in range(6)]
        [model] = found["models"]
        assert model["name"] == "patchnet"
        assert all(slide["is_there"] for slide in found["slides"])
        assert {bool(slide["scores"]["patchnet"]) for slide in found["slides"][2:]} == {True}

    def test_patches_are_the_stores_and_the_score_files(self, reading, finished):
        _, body, _ = reading.ask("patches/s5?model=patchnet")
        found = np.frombuffer(body, PATCH)
        scores = read_scores(RunFolder(finished / "run").scores("patchnet", "s5"))
        np.testing.assert_array_equal(np.column_stack([found["x"], found["y"]]), scores.coords)
        np.testing.assert_array_equal(found["score"], scores.scores)
        assert {1, 0} == set(found["label"].tolist())

    def test_the_values_at_a_place_are_those_of_the_files(self, reading, finished):
        run = RunFolder(finished / "run")
        heatmap = read_heatmap(run.heatmap("patchnet", "s5"))
        scores = read_scores(run.scores("patchnet", "s5"))
        rng = np.random.default_rng(0)
        for x, y in rng.uniform((0, 0), heatmap.slide_size, (40, 2)):
            found = reading.json(f"api/at/s5?x={x}&y={y}")
            value = heatmap.values[int(y // heatmap.pixel_l0[1]), int(x // heatmap.pixel_l0[0])]
            shown = found["values"]["patchnet"]["scores"]
            assert shown == (None if np.isnan(value) else float(value))
            for patch in found["patches"]:
                assert (scores.coords[patch["row"]] == (patch["x"], patch["y"])).all()
                assert patch["scores"]["patchnet"] == float(scores.scores[patch["row"]])
                assert 0 <= x - patch["x"] < 32
                assert 0 <= y - patch["y"] < 32

    def test_outlines_are_those_of_the_annotation(self, reading):
        [lesion] = reading.json("api/outlines/s5")["lesions"]
        assert sorted({tuple(point) for point in lesion[0]}) == [
            (120.0, 100.0), (120.0, 230.0), (260.0, 100.0), (260.0, 230.0)
        ]  # fmt: skip
        assert reading.json("api/outlines/s4") == {"lesions": [], "notes": []}

    def test_a_slide_that_is_gone_is_a_sentence(self, client, copy):
        (copy / "data" / "s5.tif").unlink()
        status, body, _ = client.ask("api/slide/s5")
        assert status == 404
        assert "s5.tif is not where" in json.loads(body)["error"]
        [gone] = [one["id"] for one in client.json("api/run")["slides"] if not one["is_there"]]
        assert gone == "s5"

    def test_a_heatmap_that_is_being_made_or_damaged_is_a_sentence(self, client, copy):
        path = RunFolder(copy / "run").heatmap("patchnet", "s5")
        path.write_bytes(path.read_bytes()[:200])
        status, body, _ = client.ask("map/s5/patchnet/scores")
        assert status == 404
        assert "s5.ome.tif" in json.loads(body)["error"]
        path.unlink()
        assert client.json("api/slide/s5")["maps"]["patchnet"] == []
        _, body, _ = client.ask("map/s5/patchnet/scores")
        assert "make it with wsi-pipeline heatmap" in json.loads(body)["error"]

    def test_a_heatmap_that_is_replaced_is_read_again(self, client, copy):
        run = RunFolder(copy / "run")
        before = client.json("map/s5/patchnet/scores")
        run.heatmap("patchnet", "s5").write_bytes(run.heatmap("patchnet", "s4").read_bytes())
        assert client.json("map/s5/patchnet/scores")["high"] != before["high"]

    def test_a_patch_is_explained(self, reading):
        status, body, headers = reading.ask("explain/s5/0/patchnet/saliency")
        assert (status, headers["Content-Type"]) == (200, "image/png")
        assert body.startswith(b"\x89PNG")
        for path, says in (
            ("explain/s5/0/patchnet/cam", "explains"),
            ("explain/s5/0/patchnet/magic", "magic"),
            ("explain/s5/0/vgg16/saliency", "no such model"),
            ("explain/s5/99999/patchnet/saliency", "no patch 99999"),
        ):
            status, body, _ = reading.ask(path)
            assert status == 404
            assert says in json.loads(body)["error"]

    def test_a_review_is_kept(self, client, copy):
        mark = {"points": [[0, 0], [9, 0], [9, 9]], "verdict": "unsure", "note": "<b>?</b>"}
        status, _, _ = client.ask(
            "api/review/s5",
            method="POST",
            body=json.dumps({"add": mark}),
            **{"Content-Type": "application/json"},
        )
        assert status == 200
        assert (copy / "run" / "review" / "s5.geojson").is_file()
        [feature] = client.json("api/review/s5")["features"]
        assert feature["properties"]["name"] == "<b>?</b>"


class TestReport:
    def test_it_is_served_without_access_to_the_viewer(self, client, copy):
        status, body, headers = client.ask("report.html")
        assert status == 200
        assert body == (copy / "run/report.html").read_bytes()
        assert headers["Content-Security-Policy"].startswith("sandbox allow-scripts ")
        assert "allow-same-origin" not in headers["Content-Security-Policy"]

        (copy / "run/report.html").unlink()
        status, body, _ = client.ask("report.html")
        assert status == 404
        assert "wsi-pipeline report" in json.loads(body)["error"]

    def test_its_pictures_are_served_and_no_other_files(self, client, copy):
        picture = next((copy / "run/heatmaps/patchnet").glob("*.png"))
        assert client.ask(f"heatmaps/patchnet/{picture.name}")[1] == picture.read_bytes()
        for path in (
            "patchnet/s5.ome.tif",
            "patchnet/none.png",
            "..%2F/run.json",
            "patchnet/..%2Fx.png",
        ):
            assert client.ask(f"heatmaps/{path}")[0] == 404

    def test_its_links_lead_to_the_page(self, client):
        status, _, headers = client.ask("view/index.html")
        assert (status, headers["Location"]) == (302, "../")


def test_a_missed_lesion_without_a_scored_patch_has_a_place_on_it(client, copy):
    """It has no position in errors.csv, and no findings of its slide were shown."""
    run = RunFolder(copy / "run")
    slide = ShownRun(run).slide("s5")
    lesions = slide.outlines()["lesions"]
    path = run.evaluation("patchnet") / "errors.csv"
    header = path.read_text().splitlines()[0]
    row = {"kind": "missed_lesion", "rank": "1", "slide_id": "s5", "lesion": "1"}
    path.write_text(f"{header}\n{','.join(row.get(name, '') for name in header.split(','))}\n")
    (error,) = client.json("api/model/s5/patchnet")["errors"]
    ring = np.array(lesions[0][0])
    assert (ring.min(axis=0) <= (error["x"], error["y"])).all()
    assert (ring.max(axis=0) >= (error["x"], error["y"])).all()


def test_a_browser_that_leaves_is_no_error(client, capfd):
    """Its traceback was printed between the lines of the terminal."""
    for _ in range(3):
        with socket.create_connection(("127.0.0.1", client.address.port)) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # reset
            one.sendall(f"GET /{client.address.token}/api/run HTTP/1.1\r\n".encode())
    client.json("api/run")
    time.sleep(0.2)
    assert capfd.readouterr().err == ""


def test_maps_of_a_slide_with_a_longer_id_are_not_taken_for_its_own(finished):
    run = ShownRun(RunFolder(finished / "run"))
    run._longer["s5"] = ["s5.1"]
    slide = run.slide("s5")
    folder = RunFolder(finished / "run").image_maps("patchnet")
    for name in ("s5.1.ome.tif", "s5.1.saliency.ome.tif", "s5.saliency.ome.tif"):
        (folder / name).touch()
    try:
        assert slide.describe()["maps"]["patchnet"] == ["scores", "saliency"]
    finally:
        for name in ("s5.1.ome.tif", "s5.1.saliency.ome.tif", "s5.saliency.ome.tif"):
            (folder / name).unlink()
        run.close()


def test_messages_have_no_folder_of_the_run_its_slides_or_their_parents(finished):
    run = ShownRun(RunFolder(finished / "run"))
    entry = run.entries["s5"]
    run.entries["s5"] = replace(entry, path=Path("/data/s5.svs"), annotation=None)
    for text, shown in {
        "/data/s5.svs: damaged": "s5.svs: damaged",
        f"{finished}/run/tiles/s4.zarr: damaged": "tiles/s4.zarr: damaged",
        f"in {finished.parent}; heatmaps/data/x": "in the folder; heatmaps/data/x",
    }.items():
        assert run.hide_folders(text) == shown
    run.close()


def test_scores_of_other_patches_are_not_shown(client, copy):
    """A slide tiled again, with scores from before: they were those of other patches."""
    run = RunFolder(copy / "run")
    path = run.scores("patchnet", "s5")
    found = read_scores(path)
    assert client.json("api/at/s5?x=100&y=100")["patches"][0]["scores"]
    path.unlink()
    write_scores(path, replace(found, coords=found.coords[::-1].copy()))
    assert client.json("api/at/s5?x=100&y=100")["patches"][0]["scores"] == {}
    records = np.frombuffer(client.ask("patches/s5?model=patchnet")[1], PATCH)
    assert np.isnan(records["score"]).all()
