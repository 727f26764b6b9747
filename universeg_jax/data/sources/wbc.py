"""WBC: white blood cells in smears, one cell per image."""

from universeg_jax.data.source import FilePattern, Source


def _source(name: str, title: str, folder: str) -> Source:
    values = ((1, (128,)), (2, (255,)))
    return Source(
        name=name,
        title=f"White blood cells, {folder} ({title})",
        modality="bright-field microscopy, blood smear",
        labels={1: "cytoplasm", 2: "nucleus"},
        patterns=(FilePattern(f"{folder}/{{case:\\d+}}.bmp", f"{folder}/{{case}}.png", values=values),),
        subjects_identifiable=False,
        licence="GPL-3.0",
        citation="Zheng, Wang, Wang, Liu, Fast and Robust Segmentation of White Blood Cell Images by Self-supervised "
        "Learning. Micron 2018.",
        page="https://github.com/zxaoyou/segmentation_WBC",
        verified=True,
    )


SOURCES = (
    _source("wbc_jtsc", "Jiangxi Tecom, rapid stain", "Dataset 1"),
    _source("wbc_cellavision", "CellaVision blog", "Dataset 2"),
)
