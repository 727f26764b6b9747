"""Names of files: order and extensions."""

from hypothesis import given
from hypothesis import strategies as st

from universeg_jax.readers.file_names import extension, natural_order


def test_numbers_in_names_are_sorted_by_value():
    assert natural_order(["p10_2", "p2_10", "p2_9", "p10_1", "p", "10", "9"]) == [
        "9", "10", "p", "p2_9", "p2_10", "p10_1", "p10_2",
    ]  # fmt: skip


@given(names=st.lists(st.text("p_019é²", max_size=6), unique=True), seed=st.randoms())
def test_the_order_does_not_depend_on_the_input_order(names, seed):
    shuffled = list(names)
    seed.shuffle(shuffled)
    assert natural_order(shuffled) == natural_order(names)


def test_extensions():
    assert [extension(name) for name in ("a.nii.gz", "b.NII", "c.tar.gz", "d")] == [".nii.gz", ".nii", ".gz", ""]
