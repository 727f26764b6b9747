"""The ten tasks of the Medical Segmentation Decathlon; in files with several channels each channel is a modality."""

from universeg_jax.data.source import Download, FilePattern, Source
from universeg_jax.readers.volumes import IN_PLANE

ALL = (0, 1, 2)
HOST = "https://msd-for-monai.s3-us-west-2.amazonaws.com"  # the Registry of Open Data on AWS


def _task(
    number: int,
    name: str,
    md5: str,
    labels: dict[int, str],
    modalities: tuple[str, ...],
    axes: tuple[int, ...],
    group: str = "",
    subject: str = "{subject}",
    verified: bool = False,
) -> Source:
    folder = f"Task{number:02d}_{name}"
    words = "".join(f"_{c.lower()}" if c.isupper() else c for c in name)
    return Source(
        name=f"msd{words}",
        title=f"Medical Segmentation Decathlon, {folder}",
        modality=modalities[0] if len(modalities) == 1 else modalities[0].rpartition(" ")[0],
        labels=labels,
        patterns=tuple(
            FilePattern(
                f"{folder}/imagesTr/{subject}.nii.gz",
                f"{folder}/labelsTr/{subject}.nii.gz",
                modality,
                channel=channel if len(modalities) > 1 else None,
            )
            for channel, modality in enumerate(modalities)
        ),
        axes=axes,
        source_group=group,
        licence="CC BY-SA 4.0",
        open_licence=True,
        citation="Antonelli et al., The Medical Segmentation Decathlon. Nature Communications 2022.",
        page="http://medicaldecathlon.com/",
        downloads=(Download(f"{HOST}/{folder}.tar", f"md5:{md5}"),),
        verified=verified,
    )


SOURCES = (
    _task(
        1, "BrainTumour", "240a19d752f0d9e9101544901065d872",
        {1: "oedema", 2: "non-enhancing tumour", 3: "enhancing tumour"},
        ("brain MR FLAIR", "brain MR T1w", "brain MR T1gd", "brain MR T2w"), ALL, "brats",
    ),
    _task(2, "Heart", "06ee59366e1e5124267b774dbd654057", {1: "left atrium"}, ("cardiac MR",), ALL),
    _task(
        3, "Liver", "a90ec6c4aa7f6a3d087205e23d4e6397", {1: "liver", 2: "liver tumour"}, ("abdominal CT",), ALL,
        "lits", "liver_{subject}",
    ),
    _task(
        4, "Hippocampus", "9d24dba78a72977dbd1d2e110310f31b", {1: "anterior hippocampus", 2: "posterior hippocampus"},
        ("brain MR T1w",), ALL, verified=True,  # 24 of its 260 cases, renamed as in the archive
    ),
    _task(
        5, "Prostate", "35138f08b1efaef89d7424d2bcc928db", {1: "peripheral zone", 2: "transition zone"},
        ("prostate MR T2w", "prostate MR ADC"), (IN_PLANE,),
    ),
    _task(6, "Lung", "8afd997733c7fc0432f71255ba4e52dc", {1: "lung tumour"}, ("chest CT",), ALL),
    _task(
        7, "Pancreas", "4f7080cfca169fa8066d17ce6eb061e4", {1: "pancreas", 2: "pancreatic tumour"}, ("abdominal CT",),
        ALL,
    ),
    _task(
        8, "HepaticVessel", "641d79e80ec66453921d997fbf12a29c", {1: "hepatic vessel", 2: "liver tumour"},
        ("abdominal CT",), ALL,
    ),
    _task(9, "Spleen", "410d4a301da4e5b2f6f86ec3ddba524e", {1: "spleen"}, ("abdominal CT",), ALL),
    _task(10, "Colon", "bad7a188931dc2f6acf72b08eb6202d0", {1: "colon cancer"}, ("abdominal CT",), ALL),
)  # fmt: skip
