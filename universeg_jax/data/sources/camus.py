"""CAMUS: echocardiograms of 500 patients, two views at the end of diastole and of systole."""

from universeg_jax.data.source import FilePattern, Source
from universeg_jax.readers.volumes import IN_PLANE

SOURCES = (
    Source(
        name="camus",
        title="Cardiac Acquisitions for Multi-structure Ultrasound Segmentation",
        modality="echocardiography",
        labels={1: "left ventricle", 2: "myocardium", 3: "left atrium"},
        patterns=tuple(
            FilePattern(
                f"{{subject:patient\\d+}}/{{subject}}_{view}_{{phase:ED|ES}}.nii.gz",
                f"{{subject}}/{{subject}}_{view}_{{phase}}_gt.nii.gz",
                subset=view,
            )
            for view in ("2CH", "4CH")
        ),
        axes=(IN_PLANE,),
        licence="CC BY-NC-SA 4.0",
        citation="Leclerc et al., Deep Learning for Segmentation Using an Open Large-Scale Dataset in 2D "
        "Echocardiography. IEEE TMI 2019.",
        page="https://www.creatis.insa-lyon.fr/Challenge/camus/",
    ),
)
