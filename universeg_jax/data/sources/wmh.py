"""WMH: hyperintensities of white matter in FLAIR, with T1 on the same grid; 2 marks other pathology."""

from universeg_jax.data.source import FilePattern, Source
from universeg_jax.readers.volumes import IN_PLANE

SOURCES = (
    Source(
        name="wmh",
        title="White Matter Hyperintensities Segmentation Challenge",
        modality="brain MR",
        labels={1: "white matter hyperintensity"},
        patterns=tuple(
            FilePattern(
                f"{{site:Utrecht|Singapore|Amsterdam/\\w+}}/{{subject:\\d+}}/pre/{sequence}.nii.gz",
                "{site}/{subject}/wmh.nii.gz",
                f"brain MR {sequence}",
                values=((1, (1,)),),
                ignored=(2,),
            )
            for sequence in ("FLAIR", "T1")
        ),
        axes=(IN_PLANE,),
        licence="CC BY-NC 4.0",
        citation="Kuijf et al., Standardized Assessment of Automatic Segmentation of White Matter Hyperintensities and "
        "Results of the WMH Segmentation Challenge. IEEE TMI 2019.",
        page="https://dataverse.nl/dataset.xhtml?persistentId=doi:10.34894/AECRSD",
    ),
)
