"""A project that is served."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.annotation.fixtures import image_project, volume_project
from universeg_jax.annotation.assistant import Assistant
from universeg_jax.annotation.session import Session
from universeg_jax.serving.desk import Desk


@dataclass
class Served:
    path: Path
    truth: dict[str, np.ndarray]
    session: Session
    desk: Desk
    uploads: Path

    def app(self, **options: Any) -> Any:
        from universeg_jax.serving.app import make_app

        return make_app(self.desk, self.uploads, **options)


def _serve(tmp_path, predictor, project, **options):
    path, truth = project(tmp_path, **options)
    (tmp_path / "uploads").mkdir()
    session = Session(path)
    return Served(path, truth, session, Desk(session, Assistant(session, predictor)), tmp_path / "uploads")


@pytest.fixture
def images(tmp_path, predictor):
    served = _serve(tmp_path, predictor, image_project, labels={3: "disc", 7: "ring"})
    yield served
    served.desk.close()
    served.session.close()


@pytest.fixture
def volumes(tmp_path, predictor):
    served = _serve(tmp_path, predictor, volume_project, shape=(20, 24, 5), count=2, labels={1: "liver", 4: "tumour"})
    yield served
    served.desk.close()
    served.session.close()
