"""MONAI Label's own client, of the package monailabel, over real HTTP; skipped where it is not installed.

pip install --no-deps monailabel==0.8.5
"""

import socket
import threading
import time
import warnings

import nibabel as nib
import numpy as np
import pytest
import uvicorn

with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # it imports cgi
    clients = pytest.importorskip("monailabel.client.client", reason="pip install --no-deps monailabel==0.8.5")


@pytest.fixture
def serve():
    """serve(app) → its address."""
    running = []

    def start(app):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        server = uvicorn.Server(uvicorn.Config(app, port=port, log_level="error"))
        thread = threading.Thread(target=server.run)
        thread.start()
        running.append((server, thread))
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.01)
        return f"http://127.0.0.1:{port}"

    yield start
    for server, thread in running:
        server.should_exit = True
        thread.join()


def test_the_loop_of_slicer_by_its_client(volumes, serve, tmp_path):
    client = clients.MONAILabelClient(serve(volumes.app()), tmpdir=str(tmp_path), client_id="slicer")
    assert client.auth_enabled() is False
    info = client.info()
    assert info["labels"] == ["liver", "tumour"]
    strategy = next(iter(info["strategies"]))
    sample = client.next_sample(strategy, {})
    name = sample["id"]
    image = nib.load(volumes.path / f"images/{name}.nii.gz")
    label = tmp_path / "drawn.nii.gz"
    nib.save(nib.Nifti1Image(2 * volumes.truth[name], image.affine), label)
    segments = [{"name": "liver", "idx": 1}, {"name": "tumour", "idx": 2}]
    assert client.save_label(name, str(label), params={"label_info": segments}) == {"image": name, "label": name}
    stored = client.download_label(name, "final")
    np.testing.assert_array_equal(nib.load(stored).get_fdata(), 4 * volumes.truth[name])
    other = client.next_sample(strategy, {})["id"]
    assert other != name
    mask, params = client.infer("universeg", other, {})
    assert nib.load(mask).shape == volumes.truth[other].shape
    np.testing.assert_array_equal(nib.load(mask).affine, nib.load(volumes.path / f"images/{other}.nii.gz").affine)
    assert set(params["label_names"]) <= {"tumour"}
    assert client.datastore()["objects"][other]["labels"].keys() == {"original"}
    created = client.create_session(str(volumes.path / f"images/{other}.nii.gz"))
    assert client.get_session(created["session_id"])["name"] == other
    in_session, _ = client.infer("universeg", "whatever", {}, session_id=created["session_id"])
    assert nib.load(in_session).shape == volumes.truth[other].shape
    client.remove_session(created["session_id"])
    with pytest.raises(clients.MONAILabelClientException):
        client.get_session(created["session_id"])
    assert client.upload_image(str(volumes.path / f"images/{other}.nii.gz"), "third") == {"image": "third"}
    assert "nothing needs training" in client.train_start("universeg", {})["details"][0]
    assert client.train_status(check_if_running=True) is False
    assert "nothing needs training" in client.train_stop()["details"][0]
    with pytest.raises(clients.MONAILabelClientException):
        client.infer("other_model", other, {})


def test_a_token_by_the_clients_own_means(images, serve, tmp_path):
    token = "0123456789abcdef"
    client = clients.MONAILabelClient(serve(images.app(token=token)), tmpdir=str(tmp_path))
    assert client.auth_enabled() is True
    assert client.auth_valid_token() is False
    with pytest.raises(clients.MONAILabelClientException):
        client.info()
    client.update_auth(client.auth_token("anybody", token))
    assert client.auth_valid_token() is True
    assert client.info()["labels"] == ["disc", "ring"]
