"""STARE: 20 fundus photographs, vessels by Adam Hoover (first observer)."""

from universeg_jax.data.source import FilePattern, Source

SOURCES = (
    Source(
        name="stare",
        title="Structured Analysis of the Retina",
        modality="colour fundus photography",
        labels={1: "retinal vessel"},
        patterns=(FilePattern("stare-images/{subject:im\\d+}.ppm.gz", {1: "labels-ah/{subject}.ah.ppm.gz"}),),
        licence="research use (none stated)",
        citation="Hoover, Kouznetsova, Goldbaum, Locating Blood Vessels in Retinal Images by Piecewise Threshold "
        "Probing of a Matched Filter Response. IEEE TMI 2000.",
        page="https://cecas.clemson.edu/~ahoover/stare/probing/index.html",
    ),
)
