"""PROMISE12: prostates in T2 MR of 50 training patients, as MetaImage headers beside their voxels."""

from universeg_jax.data.source import FilePattern, Source
from universeg_jax.readers.volumes import IN_PLANE

SOURCES = (
    Source(
        name="promise12",
        title="Prostate MR Image Segmentation 2012, training set",
        modality="prostate MR T2w",
        labels={1: "prostate"},
        patterns=(FilePattern("{subject:Case\\d+}.mhd", "{subject}_segmentation.mhd"),),
        axes=(IN_PLANE,),
        licence="CC BY 4.0",
        open_licence=True,
        citation="Litjens et al., Evaluation of prostate segmentation algorithms for MRI: the PROMISE12 challenge. "
        "Medical Image Analysis 2014.",
        page="https://zenodo.org/records/8026660",
    ),
)
