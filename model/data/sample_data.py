"""A synthetic shop: readers of a magazine whose interests determine what they buy later.

Clicks on articles are the source domain. First purchases in the shop are the target domain, which
has other items. Gender and age shift what a user likes, but neither determines it.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from peterrec.model.data.files import PositionedEvents, write_columns, write_events
from peterrec.model.disk import folder_in_one_step
from peterrec.model.progress import OnProgress, Progress, no_progress

INTERESTS = (
    "camping",
    "gardening",
    "cooking",
    "running",
    "photography",
    "knitting",
    "cycling",
    "gaming",
    "travel",
    "music",
    "woodwork",
    "astronomy",
)
ANGLES = ("A first look at", "Ten ideas for", "The quiet side of", "Mistakes to avoid in")
THEMES = ("weekends", "small budgets", "families", "rainy days", "beginners", "winter", "experts")
GOODS = ("starter kit", "handbook", "toolbox", "apron", "lamp", "bag", "calendar", "gift box")
GENDERS = ("female", "male")
AGE_GROUPS = ("18-29", "30-44", "45-59", "60+")

INTERESTS_PER_USER = 3
PROFILE_PULL = 1.3
STAY = 0.7
NEIGHBOUR = 0.35
SHORTEST, MEAN_EXTRA, LONGEST = 12, 26, 80

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class _People:
    """The users: indices of gender and age group, and weights of interests [U, I]."""

    gender: Ints
    age: Ints
    taste: Floats


def write_sample_data(
    out: Path, users: int = 4000, seed: int = 0, on_progress: OnProgress = no_progress
) -> None:
    """Write the shop's folder. Equal seeds give equal files."""
    generator = np.random.default_rng(seed)
    people = _make_people(users, generator)
    events = _make_clicks(people, generator, on_progress)
    names = _user_names(users)
    on_progress(Progress("writing tables"))
    with folder_in_one_step(out) as folder:
        write_events(folder / "interactions.parquet", events)
        write_events(folder / "histories.parquet", events.select(events.history_mask()))
        write_events(folder / "targets.parquet", _make_purchases(people, generator))
        _write_users(folder / "users.parquet", people, generator)
        write_columns(folder / "tags.parquet", _tag_rows(people, names))
        _write_items(folder / "items.parquet")


def _user_names(users: int) -> list[str]:
    return [f"user-{i:05d}" for i in range(users)]


def _make_people(users: int, generator: np.random.Generator) -> _People:
    """Draw a few interests for each user; gender and age group make some of them more likely."""
    gender = generator.integers(0, len(GENDERS), users)
    age = generator.choice(len(AGE_GROUPS), users, p=(0.3, 0.35, 0.22, 0.13))
    pull = PROFILE_PULL * generator.standard_normal((len(GENDERS), len(INTERESTS)))
    pull_by_age = PROFILE_PULL * generator.standard_normal((len(AGE_GROUPS), len(INTERESTS)))
    liking = pull[gender] + pull_by_age[age] + generator.gumbel(size=(users, len(INTERESTS)))
    rank = np.argsort(np.argsort(-liking, axis=1), axis=1)  # [U, I]
    weight = np.where(rank < INTERESTS_PER_USER, 0.5**rank, 0.02)
    return _People(gender, age, weight / weight.sum(1, keepdims=True))


