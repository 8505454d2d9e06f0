"""Which files of a folder are images, what splits it has, and which class each image is of."""

from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import numpy as np

from toolkit.data.images.archives import ArchivePath, StackArchive
from toolkit.data.images.labels import NAMES, labels_file, labels_of, read_labels
from toolkit.data.images.shards import ShardArchive
from toolkit.data.images.suffixes import is_image, readable_suffixes, suffix_of
from toolkit.data.splits import split_folders, split_of
from toolkit.errors import UserError, few

_log = logging.getLogger(__name__)


class Found(NamedTuple):
    """Image files in a fixed order, their classes int64 (n,) or None, the classes' names, and what was passed over.

    skipped: how many other files there are, by suffix.
    """

    files: list[Path]
    labels: np.ndarray | None
    class_names: tuple[str, ...]
    skipped: Counter[str]


def enter(root: Path) -> Path:
    """The folder inside of an archive that holds everything, where it is neither a split nor with anything beside."""
    inside = [entry for entry in _entries(root) if not entry.name.startswith("__")]
    if len(inside) == 1 and inside[0].is_folder and not split_of(root / inside[0].name):
        return enter(root / inside[0].name)
    return root


def listed_splits(root: Path, archive: ShardArchive | StackArchive, is_given: bool) -> dict[str, Found]:
    """The images by split of an archive that knows its splits and classes itself.

    Raises UserError where networks are to be given the classes (``is_given``) and there is one only.
    """
    labels = {name: archive.labels(name) for name in archive.splits}
    values = {label for part in labels.values() for label in part or ()}
    names = archive.class_names or _ordered(values)
    if values and len(values) < 2 and is_given:
        raise UserError(f"{root}: one class only ({names[0]}); give two or more, or set data.class_labels=false")
    index: dict[int | str, int] = {name: number for number, name in enumerate(names)}
    index |= {int(name): number for number, name in enumerate(names) if not archive.class_names and name.isdecimal()}
    index |= dict(enumerate(range(len(names)))) if archive.class_names else {}
    found = {}
    for name, part in labels.items():
        unknown = next((label for label in part or () if label not in index), None)
        if unknown is not None:
            raise UserError(f"{root}: {name} has the class {unknown}, which is none of {few(list(names), 5)}")
        numbers = None if part is None else np.array([index[label] for label in part], np.int64)
        found[name] = Found([root / one for one in archive.splits[name]], numbers, names, Counter())
        _say(
            root,
            name,
            found[name],
            "no classes (a column label, or data.label_column=NAME, or .cls in a tar, would give them)",
        )
    if archive.others:
        _log.warning("%s: passed over, neither images nor classes: %s", root, few(archive.others))
    return found


def _ordered(values: set[int | str]) -> tuple[str, ...]:
    """Classes as text: numbers by their value, names as text; negative numbers are no classes."""
    numbers = sorted(value for value in values if isinstance(value, int) and value >= 0)
    return tuple(map(str, numbers)) or tuple(sorted(value for value in values if isinstance(value, str)))


def find_splits(root: Path, by_class: bool, is_said: bool = True) -> dict[str, Found]:
    """The images of ``root`` by split, with at least "train": all of them, or those of its folders named as splits.

    With ``by_class`` the classes come from a labels file in ``root`` or in a split, else from the subfolders. What is
    found and what is passed over is logged if ``is_said``. Raises UserError naming the file or folder at fault.
    """
    places = _places(root, is_said)
    shared = labels_file(root) if by_class and places["train"] != root else None
    found = {}
    for name, place in places.items():
        found[name] = find_images(place, by_class and shared is None, is_whole=name == "train")
    if shared is not None:
        for place in places.values():
            if (second := labels_file(place)) is not None:
                raise UserError(f"{root}: two labels files ({shared}, {second}); keep one of them")
        found = _labelled_from(shared, found)
    for name, part in found.items():
        _check_same_classes(places[name], part.class_names, found["train"].class_names)
        if is_said:
            _say(places[name], name, part, "no classes" if by_class else "data.class_labels=false")
    if is_said:
        _say_order_of_numbers(root, found["train"].class_names)
    return found


def _places(root: Path, is_said: bool) -> dict[str, Path]:
    """The folders of the splits: ``root`` itself, or its train/ with val/ (used as test where there is no test/)."""
    folders = _subfolders(root)
    places = split_folders(folders)
    named = list(places.values())
    if not named:
        return {"train": root}
    if "train" not in places:
        names = ", ".join(folder.name for folder in named)
        raise UserError(f"{root}: has a split ({names}) but no train folder beside it; add one, or give a split alone")
    left = _left_out(root, named, [folder for folder in folders if folder not in named])
    if left and is_said:
        _log.warning("%s: split by its folders %s; left out: %s", root, ", ".join(p.name for p in named), few(left))
    if "valid" in places and "test" not in places:
        places["test"] = places.pop("valid")
    return places


