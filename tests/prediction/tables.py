"""What a job of `universeg predict` left in its folder."""

import csv


def names(path):
    return sorted(p.name for p in path.iterdir() if p.name not in ("predictions.csv", "predict.json"))


def table(path):
    """predictions.csv without order."""
    return sorted(tuple(row.values()) for row in csv.DictReader((path / "predictions.csv").open()))
