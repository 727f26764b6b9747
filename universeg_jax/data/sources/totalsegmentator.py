"""TotalSegmentator, version 2: CT of 1,228 patients, 117 structures, one file per structure."""

from universeg_jax.data.source import FilePattern, Source

RIBS = [f"rib_{side}_{number}" for side in ("left", "right") for number in range(1, 13)]
VERTEBRAE = [f"vertebrae_{name}" for name in (
    "S1", "L5", "L4", "L3", "L2", "L1", "T12", "T11", "T10", "T9", "T8", "T7", "T6", "T5", "T4", "T3", "T2", "T1",
    "C7", "C6", "C5", "C4", "C3", "C2", "C1",
)]  # fmt: skip
STRUCTURES = (
    "spleen", "kidney_right", "kidney_left", "gallbladder", "liver", "stomach", "pancreas", "adrenal_gland_right",
    "adrenal_gland_left", "lung_upper_lobe_left", "lung_lower_lobe_left", "lung_upper_lobe_right",
    "lung_middle_lobe_right", "lung_lower_lobe_right", "esophagus", "trachea", "thyroid_gland", "small_bowel",
    "duodenum", "colon", "urinary_bladder", "prostate", "kidney_cyst_left", "kidney_cyst_right", "sacrum", *VERTEBRAE,
    "heart", "aorta", "pulmonary_vein", "brachiocephalic_trunk", "subclavian_artery_right", "subclavian_artery_left",
    "common_carotid_artery_right", "common_carotid_artery_left", "brachiocephalic_vein_left",
    "brachiocephalic_vein_right", "atrial_appendage_left", "superior_vena_cava", "inferior_vena_cava",
    "portal_vein_and_splenic_vein", "iliac_artery_left", "iliac_artery_right", "iliac_vena_left", "iliac_vena_right",
    "humerus_left", "humerus_right", "scapula_left", "scapula_right", "clavicula_left", "clavicula_right",
    "femur_left", "femur_right", "hip_left", "hip_right", "spinal_cord", "gluteus_maximus_left",
    "gluteus_maximus_right", "gluteus_medius_left", "gluteus_medius_right", "gluteus_minimus_left",
    "gluteus_minimus_right", "autochthon_left", "autochthon_right", "iliopsoas_left", "iliopsoas_right", "brain",
    "skull", *RIBS, "sternum", "costal_cartilages",
)  # fmt: skip

SOURCES = (
    Source(
        name="totalsegmentator",
        title="TotalSegmentator CT dataset, version 2",
        modality="CT",
        labels={i: name.replace("_", " ") for i, name in enumerate(STRUCTURES, 1)},
        patterns=(
            FilePattern(
                "{subject:s\\d+}/ct.nii.gz",
                {i: f"{{subject}}/segmentations/{name}.nii.gz" for i, name in enumerate(STRUCTURES, 1)},
            ),
        ),
        axes=(0, 1, 2),
        licence="CC BY 4.0",
        open_licence=True,
        citation="Wasserthal et al., TotalSegmentator: Robust Segmentation of 104 Anatomic Structures in CT Images. "
        "Radiology: Artificial Intelligence 2023.",
        page="https://zenodo.org/records/10047292",
    ),
)
