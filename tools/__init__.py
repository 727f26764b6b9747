"""What maintainers run once; no part of the package."""
