"""BUSI: breast ultrasound with benign or malignant lesions; images of normal breasts have no lesion to segment."""

from universeg_jax.data.source import FilePattern, Source

SOURCES = (
    Source(
        name="busi",
        title="Breast Ultrasound Images Dataset",
        modality="2D ultrasound (breast)",
        labels={1: "benign lesion", 2: "malignant lesion"},
        patterns=tuple(
            FilePattern(
                f"{kind}/{{case:{kind} \\(\\d+\\)}}.png", {i: f"{kind}/{{case}}_mask*.png"}
            )  # some have several masks
            for i, kind in ((1, "benign"), (2, "malignant"))
        ),
        subjects_identifiable=False,
        licence="CC0 1.0",
        open_licence=True,
        citation="Al-Dhabyani et al., Dataset of breast ultrasound images. Data in Brief 2020.",
        page="https://scholar.cu.edu.eg/?q=afahmy/pages/dataset",
    ),
)
