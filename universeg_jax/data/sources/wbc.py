"""WBC: white blood cells in smears, one cell a picture."""

from universeg_jax.data.source import FilePattern, Source

VALUES = ((1, (128,)), (2, (255,)))
COMMON = {
    "labels": {1: "cytoplasm", 2: "nucleus"},
    "subjects_identifiable": False,
    "licence": "GPL-3.0",
    "citation": "Zheng, Wang, Wang, Liu, Fast and Robust Segmentation of White Blood Cell Images by Self-supervised "
    "Learning. Micron 2018.",
    "page": "https://github.com/zxaoyou/segmentation_WBC",
    "verified": True,
}

SOURCES = (
    Source(
        name="wbc_jtsc",
        title="White blood cells, Dataset 1 (Jiangxi Tecom, rapid stain)",
        modality="bright-field microscopy, blood smear",
        patterns=(FilePattern("Dataset 1/{case:\\d+}.bmp", "Dataset 1/{case}.png", values=VALUES),),
        **COMMON,
    ),
    Source(
        name="wbc_cellavision",
        title="White blood cells, Dataset 2 (CellaVision blog)",
        modality="bright-field microscopy, blood smear",
        patterns=(FilePattern("Dataset 2/{case:\\d+}.bmp", "Dataset 2/{case}.png", values=VALUES),),
        **COMMON,
    ),
)
