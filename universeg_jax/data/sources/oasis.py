"""OASIS-1 in neurite's layout: T1 MR of 414 brains, skull stripped, with four tissues."""

from universeg_jax.data.source import FilePattern, Source

SOURCES = (
    Source(
        name="oasis",
        title="Open Access Series of Imaging Studies 1, neurite-oasis",
        modality="brain MR T1w",
        labels={1: "cortex", 2: "subcortical grey matter", 3: "white matter", 4: "cerebrospinal fluid"},
        patterns=(
            FilePattern(
                "OASIS_OAS1_{subject:\\d+}_MR{visit:\\d}/aligned_norm.nii.gz",
                "OASIS_OAS1_{subject}_MR{visit}/aligned_seg4.nii.gz",
            ),
        ),
        axes=(0, 1, 2),
        licence="OASIS data use agreement",
        citation="Marcus et al., Open Access Series of Imaging Studies (OASIS). J Cogn Neurosci 2007; Hoopes et al., "
        "Learning the Effect of Registration Hyperparameters with HyperMorph. MELBA 2022.",
        page="https://github.com/adalca/medical-datasets/blob/master/neurite-oasis.md",
    ),
)
