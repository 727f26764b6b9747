"""Raw files → datasets on disk → tasks. Host side, NumPy only: nothing here touches a device."""

# The role of a dataset. Weights trained on train_open may be given away by its licence.
ROLES = ("train_open", "train_research", "val", "test")
