"""MONAI Label's protocol, request by request."""

import email
import json
import time
from io import BytesIO

import nibabel as nib
import numpy as np
import pytest
from fastapi.testclient import TestClient
from PIL import Image

from tests.fixtures import write_nifti
from universeg_jax.annotation.session import Session
from universeg_jax.readers.images import read_label
from universeg_jax.serving import desk as desks
from universeg_jax.serving.guard import Guard, same_text
from universeg_jax.serving.uploads import Uploads, check_kind, check_name


@pytest.fixture
def client(images):
    return TestClient(images.app(), base_url="http://127.0.0.1")


def png(ids: np.ndarray) -> bytes:
    buffer = BytesIO()
    Image.fromarray(ids.astype(np.uint8)).save(buffer, format="PNG")
    return buffer.getvalue()


def submit(client, name, content, kind=".png", **params):
    fields = {"params": json.dumps(params)}
    return client.put("/datastore/label", params={"image": name}, files={"label": (f"x{kind}", content)}, data=fields)


def parts(response) -> dict[str, tuple[str, bytes]]:
    """Name → (file name, content) of a reply in several parts."""
    head = f"Content-Type: {response.headers['content-type']}\r\n\r\n".encode()
    message = email.message_from_bytes(head + response.content)
    found = {}
    for part in message.get_payload():
        name = part.get_param("name", header="content-disposition")
        found[name] = part.get_filename(), part.get_payload(decode=True)
    return found


def test_what_the_server_says_about_itself(client):
    info = client.get("/info/").json()
    assert info["labels"] == ["disc", "ring"]
    assert info["models"]["universeg"]["labels"] == {"disc": 3, "ring": 7}
    assert info["models"]["universeg"]["type"] == "segmentation"
    assert info["models"]["universeg"]["dimension"] == 2
    assert set(info["strategies"]) == {"order", "random", "diverse", "doubt"}
    assert info["trainers"] == {}
    assert "config" not in info  # Slicer asks for an upgrade of the server where there is one
    assert client.get("/auth/").json()["enabled"] is False
    assert client.get("/train/", params={"check_if_running": True}).status_code == 404
    for reply in (client.post("/train/universeg", json={}), client.delete("/train/")):
        assert "nothing needs training" in reply.json()["details"][0]


def test_the_loop_over_http(images, client):
    assert client.post("/infer/universeg", params={"image": "p1_0"}).status_code == 422
    sample = client.post("/activelearning/order", json={"client_id": "a"}).json()
    assert sample["id"] == "p0_0"
    assert sample["name"] == "p0_0.png"
    file = client.get("/datastore/image", params={"image": "p0_0"})
    assert file.content == (images.path / "images/p0_0.png").read_bytes()
    truth = 3 * images.truth["p0_0"]
    assert submit(client, "p0_0", png(truth)).json() == {"image": "p0_0", "label": "p0_0"}
    np.testing.assert_array_equal(read_label(images.path / "labels/p0_0.png"), truth)
    reply = client.post("/infer/universeg", params={"image": "p1_0"}, data={"params": "{}"})
    found = parts(reply)
    expected = images.desk.assistant.predict("p1_0").mask
    name, content = found["image"]
    assert name == "p1_0.png"
    np.testing.assert_array_equal(read_label(content), expected)
    occurring = {"disc": 3} if expected.any() else {}
    assert json.loads(found["params"][1]) == {"label_names": occurring}
    assert client.post("/infer/universeg", params={"image": "p1_0", "output": "image"}).content == content
    assert client.post("/infer/universeg", params={"image": "p1_0", "output": "json"}).json() == {
        "label_names": occurring
    }
    stats = client.get("/datastore/").json()
    assert stats == {"total": 5, "completed": 1, "label_tags": {"final": 1, "original": 1}}
    objects = client.get("/datastore/", params={"output": "all"}).json()["objects"]
    assert list(objects["p0_0"]["labels"]) == ["final"]
    assert list(objects["p1_0"]["labels"]) == ["original"]
    original = client.get("/datastore/label", params={"label": "p1_0", "tag": "original"})
    assert original.content == content
    assert 'filename="p1_0.png"' in original.headers["content-disposition"]
    assert "label of p0_0 accepted" in client.get("/logs/").text


