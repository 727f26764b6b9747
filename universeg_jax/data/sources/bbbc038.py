"""BBBC038, stage 1 of the Data Science Bowl 2018: nuclei, one mask per nucleus."""

from universeg_jax.data.source import FilePattern, Source

SOURCES = (
    Source(
        name="bbbc038",
        title="2018 Data Science Bowl, stage 1 training set",
        modality="fluorescence, histology and bright-field microscopy",
        labels={1: "nucleus"},
        patterns=(FilePattern("stage1_train/{case}/images/{case}.png", {1: "stage1_train/{case}/masks/*.png"}),),
        subjects_identifiable=False,
        licence="CC0 1.0",
        open_licence=True,
        citation="Caicedo et al., Nucleus segmentation across imaging experiments: the 2018 Data Science Bowl. Nature "
        "Methods 2019.",
        page="https://bbbc.broadinstitute.org/BBBC038",
        verified=True,
    ),
)
