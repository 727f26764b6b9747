"""The three layers by which the widget of napari shows an image or volume: the image, its label, the uncertainty."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from napari.layers import Labels
from napari.utils import DirectLabelColormap

from universeg_jax.annotation import layers
from universeg_jax.annotation.project import Label
from universeg_jax.errors import UserError
from universeg_jax.prediction.corrections import UNSAID

OWN = IMAGE, LABEL, UNCERTAINTY = tuple(f"UniverSeg {name}" for name in ("image", "label", "uncertainty"))


class Screen:
    """What the widget put onto a viewer; napari's brush, fill and eraser change the label."""

    def __init__(self, viewer: Any) -> None:
        self.viewer = viewer
        self.name = ""  # of the image or volume
        self._put = np.zeros(0, np.int32)  # the label as it was put there last, without later strokes
        self._said = np.zeros(0, np.int32)  # ids of earlier strokes; UNSAID elsewhere

    def show(self, view: layers.View, labels: Mapping[int, Label]) -> None:
        """Shows an image or volume with its accepted labels instead of the one before."""
        self.name = ""
        for name in OWN:
            if name in self.viewer.layers:
                self.viewer.layers.remove(name)
        zeros = np.zeros(view.image.shape, np.float32)
        look = {"colormap": "inferno", "opacity": 0.6, "blending": "additive", "contrast_limits": (0.0, 1.0)}
        self.viewer.add_image(view.image, name=IMAGE, scale=view.scale)
        self.viewer.add_image(zeros, name=UNCERTAINTY, scale=view.scale, visible=False, **look)
        layer = self.viewer.add_labels(view.labels.copy(), name=LABEL, scale=view.scale, opacity=0.5)
        colours: dict[int | None, Any] = dict.fromkeys((None, 0), (0, 0, 0, 0))
        colours |= {i: (*np.array(label.colour) / 255, 1.0) for i, label in labels.items()}
        layer.colormap = DirectLabelColormap(color_dict=colours)
        layer.selected_label = min(labels)
        self._put = view.labels.copy()
        self._said = np.full_like(view.labels, UNSAID)
        self.viewer.layers.selection.active = layer
        self.viewer.reset_view()
        self.name = view.name

    def corrections(self, where: Any) -> np.ndarray:
        """Ids that a person painted or erased there since the image came, or was accepted; else UNSAID."""
        return layers.corrections_of(self._put[where], self.label().data[where], self._said[where])

    def put(self, where: Any, mask: np.ndarray, uncertainty: np.ndarray | None) -> None:
        """Puts a prediction there; pixels that a person changed stay."""
        label, said = self.label(), self.corrections(where)
        changed = label.data.copy()
        changed[where] = np.where(said == UNSAID, mask, said)
        self._put[where], self._said[where] = changed[where], said
        label.data = changed
        if uncertainty is not None:
            layer = self.viewer.layers[UNCERTAINTY]
            values = layer.data.copy()
            values[where] = uncertainty
            layer.data = values

    def keep(self, where: Any) -> None:
        """Takes the label as it is now for what was put there: it was accepted."""
        self._put[where], self._said[where] = self.label().data[where], UNSAID

    def label(self) -> Labels:
        """The layer. Raises UserError where the user removed it."""
        if LABEL not in self.viewer.layers:
            name, self.name = self.name, ""
            raise UserError(f"the layer {LABEL!r} is gone: click {name} in the list to show it again")
        return self.viewer.layers[LABEL]

    def set_editable(self, editable: bool) -> None:
        if LABEL in self.viewer.layers:
            self.viewer.layers[LABEL].editable = editable
