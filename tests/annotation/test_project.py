"""The settings of an annotation project."""

import pytest

from universeg_jax.annotation.project import parse_labels
from universeg_jax.errors import UserError


@pytest.mark.parametrize(
    ("text", "labels"),
    [
        ("liver", {1: "liver"}),
        ("liver, tumour", {1: "liver", 2: "tumour"}),
        ("1, 3=", {1: "label 1", 3: "label 3"}),
        ("2=left lung,5=right = lung", {2: "left lung", 5: "right = lung"}),
    ],
)
def test_labels_are_parsed(text, labels):
    assert parse_labels(text) == labels


@pytest.mark.parametrize("text", ["", " , ", "0=x", "a=liver", "1=a, 1=b", "-1=a"])
def test_labels_that_mean_nothing_are_refused(text):
    with pytest.raises(UserError, match="1=liver,2=tumour"):
        parse_labels(text)
