"""SpineWeb: T2 MR of the lower spine with vertebral bodies, as on Zenodo."""

from universeg_jax.data.source import Part, Source

SOURCES = (
    Source(
        name="spineweb",
        title="T2-weighted MR images of the lower spine with vertebral bodies",
        modality="spine MR T2w",
        labels={1: "vertebra"},
        parts=(Part("{subject:Img_\\d+}.nii", {1: "{subject}_Labels.nii"}),),
        axes=(0,),  # sagittal slices 4 mm apart
        licence="CC BY 4.0",
        open_licence=True,
        citation="Zukić et al., Robust Detection and Segmentation for Diagnosis of Vertebral Diseases Using Routine MR "
        "Images. Computer Graphics Forum 2014; Chu et al., PLoS ONE 2015.",
        page="https://zenodo.org/record/22304",
    ),
)
