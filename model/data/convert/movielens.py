"""Converts MovieLens data sets to Parquet: interactions, profiles, titles and derived tasks.

It reads the 1M form (``ratings.dat`` or a pre-ordered ``ratings_ordered.csv``), the 100k form
(``u.data``) and the newer CSV form (``ratings.csv``, which has no profiles).
"""

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from pathlib import Path

import numpy as np
import numpy.typing as npt

from peterrec.model.data.files import history_lengths, write_all, write_columns, write_halves
from peterrec.model.data.histories import Histories
from peterrec.model.data.interactions import Events, InteractionSource, histories_of, read_histories
from peterrec.model.data.observer import SILENT, ReadingObserver
from peterrec.model.data.tables import TableSource, read_parts
from peterrec.model.data.values import read_texts
from peterrec.model.disk import folder_in_one_step
from peterrec.model.errors import DataFileMissing, DataFileUnreadable
from peterrec.model.progress import Progress

FAVOURITES = 3
"""Number of a user's tags: the genres that are most frequent among the held-out films."""

GENDERS = {"F": "female", "M": "male"}

AGE_RANGES = {
    18: "under 18",
    25: "18-24",
    35: "25-34",
    45: "35-44",
    50: "45-49",
    56: "50-55",
}
"""Names of the age ranges, by the first age above each range."""

OLDEST = "56 and over"

OCCUPATIONS = (
    "other",
    "teaching",
    "artist",
    "office work",
    "college student",
    "customer service",
    "health care",
    "management",
    "farmer",
    "homemaker",
    "school student",
    "lawyer",
    "programmer",
    "retired",
    "sales",
    "scientist",
    "self-employed",
    "engineering",
    "trades",
    "unemployed",
    "writer",
)
"""Occupations of the 1M form, by their code."""


@dataclass(frozen=True, slots=True)
class Profile:
    """The data set's profile of a user."""

    user: str
    gender: str
    age: str
    occupation: str


@dataclass(frozen=True, slots=True)
class Film:
    """An item with its title and genres."""

    item: str
    title: str
    genres: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class MovieLens:
    """One data set in memory; the CSV form has no profiles."""

    histories: Histories
    profiles: list[Profile]
    films: list[Film]


@dataclass(frozen=True, slots=True)
class ConvertedMovieLens:
    """Counts of the converted data."""

    users: int
    items: int
    events: int
    has_profiles: bool


def convert_movielens(
    folder: Path, out: Path, observer: ReadingObserver = SILENT
) -> ConvertedMovieLens:
    """Write interactions, histories, targets, tags, items and, if known, users as Parquet."""
    data = read_movielens(folder, observer)
    observer.progress(Progress("writing tables"))
    with folder_in_one_step(out) as place:
        write_all(data.histories, place / "interactions.parquet")
        write_halves(data.histories, place)
        write_columns(place / "tags.parquet", _favourite_genres(data.histories, data.films))
        _write_films(place / "items.parquet", data.films)
        if data.profiles:
            _write_profiles(place / "users.parquet", data.profiles)
    return ConvertedMovieLens(
        len(data.histories.users),
        len(data.histories.items),
        len(data.histories.codes),
        bool(data.profiles),
    )


def read_movielens(folder: Path, observer: ReadingObserver = SILENT) -> MovieLens:
    """Read the data set in a folder, in any of the three forms."""
    for marker, read in FORMS.items():
        if (folder / marker).exists():
            observer.progress(Progress("reading MovieLens"))
            return read(folder)
    raise DataFileMissing(
        f"{folder} has none of {', '.join(FORMS)}.",
        hint="Give an unpacked MovieLens folder, or run `peterrec download movielens-1m` first.",
    )


def _read_1m(folder: Path) -> MovieLens:
    ordered = folder / "ratings_ordered.csv"
    if ordered.exists():
        histories = _read_table(ordered, "user_id", "movie_id", "pos")
    else:
        histories = _by_time(folder / "ratings.dat", "::")
    return MovieLens(histories, list(_profiles_1m(folder)), list(_films_1m(folder)))


def _read_100k(folder: Path) -> MovieLens:
    histories = _by_time(folder / "u.data", "\t")
    return MovieLens(histories, list(_profiles_100k(folder)), list(_films_100k(folder)))


def _read_csv(folder: Path) -> MovieLens:
    histories = _read_table(folder / "ratings.csv", "userId", "movieId", "timestamp")
    return MovieLens(histories, [], list(_films_csv(folder)))


FORMS: Mapping[str, Callable[[Path], MovieLens]] = {
    "movies.dat": _read_1m,
    "u.item": _read_100k,
    "ratings.csv": _read_csv,
}


def _read_table(path: Path, user: str, item: str, order: str) -> Histories:
    return read_histories(InteractionSource(TableSource(path), user, item, order))


def _by_time(path: Path, separator: str) -> Histories:
    """Histories of a file without header: user, item, rating, timestamp."""
    fields = list(_fields(path, separator, 4))
    users = {user: i for i, user in enumerate(dict.fromkeys(row[0] for row in fields))}
    items = {item: i for i, item in enumerate(dict.fromkeys(row[1] for row in fields))}
    events = Events(
        tuple(users),
        tuple(items),
        np.array([users[row[0]] for row in fields], dtype=np.int32),
        np.array([items[row[1]] for row in fields], dtype=np.int32),
        _times(path, separator, fields),
        "number",
        str(path),
    )
    return histories_of(events)