def test_numbers_of_segments_become_ids_of_the_project(volumes):
    """Slicer numbers its segments in their order, and says so in label_info."""
    client = TestClient(volumes.app(), base_url="http://127.0.0.1")
    truth = volumes.truth["scan0"]
    file = volumes.path.parent / "label.nii.gz"
    image = nib.load(volumes.path / "images/scan0.nii.gz")
    nib.save(nib.Nifti1Image(2 * truth, image.affine), file)
    info = [{"name": "tumour", "idx": 2}, {"name": "liver", "idx": 1}]
    assert submit(client, "scan0", file.read_bytes(), ".nii.gz", label_info=info).status_code == 200
    stored = nib.load(volumes.path / "labels/scan0.nii.gz")
    np.testing.assert_array_equal(stored.get_fdata(), 4 * truth)
    np.testing.assert_array_equal(stored.affine, image.affine)
    reply = parts(client.post("/infer/universeg", params={"image": "scan1"}))
    name, content = reply["image"]
    assert name == "scan1.nii.gz"
    (volumes.path.parent / name).write_bytes(content)
    assert nib.load(volumes.path.parent / name).shape == truth.shape
    wrong = submit(client, "scan1", file.read_bytes(), ".nii.gz", label_info=[{"name": "bone", "idx": 2}])
    assert wrong.status_code == 422
    assert "no label 'bone'; it has liver, tumour" in wrong.json()["detail"]
    missing = submit(client, "scan1", file.read_bytes(), ".nii.gz", label_info=[{"name": "liver", "idx": 1}])
    assert "value 2 of the label is not in label_info" in missing.json()["detail"]


def test_an_image_of_one_slice_in_a_volume_format_lies_as_slicer_lays_it(images, client):
    """Slicer shows a PNG with x to the left and y to the back, and saves its labels as NIfTI in that place."""
    truth = 3 * images.truth["p2_0"]
    file = write_nifti(images.path.parent / "x.nii.gz", truth.T[..., None].astype(np.uint8), (-1.0, -1.0, 1.0))
    assert submit(client, "p2_0", file.read_bytes(), ".nii.gz").status_code == 200
    np.testing.assert_array_equal(images.session.mask("p2_0"), truth)


def test_two_clients_get_different_images_while_there_are_several(images, client):
    given = [client.post("/activelearning/order", json={"client_id": str(i)}).json()["id"] for i in range(5)]
    assert sorted(given) == sorted(images.truth)
    assert client.post("/activelearning/order", json={"client_id": "late"}).json()["id"] in images.truth
    assert client.post("/activelearning/order", json={"client_id": "3"}).json()["id"] == given[3]
    for name, truth in images.truth.items():
        submit(client, name, png(3 * truth))
    assert client.post("/activelearning/order").json() == {}
    assert client.post("/activelearning/best", json={}).status_code == 404


def test_sessions_predict_images_that_stay_out_of_the_project(images, client, monkeypatch):
    submit(client, "p0_0", png(3 * images.truth["p0_0"]))
    content = (images.path / "images/p1_0.png").read_bytes()
    created = client.put("/session/", files={"files": ("mine.png", content)}).json()
    assert str(images.path.parent) not in json.dumps(created)
    identity = created["session_id"]
    assert client.get(f"/session/{identity}").json()["name"] == "mine"
    mask = parts(client.post("/infer/universeg", params={"image": "mine", "session_id": identity}))["image"][1]
    np.testing.assert_array_equal(read_label(mask), images.desk.assistant.predict("p1_0").mask)
    direct = client.post("/infer/universeg", files={"file": ("mine.png", content)}, params={"output": "image"})
    assert direct.content == mask
    assert "mine" not in client.get("/datastore/", params={"output": "all"}).json()["objects"]
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 3601)
    assert client.get(f"/session/{identity}").status_code == 404
    assert list(images.uploads.iterdir()) == []


