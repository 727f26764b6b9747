"""FeTA: super-resolved T2 MR of fetal brains with seven tissues."""

from universeg_jax.data.source import FilePattern, Source

TISSUES = (
    "external cerebrospinal fluid", "grey matter", "white matter", "ventricles", "cerebellum", "deep grey matter",
    "brainstem",
)  # fmt: skip

SOURCES = (
    Source(
        name="feta",
        title="Fetal Tissue Annotation Challenge",
        modality="fetal brain MR T2w",
        labels=dict(enumerate(TISSUES, 1)),
        patterns=(
            FilePattern(
                "{subject:sub-\\d+}/anat/{subject}_rec-{method}_T2w.nii.gz",
                "{subject}/anat/{subject}_rec-{method}_dseg.nii.gz",
            ),
        ),
        axes=(0, 1, 2),
        licence="research use (registration)",
        citation="Payette et al., An automatic multi-tissue human fetal brain segmentation benchmark using the Fetal "
        "Tissue Annotation Dataset. Scientific Data 2021.",
        page="https://feta.grand-challenge.org/",
    ),
)
