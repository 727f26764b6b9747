"""KiTS19: kidneys and kidney tumours in CT of 210 patients."""

from universeg_jax.data.source import FilePattern, Source

SOURCES = (
    Source(
        name="kits19",
        title="2019 Kidney Tumor Segmentation Challenge",
        modality="abdominal CT",
        labels={1: "kidney", 2: "kidney tumour"},
        patterns=(FilePattern("{subject:case_\\d+}/imaging.nii.gz", "{subject}/segmentation.nii.gz"),),
        axes=(0, 1, 2),
        source_group="kits",
        licence="CC BY-NC-SA 4.0",
        citation="Heller et al., The state of the art in kidney and kidney tumor segmentation in contrast-enhanced CT "
        "imaging: Results of the KiTS19 challenge. Medical Image Analysis 2021.",
        page="https://github.com/neheller/kits19",
    ),
)