def test_a_removed_session_leaves_no_file(images, client):
    identity = client.put("/session/", files={"files": ("mine.png", png(np.eye(9)))}).json()["session_id"]
    assert len(list(images.uploads.iterdir())) == 1
    assert client.delete(f"/session/{identity}").status_code == 200
    assert list(images.uploads.iterdir()) == []
    assert client.delete(f"/session/{identity}").status_code == 404


def test_an_uploaded_image_joins_the_project(images, client):
    content = (images.path / "images/p1_0.png").read_bytes()
    assert client.put("/datastore/", files={"file": ("x.png", content)}, params={"image": "new"}).json() == {
        "image": "new"
    }
    assert (images.path / "images/new.png").read_bytes() == content
    again = client.put("/datastore/image", files={"file": ("new.png", content)})
    assert again.status_code == 422
    assert "new" in images.session.left()
    assert client.put("/datastore/", files={"file": ("bad.png", b"no image")}).status_code == 422
    assert not (images.path / "images/bad.png").exists()


@pytest.mark.parametrize("name", ["../../evil", "/etc/passwd", "a/b", "..", ".hidden", "a\\b", "", "x" * 101, "a\x00b"])
def test_names_are_never_paths(images, client, name):
    content = (images.path / "images/p1_0.png").read_bytes()
    files = {"file": (f"{name}.png" if name else ".png", content)}
    assert client.put("/datastore/", files=files, params={"image": name}).status_code in (400, 422)
    for method, path, params in (
        ("GET", "/datastore/image", {"image": name}),
        ("GET", "/datastore/label", {"label": name, "tag": "final"}),
        ("POST", "/infer/universeg", {"image": name}),
    ):
        assert client.request(method, path, params=params).status_code in (404, 422)
    assert sorted(f.stem for f in (images.path / "images").iterdir()) == sorted(images.truth)


def test_archives_and_other_types_are_refused(client):
    for name in ("x.zip", "x.tar.gz", "x.gz", "x.mhd", "x", "x.png.exe"):
        reply = client.put("/session/", files={"files": (name, b"PK\x03\x04")})
        assert reply.status_code == 422, name
        assert "is not read here" in reply.json()["detail"]
    reply = client.put("/session/", files={"files": ("x.png", b"x")}, params={"uncompress": True})
    assert "archives are not unpacked" in reply.json()["detail"]


def test_a_wrong_label_changes_nothing(images, client):
    submit(client, "p0_0", png(3 * images.truth["p0_0"]))
    before = (images.path / "labels/p0_0.png").read_bytes()
    for content, kind in (
        (b"broken", ".png"),
        (png(np.eye(4)), ".png"),
        (png(images.truth["p0_0"] + 9), ".png"),
        (b"", ".nii.gz"),
    ):
        assert submit(client, "p0_0", content, kind).status_code == 422
    assert (
        client.put(
            "/datastore/label", params={"image": "p0_0", "tag": "x"}, files={"label": ("x.png", b"")}
        ).status_code
        == 422
    )
    assert submit(client, "p9", png(np.eye(4))).status_code == 404
    assert (images.path / "labels/p0_0.png").read_bytes() == before
    images.session.lock(["p0_0"])
    assert "is locked" in submit(client, "p0_0", png(0 * images.truth["p0_0"])).json()["detail"]