def _times(path: Path, separator: str, fields: list[list[str]]) -> npt.NDArray[np.int64]:
    try:
        return np.array([int(row[3]) for row in fields])
    except ValueError as error:
        number, text = next(
            (number, row[3])
            for number, row in _numbered_fields(path, separator, 4)
            if not re.fullmatch(r"\s*[+-]?[0-9]+\s*", row[3])
        )
        raise DataFileUnreadable(
            f"{path}, line {number}, field 4: the timestamp is {text!r}.",
            hint="Unpack the data set again.",
        ) from error


def _profiles_1m(folder: Path) -> Iterator[Profile]:
    path = folder / "users.dat"
    for number, row in _numbered_fields(path, "::", 5):
        user, gender, age, occupation, _ = row
        if not occupation.isdigit() or int(occupation) >= len(OCCUPATIONS):
            raise _bad_profile(path, number, f"occupation {occupation!r}")
        yield _profile(path, number, user, gender, age, OCCUPATIONS[int(occupation)])


def _profiles_100k(folder: Path) -> Iterator[Profile]:
    path = folder / "u.user"
    for number, row in _numbered_fields(path, "|", 5):
        user, age, gender, occupation, _ = row
        yield _profile(path, number, user, gender, age, occupation)


def _profile(path: Path, number: int, user: str, gender: str, age: str, occupation: str) -> Profile:
    if gender not in GENDERS:
        raise _bad_profile(path, number, f"gender {gender!r}")
    if not age.isdigit():
        raise _bad_profile(path, number, f"age {age!r}")
    return Profile(user, GENDERS[gender], age_range(int(age)), occupation)


def age_range(age: int) -> str:
    """The range of an age in years; each code of the 1M form is an age in its own range."""
    return next((name for end, name in AGE_RANGES.items() if age < end), OLDEST)


def _bad_profile(path: Path, number: int, what: str) -> DataFileUnreadable:
    return DataFileUnreadable(
        f"{path}, line {number}: {what} is unknown.", hint="Unpack the data set again."
    )


def _films_1m(folder: Path) -> Iterator[Film]:
    for item, title, genres in _fields(folder / "movies.dat", "::", 3):
        yield Film(item, title, tuple(genres.split("|")))


def _films_100k(folder: Path) -> Iterator[Film]:
    names = [row[0] for row in _fields(folder / "u.genre", "|", 2)]
    for row in _fields(folder / "u.item", "|", 5 + len(names)):
        flags = row[5:]
        genres = (name for name, flag in zip(names, flags, strict=True) if flag == "1")
        yield Film(row[0], row[1], tuple(genres))


def _films_csv(folder: Path) -> Iterator[Film]:
    columns = ("movieId", "title", "genres")
    parts = read_parts(TableSource(folder / "movies.csv"), columns)
    texts = (chain.from_iterable(read_texts(parts, column)) for column in columns)
    for item, title, genres in zip(*texts, strict=True):
        assert item is not None
        assert title is not None
        assert genres is not None
        yield Film(item, title, tuple(g for g in genres.split("|") if not g.startswith("(")))


def _fields(path: Path, separator: str, count: int) -> Iterator[list[str]]:
    """The fields of every line."""
    return (row for _, row in _numbered_fields(path, separator, count))


def _numbered_fields(path: Path, separator: str, count: int) -> Iterator[tuple[int, list[str]]]:
    """Number and fields of every line that is not empty. These files are in Latin-1."""
    if not path.exists():
        raise DataFileMissing(f"{path} does not exist.", hint="Give the whole data set's folder.")
    with path.open(encoding="latin-1") as lines:
        for number, line in enumerate(lines, 1):
            row = line.rstrip("\r\n").split(separator)
            if row == [""]:
                continue
            if len(row) != count:
                raise DataFileUnreadable(
                    f"{path}, line {number}: {len(row)} fields, not {count}.",
                    hint="Unpack the data set again.",
                )
            yield number, row


def _favourite_genres(histories: Histories, films: list[Film]) -> dict[str, list[str]]:
    """Columns user_id and tag: the most frequent genres among each user's held-out films."""
    genres_of = {film.item: film.genres for film in films}
    kept = history_lengths(np.diff(histories.offsets)).tolist()
    rows: list[tuple[str, str]] = []
    for at, user in enumerate(histories.users):
        targets = histories.items_of(at)[kept[at] :]
        counter = Counter(genre for item in targets for genre in genres_of.get(item, ()))
        rows += [(user, tag) for tag in _most_common(counter)]
    return {"user_id": [user for user, _ in rows], "tag": [tag for _, tag in rows]}


def _most_common(counter: Counter[str]) -> list[str]:
    return sorted(counter, key=lambda tag: (-counter[tag], tag))[:FAVOURITES]


def _write_profiles(path: Path, profiles: list[Profile]) -> None:
    write_columns(
        path,
        {
            "user_id": [p.user for p in profiles],
            "gender": [p.gender for p in profiles],
            "age": [p.age for p in profiles],
            "occupation": [p.occupation for p in profiles],
        },
    )


def _write_films(path: Path, films: list[Film]) -> None:
    write_columns(
        path,
        {
            "item_id": [film.item for film in films],
            "title": [film.title for film in films],
            "genres": ["|".join(film.genres) for film in films],
        },
    )
