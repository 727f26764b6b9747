"""LiTS: livers and their tumours in CT; the Decathlon's Task03 has the same patients under the same numbers."""

from universeg_jax.data.source import FilePattern, Source

SOURCES = (
    Source(
        name="lits",
        title="Liver Tumor Segmentation Challenge",
        modality="abdominal CT",
        labels={1: "liver", 2: "liver tumour"},
        patterns=tuple(
            FilePattern(f"volume-{{subject:\\d+}}.{kind}", f"segmentation-{{subject}}.{kind}")
            for kind in ("nii", "nii.gz")
        ),
        axes=(0, 1, 2),
        source_group="lits",
        licence="CC BY-NC-SA 4.0",
        citation="Bilic et al., The Liver Tumor Segmentation Benchmark (LiTS). Medical Image Analysis 2023.",
        page="https://competitions.codalab.org/competitions/17094",
    ),
)
