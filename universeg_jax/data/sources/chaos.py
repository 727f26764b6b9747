"""CHAOS: livers in CT, and four abdominal organs in two sequences of MR, as DICOM with one label image per slice."""

from universeg_jax.data.source import FilePattern, Source
from universeg_jax.readers.volumes import IN_PLANE

LICENCE = "CC BY-NC-SA 4.0"
CITATION = (
    "Kavur et al., CHAOS Challenge: Combined (CT-MR) Healthy Abdominal Organ Segmentation. Medical Image Analysis 2021."
)
PAGE = "https://zenodo.org/records/3431873"
ORGANS = {1: "liver", 2: "right kidney", 3: "left kidney", 4: "spleen"}
VALUES = tuple(
    (i, tuple(range(low, high))) for i, low, high in ((1, 55, 71), (2, 110, 136), (3, 175, 201), (4, 240, 256))
)

SOURCES = (
    Source(
        name="chaos_ct",
        title="Combined Healthy Abdominal Organ Segmentation, CT",
        modality="abdominal CT",
        labels={1: "liver"},
        patterns=(FilePattern("CT/{subject:\\d+}/DICOM_anon/", {1: "CT/{subject}/Ground/"}),),
        licence=LICENCE,
        citation=CITATION,
        page=PAGE,
    ),
    Source(
        name="chaos_mr",
        title="Combined Healthy Abdominal Organ Segmentation, MR",
        modality="abdominal MR",
        labels=ORGANS,
        patterns=(
            *(
                FilePattern(
                    f"MR/{{subject:\\d+}}/T1DUAL/DICOM_anon/{phase}/",
                    "MR/{subject}/T1DUAL/Ground/",
                    f"abdominal MR T1 {name}",
                    values=VALUES,
                )
                for phase, name in (("InPhase", "in phase"), ("OutPhase", "out of phase"))
            ),
            FilePattern(
                "MR/{subject:\\d+}/T2SPIR/DICOM_anon/",
                "MR/{subject}/T2SPIR/Ground/",
                "abdominal MR T2 SPIR",
                values=VALUES,
            ),
        ),
        axes=(IN_PLANE,),  # slices 5 to 9 mm apart
        licence=LICENCE,
        citation=CITATION,
        page=PAGE,
    ),
)