def _make_clicks(
    people: _People, generator: np.random.Generator, on_progress: OnProgress
) -> PositionedEvents:
    """Draw clicks: readers stay with an interest for a while and often take the next article."""
    users, per_interest = len(people.gender), len(ANGLES) * len(THEMES)
    extra = generator.exponential(MEAN_EXTRA, users).astype(np.int64)
    lengths = np.minimum(LONGEST, SHORTEST + extra)
    popularity = 1 / np.arange(1, per_interest + 1) ** 0.7
    angle_of_age = (people.age * per_interest // len(AGE_GROUPS))[:, None]  # [U, 1]
    shape = (users, LONGEST)
    interest, article = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    fresh = generator.choice(per_interest, shape, p=popularity / popularity.sum())
    is_tilted = generator.random(shape) < 0.3
    fresh = np.where(is_tilted, (fresh + angle_of_age) % per_interest, fresh)
    stays, moves_on = generator.random((2, *shape)) < np.array([STAY, NEIGHBOUR])[:, None, None]
    for t in range(LONGEST):
        on_progress(Progress("sampling clicks", t * users, LONGEST * users, unit="clicks"))
        drawn = _draw(people.taste, generator)
        has_last = t > 0
        interest[:, t] = np.where(stays[:, t] & has_last, interest[:, t - 1], drawn)
        is_next = moves_on[:, t] & stays[:, t] & has_last
        article[:, t] = np.where(is_next, (article[:, t - 1] + 1) % per_interest, fresh[:, t])
    on_progress(Progress("naming clicks"))
    return _as_events(interest * per_interest + article, lengths, "article")


def _make_purchases(people: _People, generator: np.random.Generator) -> PositionedEvents:
    """Draw one to three first purchases, which depend on interests, age and gender."""
    users = len(people.gender)
    lengths = generator.integers(1, 4, users)
    picks = np.zeros((users, 3), np.int64)
    for t in range(3):
        interest = _draw(people.taste, generator)
        usual = (2 * people.age + people.gender + t) % len(GOODS)
        anything = generator.integers(0, len(GOODS), users)
        good = np.where(generator.random(users) < 0.5, usual, anything)
        picks[:, t] = interest * len(GOODS) + good
    return _as_events(picks, lengths, "product")


def _draw(weights: Floats, generator: np.random.Generator) -> Ints:
    """One column index per row, with the row's probabilities."""
    chosen: Ints = (weights.cumsum(1) < generator.random((len(weights), 1))).sum(1)
    within: Ints = np.minimum(chosen, weights.shape[1] - 1)
    return within


def _as_events(items: Ints, lengths: Ints, prefix: str) -> PositionedEvents:
    """The first ``lengths[u]`` items of each row [U, T] as events."""
    is_there = np.arange(items.shape[1]) < lengths[:, None]
    owner, position = np.nonzero(is_there)
    names = _user_names(len(items))
    return PositionedEvents(
        [names[u] for u in owner.tolist()],
        [f"{prefix}-{item:04d}" for item in items[is_there].tolist()],
        position.astype(np.int64),
    )


def _write_users(path: Path, people: _People, generator: np.random.Generator) -> None:
    """Write profiles, and the monthly spend, which depends on age, interests and chance."""
    price = np.linspace(5, 60, len(INTERESTS))
    chance = generator.normal(0, 4, len(people.age))
    spend = np.maximum(0, 20 + 12 * people.age + people.taste @ price + chance)
    write_columns(
        path,
        {
            "user_id": _user_names(len(people.gender)),
            "gender": [GENDERS[i] for i in people.gender.tolist()],
            "age_group": [AGE_GROUPS[i] for i in people.age.tolist()],
            "monthly_spend": spend.round(2).tolist(),
        },
    )


def _tag_rows(people: _People, names: list[str]) -> dict[str, list[str]]:
    owner, interest = np.nonzero(people.taste > 0.1)
    return {
        "user_id": [names[u] for u in owner.tolist()],
        "tag": [INTERESTS[i] for i in interest.tolist()],
    }


def _write_items(path: Path) -> None:
    articles = [(i, f"{a} {i} for {t}") for i in INTERESTS for a in ANGLES for t in THEMES]
    products = [(i, f"{i.capitalize()} {good}") for i in INTERESTS for good in GOODS]
    ids = [f"article-{n:04d}" for n in range(len(articles))]
    ids += [f"product-{n:04d}" for n in range(len(products))]
    everything = articles + products
    write_columns(
        path,
        {
            "item_id": ids,
            "title": [title for _, title in everything],
            "category": [category for category, _ in everything],
        },
    )
