"""ACDC: short-axis cine MR of 100 training patients, end of diastole and of systole."""

from universeg_jax.data.source import FilePattern, Source
from universeg_jax.readers.volumes import IN_PLANE

SOURCES = (
    Source(
        name="acdc",
        title="Automated Cardiac Diagnosis Challenge",
        modality="cardiac cine MR, short axis",
        labels={1: "right ventricle", 2: "myocardium", 3: "left ventricle"},
        patterns=(
            FilePattern(
                "training/{subject:patient\\d+}/{subject}_frame{frame:\\d+}.nii.gz",
                "training/{subject}/{subject}_frame{frame}_gt.nii.gz",
            ),
        ),
        axes=(IN_PLANE,),  # slices 5 to 10 mm apart
        licence="CC BY-NC-SA 4.0",
        citation="Bernard et al., Deep Learning Techniques for Automatic MRI Cardiac Multi-Structures Segmentation and "
        "Diagnosis: Is the Problem Solved? IEEE TMI 2018.",
        page="https://humanheart-project.creatis.insa-lyon.fr/database/",
    ),
)
