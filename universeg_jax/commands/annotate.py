"""Label a few images, predict the rest, and correct it.

Each correction helps with the next prediction. A project keeps every accepted label: undo, redo and a kill lose none.
"""

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from universeg_jax.annotation import POLICIES
from universeg_jax.commands.predict import AXES, axis_number, window
from universeg_jax.errors import UserError

if TYPE_CHECKING:
    from universeg_jax.annotation.session import Session

EXAMPLE = "universeg annotate new my_project --images scans --labels 1=liver,2=tumour"
ACTIONS = {
    "new": "make PROJECT of the images of a folder",
    "status": "done, left, the Dice to expect, and what needs your attention",
    "next": "choose what to label next and predict it",
    "accept": "accept MASK, or the prediction, for IMAGE",
    "forget": "take the label of IMAGE away",
    "undo": "take back the last accept",
    "redo": "bring it back",
    "lock": "let nothing change the label of IMAGE, or the pixels of --label in all images",
    "unlock": "the opposite",
    "restore": "bring back an accepted label of IMAGE that was edited outside",
    "run": "predict all that is left",
}


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    listed = "\n".join(f"  {name:8} {text}" for name, text in ACTIONS.items())
    parser.description = f"{parser.description}\n{listed}"
    parser.add_argument("action", choices=ACTIONS, metavar="ACTION", help="one of those above")
    parser.add_argument("project", type=Path, metavar="PROJECT", help="folder of the project")
    parser.add_argument("image", nargs="?", metavar="IMAGE", help="image, volume, or slice such as scan/12")
    parser.add_argument("mask", nargs="?", type=Path, metavar="MASK", help="accept: file of label ids")
    parser.add_argument("--slices", type=slice_numbers, metavar="I,J,...", help="accept: only these slices of MASK")
    parser.add_argument("--label", type=int, metavar="ID", help="lock, unlock: this label in all images")
    parser.add_argument("--images", type=Path, metavar="DIR", help="new: images and volumes, which are copied")
    parser.add_argument("--link", action="store_true", help="new: make hard links to the images instead of copies")
    parser.add_argument("--labels", type=label_names, help="new: ids and names (default: of --support, or 1=label)")
    parser.add_argument("--support", type=Path, metavar="DIR", help="new: folder of labelled examples from elsewhere")
    parser.add_argument("--order", choices=POLICIES, help="new, next: what comes next (default: doubt)")
    parser.add_argument("--checkpoint", help="new: packaged weights, a workdir or a checkpoint (default: small)")
    parser.add_argument("--support_size", type=int, default=16, help="new: examples that the network sees at once")
    parser.add_argument("--window", type=window, help="new: of volumes: ct, mr, none or LOW,HIGH (default: chosen)")
    parser.add_argument("--axis", choices=AXES, help="new: label volumes along it (default: as each was acquired)")


def slice_numbers(text: str) -> tuple[int, ...]:
    """Parses --slices. Raises ArgumentTypeError."""
    try:
        return tuple(int(word) for word in text.split(","))
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r}: use numbers such as 0,8,16") from error


def label_names(text: str) -> dict[int, str]:
    """Parses --labels. Raises ArgumentTypeError."""
    from universeg_jax.annotation.project import parse_labels  # takes seconds, which --help does not need

    try:
        return parse_labels(text)
    except UserError as error:
        raise argparse.ArgumentTypeError(str(error)) from error


def run(args: argparse.Namespace) -> int:
    from universeg_jax.readers.notes import collect

    with collect() as notes:
        code = _act(args)
    for line in notes.lines():
        print(line, file=sys.stderr)
    return code


def _act(args: argparse.Namespace) -> int:
    if args.action == "new":
        return _new(args)
    from universeg_jax.annotation.session import Session

    with Session(args.project) as session:
        if args.action in ("status", "next", "run"):
            return {"status": _status, "next": _next, "run": _run}[args.action](session, args)
        _change(session, args)
        if session.problems:
            print(*session.problems.values(), sep="\n", file=sys.stderr)
        counts = session.status()
        print(f"{counts['labelled']} labelled, {counts['left']} left")
    return 0


