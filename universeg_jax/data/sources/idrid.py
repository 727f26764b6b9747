"""IDRiD: lesions of diabetic retinopathy and the optic disc, one mask each; they may overlap."""

from universeg_jax.data.source import FilePattern, Source

LABELS = {1: "microaneurysms", 2: "haemorrhages", 3: "hard exudates", 4: "soft exudates", 5: "optic disc"}
SHORT = {1: "MA", 2: "HE", 3: "EX", 4: "SE", 5: "OD"}
FOLDERS = {
    1: "1. Microaneurysms",
    2: "2. Haemorrhages",
    3: "3. Hard Exudates",
    4: "4. Soft Exudates",
    5: "5. Optic Disc",
}
SETS = ("a. Training Set", "b. Testing Set")

SOURCES = (
    Source(
        name="idrid",
        title="Indian Diabetic Retinopathy Image Dataset, segmentation",
        modality="colour fundus photography",
        labels=LABELS,
        patterns=tuple(
            FilePattern(
                f"1. Original Images/{which}/{{subject:IDRiD_\\d+}}.jpg",
                {
                    i: f"2. All Segmentation Groundtruths/{which}/{FOLDERS[i]}/{{subject}}_{SHORT[i]}.tif"
                    for i in LABELS
                },
            )
            for which in SETS
        ),
        licence="CC BY 4.0",
        open_licence=True,
        citation="Porwal et al., Indian Diabetic Retinopathy Image Dataset (IDRiD). Data 2018.",
        page="https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid",
    ),
)
