"""SpineWeb: T2 MR of the lower spine of 23 people with vertebral bodies, in Zenodo's layout."""

from universeg_jax.data.source import FilePattern, Source

SOURCES = (
    Source(
        name="spineweb",
        title="T2-weighted MR images of the lower spine with vertebral bodies",
        modality="spine MR T2w",
        labels={1: "vertebra"},
        patterns=(FilePattern("{subject:Img_\\d+}.nii", {1: "{subject}_Labels.nii"}),),
        axes=(0,),  # sagittal slices 4 mm apart
        licence="CC BY 4.0",
        open_licence=True,
        citation="Chu et al., Fully Automatic Localization and Segmentation of 3D Vertebral Bodies from CT/MR Images "
        "via a Learning-Based Method. PLoS ONE 2015.",
        page="https://zenodo.org/record/22304",
    ),
)
