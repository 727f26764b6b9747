"""Raw files → examples on disk → episodes. Host side, NumPy only: nothing here touches a device."""

# Of a dataset; the licences of the first let weights be given away.
ROLES = ("train_open", "train_research", "val", "test")
