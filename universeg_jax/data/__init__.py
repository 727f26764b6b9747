"""Raw files → examples on disk → episodes. Host side, NumPy only: nothing here touches a device."""
