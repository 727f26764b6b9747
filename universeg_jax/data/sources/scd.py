"""SCD: the 15 training patients of the Sunnybrook Cardiac Data, contours of the MICCAI 2009 challenge.

The layout is that of the challenge's archives; the publisher's SCD_IMAGES, the same images under other names, are not
read. A contour is a text file of points on one frame of the short-axis series; most frames have none.
"""

from universeg_jax.data.source import FilePattern, Source

SHORT_AXIS = {  # patient → number of the short-axis series among its DICOM files
    "SC-HF-I-1": "0004", "SC-HF-I-2": "0106", "SC-HF-I-4": "0116", "SC-HF-I-40": "0134", "SC-HF-NI-3": "0379",
    "SC-HF-NI-4": "0501", "SC-HF-NI-34": "0446", "SC-HF-NI-36": "0474", "SC-HYP-1": "0550", "SC-HYP-3": "0650",
    "SC-HYP-38": "0734", "SC-HYP-40": "0755", "SC-N-2": "0898", "SC-N-3": "0915", "SC-N-40": "0944",
}  # fmt: skip
CONTOURS = "Sunnybrook Cardiac MR Database ContoursPart3/TrainingDataContours"


def _pattern(patient: str, series: str) -> FilePattern:
    group, _, number = patient.rpartition("-")
    contours = f"{CONTOURS}/{group}-{int(number):02d}/contours-manual/IRCCI-expert/IM-0001-{{frame}}"
    return FilePattern(
        f"challenge_training/{{subject:{patient}}}/IM-{series}-{{frame:\\d+}}.dcm",
        {1: f"{contours}-icontour-manual.txt", 2: f"{contours}-ocontour-manual.txt"},
    )


SOURCES = (
    Source(
        name="scd",
        title="Sunnybrook Cardiac Data",
        modality="cardiac cine MR, short axis",
        labels={1: "left ventricle within the endocardium", 2: "left ventricle within the epicardium"},
        patterns=tuple(_pattern(*each) for each in SHORT_AXIS.items()),
        licence="CC0 1.0",
        open_licence=True,
        citation="Radau et al., Evaluation Framework for Algorithms Segmenting Short Axis Cardiac MRI. MIDAS 2009.",
        page="https://www.cardiacatlas.org/sunnybrook-cardiac-data/",
    ),
)
