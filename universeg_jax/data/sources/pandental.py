"""PanDental: panoramic dental X-rays with the mandible segmented by two experts; the first expert's masks are used."""

from universeg_jax.data.source import FilePattern, Source

SOURCES = (
    Source(
        name="pandental",
        title="Panoramic Dental X-rays With Segmented Mandibles",
        modality="dental panoramic X-ray",
        labels={1: "mandible"},
        patterns=(FilePattern("Images/{case}.png", {1: "Segmentation1/{case}.png"}),),
        subjects_identifiable=False,
        licence="CC BY-NC 3.0",
        citation="Abdi, Kasaei, Mehdizadeh, Automatic segmentation of mandible in panoramic x-ray. J Med Imaging 2015.",
        page="https://data.mendeley.com/datasets/hxt48yk462",
    ),
)
