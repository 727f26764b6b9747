"""The public interface for a user's type checker: complete signatures, and results with known fields."""

import textwrap

from mypy import api

USE = """
    from pathlib import Path

    import numpy as np
    from universeg_jax import Predictor
    from universeg_jax.checkpoints import store
    from universeg_jax.evaluation.runner import evaluate_checkpoint
    from universeg_jax.evaluation.cases import Settings
    from universeg_jax.export.jax_export import load_exported
    from universeg_jax.model.universeg import UniverSeg
    from universeg_jax.prediction.result import Prediction
    from universeg_jax.training.loop import train_and_evaluate

    predictor: Predictor = Predictor.from_pretrained("small")
    segment = predictor.for_support([np.zeros((9, 9))], ["label.png"], support_size=4, tiles=2)
    prediction: Prediction = segment("new.png")
    mask: np.ndarray = prediction.mask
    warnings: tuple[str, ...] = tuple(prediction.warnings)
    model = UniverSeg(encoder_blocks=(32, 32), form="plain")
    params, config = store.load(Path("runs/mine"))
    state = train_and_evaluate(config, "runs/mine")
    steps = int(state.step)
    summary: dict[str, object] = evaluate_checkpoint("small", "data", ["mine"], "", Settings((1,), (1,)), Path("out"))
    exported = load_exported("model.zip")
"""
WRONG = """
    prediction.masks
    Settings(support_sizes="16")
    train_and_evaluate(config)
    UniverSeg(forms="plain")
"""


def test_the_public_interface_is_typed(tmp_path, pytestconfig):
    file = tmp_path / "use.py"
    file.write_text(textwrap.dedent(USE) + textwrap.dedent(WRONG))
    options = (
        "--strict",
        "--ignore-missing-imports",
        "--follow-imports=silent",
        f"--cache-dir={pytestconfig.cache.mkdir('mypy')}",
    )
    output, failure, _ = api.run([*options, str(file)])
    assert not failure
    first_wrong = 1 + len(textwrap.dedent(USE).splitlines()) + 1
    errors = [line for line in output.splitlines() if ": error: " in line]
    places = {int(line.removeprefix(str(file)).split(":")[1]) for line in errors}
    assert places == set(range(first_wrong, first_wrong + 4)), output
