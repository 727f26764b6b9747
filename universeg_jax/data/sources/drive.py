"""DRIVE: 20 training fundus photographs, vessels by the first observer."""

from universeg_jax.data.source import FilePattern, Source

SOURCES = (
    Source(
        name="drive",
        title="Digital Retinal Images for Vessel Extraction, training set",
        modality="colour fundus photography",
        labels={1: "retinal vessel"},
        patterns=(
            FilePattern(
                "training/images/{subject:\\d+}_training.tif", {1: "training/1st_manual/{subject}_manual1.gif"}
            ),
        ),
        licence="research use (registration)",
        citation="Staal et al., Ridge-based vessel segmentation in color images of the retina. IEEE TMI 2004.",
        page="https://drive.grand-challenge.org/",
        verified=True,  # 4 of its 20 images, as a public repository kept them
    ),
)