def _left_out(root: Path, named: list[Path], others: list[Path]) -> list[str]:
    """Folders and images beside the splits, which are not used. UserError for what looks like classes so named."""
    with_images = [folder.name for folder in others if _walk(folder)[0]]
    if len(named) == 1 and len(with_images) > 1:
        raise UserError(
            f"{root}: {named[0].name} is the name of a split, but there are images beside it "
            f"({', '.join(with_images[:5])}); if it is a class, give it another name, else move the others away"
        )
    loose = sum(is_image(entry.name) for entry in _entries(root))
    return [*(folder.name for folder in others), *([f"{loose} images"] if loose else [])]


def _check_same_classes(place: Path, names: tuple[str, ...], expected: tuple[str, ...]) -> None:
    """UserError where the folder of a split has other classes than those ``expected`` of train."""
    if names == expected:
        return
    known = f"train has {few(list(expected), 5)}" if expected else "train has none"
    otherwise = "or set data.class_labels=false"
    if not names:
        raise UserError(
            f"{place}: its images are not in a folder for each class as train's are ({known}); move each into the "
            f"folder of its class (for ImageNet's val/ valprep.sh does that), {otherwise}"
        )
    lacking, extra = [[one for one in a if one not in b] for a, b in ((expected, names), (names, expected))]
    said = [f"lacks the class {few(lacking, 5)}"] if lacking else []
    said += [f"has {few(extra, 5)} besides"] if extra else []
    raise UserError(
        f"{place}: the classes are not those of train: it {' and '.join(said)} ({known}); "
        f"give it a folder with at least one image for each class of train and no other, {otherwise}"
    )


def find_images(root: Path, by_class: bool, is_whole: bool = True) -> Found:
    """Images under ``root``, of any depth; with ``by_class`` classed by a labels file or by subfolders.

    is_whole: it is the set itself, so that its subfolders are all the classes there are.

    Raises UserError for no images, an empty class, one class only, images beside class folders, a class with the name
    of a split, or a labels file that cannot be used.
    """
    given = labels_file(root) if by_class else None
    folders = _subfolders(root) if by_class and given is None else []
    if folders:
        _check_classes(root, folders, is_whole)
    per_place = [_images_under(place) for place in folders or [root]]
    files = [file for files, _ in per_place for file in files]
    skipped = sum((others for _, others in per_place), Counter(_others_in(root) if folders else {}))
    if given is not None:
        return _labelled_from(given, {"all": Found(files, None, (), skipped)})["all"]
    if not folders:
        return Found(files, None, (), skipped)
    labels = np.repeat(np.arange(len(folders)), [len(files) for files, _ in per_place])
    return Found(files, labels, tuple(folder.name for folder in folders), skipped)


def _check_classes(root: Path, folders: list[Path], is_whole: bool) -> None:
    loose = [entry.name for entry in _entries(root) if is_image(entry.name)]
    if loose:
        raise UserError(f"{root}: images ({loose[0]}) beside class folders ({folders[0].name}); move them into classes")
    for folder in folders:
        if split_of(folder):
            raise UserError(f"{folder}: {folder.name} is the name of a split, not of a class; give it another name")
    if len(folders) == 1 and is_whole:
        raise UserError(
            f"{root}: one class folder only ({folders[0].name}); give two or more, or set data.class_labels=false"
        )
    for folder in folders:
        if (inner := labels_file(folder)) is not None:
            raise UserError(f"{inner}: a labels file inside a class folder; move it to {root}, or take it away")


def _labelled_from(path: Path, parts: dict[str, Found]) -> dict[str, Found]:
    """``parts`` with the classes that the labels file ``path`` gives, the same for all of them."""
    known = read_labels(path)
    if known is None:
        return {name: part._replace(labels=None, class_names=()) for name, part in parts.items()}
    names, labels = labels_of(path, known, [file for part in parts.values() for file in part.files])
    ends = np.cumsum([len(part.files) for part in parts.values()])[:-1]
    split = zip(parts.items(), np.split(labels, ends), strict=True)
    return {name: part._replace(labels=own, class_names=names) for (name, part), own in split}


