"""ISLES 2022: ischaemic stroke lesions in diffusion MR; the FLAIR images lie on another grid and are left out."""

from universeg_jax.data.source import FilePattern, Source
from universeg_jax.readers.volumes import IN_PLANE

SUBJECT = "{subject:sub-strokecase\\d+}/ses-0001"
FOLDERS = (f"{SUBJECT}/dwi", f"rawdata/{SUBJECT}")  # on Zenodo, and as the challenge gave it

SOURCES = (
    Source(
        name="isles",
        title="Ischemic Stroke Lesion Segmentation 2022",
        modality="brain MR",
        labels={1: "stroke lesion"},
        patterns=tuple(
            FilePattern(
                f"{folder}/{{subject}}_ses-0001_{kind}.nii.gz",
                "derivatives/{subject}/ses-0001/{subject}_ses-0001_msk.nii.gz",
                f"brain MR {kind.upper()}",
            )
            for kind in ("dwi", "adc")
            for folder in FOLDERS
        ),
        axes=(IN_PLANE,),
        licence="CC BY 4.0",
        open_licence=True,
        citation="Hernandez Petzsche et al., ISLES 2022: A multi-center magnetic resonance imaging stroke lesion "
        "segmentation dataset. Scientific Data 2022.",
        page="https://zenodo.org/records/7960856",
    ),
)
