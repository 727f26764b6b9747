"""The whole chain on real data and the full-size vectors, which are not part of the project.

UNIVERSEG_SHARED=FOLDER python -m pytest -m shared
"""

import json
import os
from pathlib import Path

import jax
import numpy as np
import pytest

from tests.fixtures import tiny_config
from tests.model.test_universeg import FORMS, from_release
from universeg_jax.cli import main
from universeg_jax.data.dataset import list_datasets, open_dataset
from universeg_jax.data.tasks import task_table
from universeg_jax.evaluation.cases import Settings
from universeg_jax.evaluation.runner import evaluate_checkpoint
from universeg_jax.model.factory import build_model
from universeg_jax.training.loop import train_and_evaluate

SHARED = Path(os.environ.get("UNIVERSEG_SHARED", "absent"))
pytestmark = [
    pytest.mark.shared,
    pytest.mark.skipif(not SHARED.is_dir(), reason="UNIVERSEG_SHARED names no folder with data/ and golden/"),
]


@pytest.mark.parametrize(("form", "chunk"), FORMS)
def test_full_size_logits_equal_the_released_architecture(form, chunk):
    arrays = np.load(SHARED / "golden" / "universeg_nf64_s16.npz")
    params = from_release(np.load(SHARED / "golden" / "universeg_nf64_s16_params.npz"))
    model = build_model({}, form=form, support_chunk=chunk)
    logits = jax.jit(model.apply)(
        {"params": params},
        arrays["target_image"].transpose(0, 2, 3, 1),
        arrays["support_images"].transpose(0, 1, 3, 4, 2),
        arrays["support_labels"].transpose(0, 1, 3, 4, 2).astype(np.float32),
    )
    np.testing.assert_allclose(logits.transpose(0, 3, 1, 2), arrays["logits"], atol=1e-5, rtol=0)


@pytest.fixture(scope="module")
def data_dir(tmp_path_factory):
    """The smallest real dataset or two of every role, and one source group."""
    path = tmp_path_factory.mktemp("real")
    splits = json.loads((SHARED / "data" / "splits.json").read_text())
    chosen = {
        "train_open": ["left_atrium_mri", "rings_prostate_glands", "spider_spine_b", "spider_spine_t2"],
        "val": ["emidec_lge", "etis_polyp_mini"],
        "test": ["stare_vessels", "acdc_mini"],
    }
    assert all(set(names) <= set(splits["roles"][role]) for role, names in chosen.items())
    collection = tmp_path_factory.mktemp("collection")
    for names in chosen.values():
        for name in names:
            (collection / name).symlink_to(SHARED / "data" / name)
    groups = [group for group in splits["source_groups"] if set(group) <= set(chosen["train_open"])]
    (collection / "splits.json").write_text(json.dumps({"roles": chosen, "source_groups": groups}))
    assert main(["build", "--collection", str(collection), "--data_dir", str(path)]) == 0
    return path


def test_real_folders_give_usable_tasks(data_dir):
    datasets = [open_dataset(data_dir, name) for name in list_datasets(data_dir)]
    assert len(datasets) == 8
    tasks = task_table(datasets)
    assert {task.dataset for task in tasks if not task.unusable} == {d.meta.name for d in datasets}
    assert {task.label_name for task in tasks if task.dataset == "acdc_mini"} == {
        "right ventricle",
        "myocardium",
        "left ventricle",
    }
    spine = {d.meta.name: d.meta.source_group for d in datasets if d.meta.name.startswith("spider")}
    assert len(set(spine.values())) == 1
    assert "" not in spine.values()


def test_training_evaluation_and_prediction_on_real_data(data_dir, tmp_path):
    config = tiny_config(data_dir, num_steps=4, image_size=32)
    train_and_evaluate(config, tmp_path / "run")
    summary = evaluate_checkpoint(
        str(tmp_path / "run"), str(data_dir), (), "test", Settings((4,), (2,), max_cases=4), tmp_path / "results"
    )
    assert set(summary["datasets"]) == {"stare_vessels", "acdc_mini"}
    assert 0 <= summary["mean_dice"] <= 1
    acdc = SHARED / "data" / "acdc_mini"
    query = min((acdc / "images").iterdir())
    arguments = ["predict", "--checkpoint", str(tmp_path / "run"), "--support", str(acdc), "--queries", str(query)]
    assert main([*arguments, "--out", str(tmp_path / "masks")]) == 0
    assert (tmp_path / "masks" / f"{query.stem}.png").exists()


@pytest.mark.parametrize("name", ["universeg_nf64_s16", "universeg_mixed_s3_grad", "universeg_nf8_ties_grad"])
def test_the_pytorch_model_of_the_benchmarks_is_the_released_architecture(name):
    torch = pytest.importorskip("torch", reason="torch is not installed; the benchmarks compare with it")
    from benchmarks.torch_model import UniverSeg

    arrays = np.load(SHARED / "golden" / f"{name}.npz")
    state = torch.load(SHARED / "golden" / f"{name}.pt", weights_only=True)
    blocks = [
        (len(state[f"enc_blocks.{i}.cross.cross_conv.bias"]), len(state[f"enc_blocks.{i}.target.vmapped.conv.bias"]))
        for i in range(8)
        if f"enc_blocks.{i}.cross.cross_conv.bias" in state
    ]
    decoder = [
        (len(state[f"dec_blocks.{i}.cross.cross_conv.bias"]), len(state[f"dec_blocks.{i}.target.vmapped.conv.bias"]))
        for i in range(len(blocks) - 1)
    ]
    model = UniverSeg(blocks, decoder)
    model.load_state_dict(state)
    inputs = [torch.from_numpy(arrays[key]).float() for key in ("target_image", "support_images", "support_labels")]
    with torch.inference_mode():
        np.testing.assert_allclose(model(*inputs), arrays["logits"], atol=1e-5, rtol=0)
