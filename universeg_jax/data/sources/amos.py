"""AMOS 2022: abdominal CT and MR. Cases up to 500 are CT, the others MR, as the challenge says."""

from universeg_jax.data.source import FilePattern, Source

ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta", "postcava",
    "pancreas", "right adrenal gland", "left adrenal gland", "duodenum", "bladder", "prostate or uterus",
)  # fmt: skip
CT, MR = "0[0-4]\\d\\d|0500", "05(?!00)\\d\\d|0[6-9]\\d\\d"


def _source(kind: str, modality: str, numbers: str) -> Source:
    return Source(
        name=f"amos_{kind}",
        title=f"AMOS 2022, {kind.upper()}",
        modality=modality,
        labels=dict(enumerate(ORGANS, 1)),
        patterns=tuple(
            FilePattern(f"images{split}/{{subject:amos_(?:{numbers})}}.nii.gz", f"labels{split}/{{subject}}.nii.gz")
            for split in ("Tr", "Va")
        ),
        source_group="amos",
        licence="CC BY 4.0",
        open_licence=True,
        citation="Ji et al., AMOS: A Large-Scale Abdominal Multi-Organ Benchmark for Versatile Medical Image "
        "Segmentation. NeurIPS 2022.",
        page="https://zenodo.org/records/7155725",
    )


SOURCES = (_source("ct", "abdominal CT", CT), _source("mr", "abdominal MR", MR))