def _say(place: Path, name: str, part: Found, unlabelled: str) -> None:
    if part.labels is None:
        _log.info("%s (%s): %d images, %s", place, name, len(part.files), unlabelled)
    else:
        counts = np.bincount(part.labels, minlength=len(part.class_names))
        each = few([f"{one} {count}" for one, count in zip(part.class_names, counts, strict=True)])
        _log.info("%s (%s): %d images of %d classes: %s", place, name, len(part.files), len(counts), each)
    if part.skipped:
        _log.warning("%s (%s): passed over, not read as images: %s", place, name, by_suffix(part.skipped))


def _say_order_of_numbers(root: Path, names: tuple[str, ...]) -> None:
    """Say where class folders called by numbers are not in the order of the numbers."""
    by_value = sorted(names, key=int) if all(name.isdecimal() for name in names) else list(names)
    differing = [number for number, name in enumerate(names) if name != by_value[number]]
    if differing:
        _log.warning(
            "%s: class folders are in the order of their names as text, as torchvision has them: class %d is %s, not "
            "%s; names of one length (01, 02) have the same order as numbers",
            *(root, differing[0], names[differing[0]], by_value[differing[0]]),
        )


def by_suffix(skipped: Counter[str]) -> str:
    """For people: how many files of each suffix."""
    return few([f"{number} {suffix or 'without a suffix'}" for suffix, number in sorted(skipped.items())])


# -- walking ---------------------------------------------------------------------------------------------------------


class Entry(NamedTuple):
    """One thing in a folder. A link to a folder is one; a link that leads to itself is not."""

    name: str
    is_folder: bool


def _entries(folder: Path) -> list[Entry]:
    """What is in ``folder`` and not hidden, sorted by name."""
    if isinstance(folder, ArchivePath):
        found = [Entry(name, is_folder) for name, is_folder in folder.entries()]
    else:
        try:
            found = [Entry(entry.name, _is_folder(entry)) for entry in os.scandir(folder) if not _is_special(entry)]
        except OSError as error:
            raise UserError(f"{folder}: cannot be listed ({error.strerror})") from error
    return sorted(entry for entry in found if entry.name[0] != ".")


def _is_folder(entry: os.DirEntry) -> bool:
    try:
        return entry.is_dir()
    except OSError:
        return False


def _is_special(entry: os.DirEntry) -> bool:
    """Whether it is a pipe, a socket or a device, which would be waited for. A link that leads nowhere is not."""
    return not (entry.is_symlink() and not os.path.exists(entry)) and not (entry.is_file() or entry.is_dir())


def _subfolders(folder: Path) -> list[Path]:
    return [folder / entry.name for entry in _entries(folder) if entry.is_folder and not entry.name.startswith("__")]


def _others_in(folder: Path) -> Counter[str]:
    """Files directly in ``folder`` that are neither images nor labels, by suffix."""
    names = [entry.name for entry in _entries(folder) if not entry.is_folder]
    return Counter(suffix_of(name) for name in names if not is_image(name) and name not in NAMES)


def _walk(folder: Path) -> tuple[list[Path], Counter[str]]:
    """(images, other files by suffix) of any depth. Links to folders are followed, no folder is entered twice."""
    files: list[Path] = []
    skipped: Counter[str] = Counter()
    seen = set()
    waiting = [folder]
    while waiting:
        place = waiting.pop()
        real = os.path.realpath(place)
        if real not in seen:
            seen.add(real)
            files += [place / entry.name for entry in _entries(place) if is_image(entry.name) and not entry.is_folder]
            skipped += _others_in(place)
            waiting += reversed(_subfolders(place))
    return files, skipped


def _images_under(folder: Path) -> tuple[list[Path], Counter[str]]:
    """``_walk``; UserError where there is no image, or splits that would be mixed."""
    files, skipped = _walk(folder)
    if not files:
        there = f"; there are {by_suffix(skipped)}" if skipped else ""
        if skipped.keys() & {".gz", ".tgz", ".xz", ".zst"}:
            there += "; compressed tars are not read: unpack them, or gunzip them"
        raise UserError(f"{folder}: no images found (looked for {', '.join(sorted(readable_suffixes()))}{there})")
    _refuse_splits_inside(folder, {file.parent for file in files})
    return files, skipped


def _refuse_splits_inside(folder: Path, places: set[Path]) -> None:
    """UserError where two splits lie deeper than the top, so that one would be trained on with the other."""
    splits: dict[Path, set[str]] = {}
    for place in places:
        while place != folder:
            if split_of(place):
                splits.setdefault(place.parent, set()).add(split_of(place))
            place = place.parent
    for parent, names in sorted(splits.items()):
        if len(names) > 1:
            raise UserError(f"{parent}: holds splits; give that folder or one split, or lay classes inside of splits")