def _new(args: argparse.Namespace) -> int:
    from universeg_jax.annotation.project import DEFAULT_ORDER, create
    from universeg_jax.readers.folder import read_folder

    if args.images is None:
        raise UserError("give the images: `universeg annotate new PROJECT --images DIR`")
    labels = args.labels
    if labels is None:
        labels = dict(read_folder(args.support).labels) if args.support else {1: "label"}
    project, unusable = create(
        args.project, args.images, labels, args.order or DEFAULT_ORDER, args.checkpoint or "small", args.support,
        args.support_size, args.window or "auto", axis_number(args), args.link, progress=True,
    )  # fmt: skip
    for reason in unusable.values():
        print(f"left out: {reason}", file=sys.stderr)
    volumes = sum(item.volume for item in project.items.values())
    print(f"{args.project}: {len(project.items) - volumes} images, {volumes} volumes; `universeg annotate next` begins")
    return 0


def _change(session: "Session", args: argparse.Namespace) -> None:
    if args.action in ("undo", "redo"):
        print(f"{args.action}: {', '.join(getattr(session, args.action)())}")
        return
    if args.action in ("lock", "unlock") and (args.image or args.label):
        units = [args.image] if args.image else []
        session.lock(units, [args.label] if args.label else [], unlock=args.action == "unlock")
        return
    if not args.image:
        raise UserError(f"say which image: `universeg annotate {args.action} {args.project} IMAGE`")
    if args.action == "accept":
        accept_file(session, args.image, args.mask, args.slices)
    else:
        getattr(session, args.action)(args.image)


def accept_file(session: "Session", unit: str, mask: Path | None, slices: tuple[int, ...] | None = None) -> None:
    """Accepts a file of label ids, or the prediction; of a volume, `slices` of it alone. Raises UserError."""
    from universeg_jax.annotation.label_files import read_label_for
    from universeg_jax.readers.slices import plane

    item, _ = session.project.find(unit)
    file = mask or session.project.prediction_file(unit)
    if not file.exists():
        reason = "is no file" if mask else "does not exist: `universeg annotate next` predicts, or give a MASK"
        raise UserError(f"{file} {reason}")
    ids = read_label_for(session.image(unit), file, unit)
    if slices is None and item.volume and unit == item.name and ids.shape == session.image(unit).shape:
        known = session.known_slices(unit, ids)
        if 0 < len(known) < item.slices:
            print(
                f"{unit}: {len(known)} of its {item.slices} slices are labelled; the others hold nothing to learn from"
            )
            slices = tuple(known)
    if slices is None:
        session.accept(unit, ids)
    for number in slices or ():
        name = f"{unit}/{number}"
        _, found = session.project.find(name)
        session.accept(name, plane(ids, int(item.axis or 0), item.canonical(int(found or 0))))


def _status(session: "Session", args: argparse.Namespace) -> int:
    status = session.status()
    steps = f"{status['undo']} steps to undo, {status['redo']} to redo"
    print(f"{status['labelled']} labelled, {status['left']} left; {steps}")
    if status["locked"]:
        print(f"locked: {', '.join(status['locked'])}")
    if status["problems"]:
        print(*status["problems"].values(), sep="\n", file=sys.stderr)
        return 1
    if status["labelled"] > 1:
        estimate = _assistant(session).expected_dice(progress=True)
        if estimate and estimate.count > 1:
            numbers = f"{100 * estimate.mean:.1f} ({100 * estimate.low:.1f} to {100 * estimate.high:.1f})"
            print(f"Dice to expect, by leaving one out: {numbers}")
    return 0


def _next(session: "Session", args: argparse.Namespace) -> int:
    from universeg_jax.annotation.rest import write_prediction

    assistant = _assistant(session)
    unit = assistant.next(args.order or "")
    item, _ = session.project.find(unit)
    print(f"{unit}  {session.project.image_file(item)}")
    prediction = assistant.predict(unit)
    if prediction is None:
        none = "no accepted label shows a structure yet" if session.labelled() else "no label yet"
        print(f"{none}: draw one, then `universeg annotate accept {args.project} {unit} MASK`")
        return 0
    file = write_prediction(assistant, unit, prediction.mask)
    expected = assistant.expected(unit)
    print(f"prediction: {file}, expected Dice {100 * expected:.0f}; correct it where needed, then")
    print(f"universeg annotate accept {args.project} {unit}")
    return 0


def _run(session: "Session", args: argparse.Namespace) -> int:
    from universeg_jax.annotation.rest import predict_rest

    rows = predict_rest(_assistant(session), progress=True)
    print(f"{args.project / 'predictions'}: {len(rows)} predicted")
    return 0


def _assistant(session: "Session"):
    from universeg_jax.annotation.assistant import Assistant
    from universeg_jax.prediction.predictor import Predictor

    return Assistant(session, Predictor.from_checkpoint(session.project.checkpoint))