def test_messages_do_not_tell_where_files_lie(images, client):
    (images.path / "images/p3_0.png").write_bytes(b"broken")
    for reply in (submit(client, "p3_0", png(np.eye(4))), submit(client, "p9", png(np.eye(4)))):
        assert str(images.path.parent) not in reply.text
    identity = client.put("/session/", files={"files": ("mine.png", b"broken")}).json()["session_id"]
    submit(client, "p0_0", png(3 * images.truth["p0_0"]))
    for options in ({"params": {"session_id": identity}}, {"files": {"file": ("mine.png", b"broken")}}):
        reply = client.post("/infer/universeg", **options)
        assert reply.status_code == 422
        assert reply.json()["detail"].split(".png: ")[0] in ("image", "upload")
    assert identity not in client.get("/logs/").text


def test_large_requests_are_refused_whatever_they_declare(images):
    client = TestClient(images.app(max_bytes=1000), base_url="http://127.0.0.1")
    assert client.put("/session/", files={"files": ("x.png", bytes(2000))}).status_code == 413

    def chunks():
        yield b'--x\r\nContent-Disposition: form-data; name="files"; filename="x.png"\r\n\r\n'
        yield from [bytes(100)] * 20

    head = {"content-type": "multipart/form-data; boundary=x"}
    assert client.put("/session/", content=chunks(), headers=head).status_code == 413


def test_a_token_is_needed_where_there_is_one(images):
    token = "0123456789abcdef"
    client = TestClient(images.app(token=token), base_url="http://example.org")
    assert client.get("/auth/").json()["enabled"] is True
    for headers in (
        {},
        {"authorization": "Bearer wrong"},
        {"authorization": f"Basic {token}"},
        {"authorization": "Bearer é"},
    ):
        sent = {key: value.encode() for key, value in headers.items()}
        assert client.get("/info/", headers=sent).status_code == 401
    assert client.post("/auth/token", data={"username": "a", "password": "wrong"}).status_code == 401
    given = client.post("/auth/token", data={"username": "a", "password": token}).json()
    bearer = {"authorization": f"{given['token_type']} {given['access_token']}"}
    assert client.get("/info/", headers=bearer).status_code == 200
    assert client.get("/auth/token/valid", headers=bearer).status_code == 200
    assert client.get("/openapi.json").status_code == 401


def test_tokens_are_compared_in_constant_time(monkeypatch):
    asked = []
    monkeypatch.setattr("universeg_jax.serving.guard.hmac.compare_digest", lambda a, b: asked.append((a, b)) or a == b)
    assert same_text("a", "a")
    assert not same_text("b", "a")
    assert len(asked) == 2


def test_pages_of_other_sites_reach_nothing(images, client):
    assert client.get("/info/", headers={"host": "evil.example"}).status_code == 403
    assert client.get("/info/", headers={"origin": "http://evil.example"}).status_code == 403
    assert client.get("/info/", headers={"origin": "http://127.0.0.1:3000"}).status_code == 200
    assert Guard(None).refusal("/info/", {"host": "[::1]:8000"}) == (0, "")
    assert Guard(None).refusal("/info/", {"host": "localhost:8000", "content-length": "x"})[0] == 400


def test_too_many_waiting_predictions_are_told_so(images, client, monkeypatch):
    monkeypatch.setattr(desks, "MAX_WAITING", 0)
    assert client.post("/infer/universeg", params={"image": "p1_0"}).status_code == 429


def test_labels_accepted_over_http_are_there_after_a_restart(images, client):
    for name, truth in images.truth.items():
        submit(client, name, png(3 * truth))
    images.session.close()
    with Session(images.path) as session:
        assert session.left() == []
        for name, truth in images.truth.items():
            np.testing.assert_array_equal(session.mask(name), 3 * truth)
        session.undo()


def test_uploads_check_kinds_and_names(tmp_path):
    assert check_kind("a\\b.NII.GZ", (".nii.gz",)) == ".nii.gz"
    assert check_name("case_1.0-b") == "case_1.0-b"
    uploads = Uploads(tmp_path)
    files = [(f"{i}.dcm", BytesIO(b"x")) for i in range(3)]
    identity, upload = uploads.add(files, expiry=10**9)
    assert upload.expiry == 86400
    assert len(list((tmp_path / identity).iterdir())) == 3
