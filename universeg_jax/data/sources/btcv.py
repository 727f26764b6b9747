"""BTCV: abdominal CT of 30 training patients with 13 organs (Beyond the Cranial Vault)."""

from universeg_jax.data.source import FilePattern, Source

ORGANS = (
    "spleen", "right kidney", "left kidney", "gallbladder", "oesophagus", "liver", "stomach", "aorta",
    "inferior vena cava", "portal and splenic vein", "pancreas", "right adrenal gland", "left adrenal gland",
)  # fmt: skip

SOURCES = (
    Source(
        name="btcv",
        title="Multi-Atlas Labeling Beyond the Cranial Vault, abdomen",
        modality="abdominal CT",
        labels=dict(enumerate(ORGANS, 1)),
        patterns=(FilePattern("Training/img/img{subject:\\d+}.nii.gz", "Training/label/label{subject}.nii.gz"),),
        axes=(0, 1, 2),
        licence="research use (registration)",
        citation="Landman et al., MICCAI Multi-Atlas Labeling Beyond the Cranial Vault Workshop and Challenge, 2015.",
        page="https://www.synapse.org/#!Synapse:syn3193805",
    ),
)
