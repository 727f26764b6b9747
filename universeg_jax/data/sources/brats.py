"""BraTS 2018 to 2021: gliomas in four sequences of MR, registered and without skull."""

from universeg_jax.data.source import FilePattern, Source

SEQUENCES = {"flair": "FLAIR", "t1": "T1", "t1ce": "T1ce", "t2": "T2"}

SOURCES = (
    Source(
        name="brats",
        title="Brain Tumour Segmentation Challenge (2020 and 2021 layout)",
        modality="brain MR",
        labels={1: "necrotic core", 2: "oedema", 4: "enhancing tumour"},
        patterns=tuple(
            FilePattern(
                f"{{subject}}/{{subject}}_{ending}.{kind}", f"{{subject}}/{{subject}}_seg.{kind}", f"brain MR {name}"
            )
            for ending, name in SEQUENCES.items()
            for kind in ("nii.gz", "nii")
        ),
        axes=(0, 1, 2),
        source_group="brats",
        licence="research use (registration)",
        citation="Menze et al., The Multimodal Brain Tumor Image Segmentation Benchmark (BRATS). IEEE TMI 2015; Baid "
        "et al., The RSNA-ASNR-MICCAI BraTS 2021 Benchmark. arXiv 2107.02314.",
        page="https://www.med.upenn.edu/cbica/brats/",
    ),
)
