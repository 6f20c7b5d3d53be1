"""A prepared folder of the tiny data set, and settings for a comparison within seconds."""

from dataclasses import replace
from pathlib import Path

from peterrec.model.data.histories import UserLabels
from peterrec.model.data.splits import split_users
from peterrec.model.study.corpus import CorpusTask, PreparedCorpus, write_corpora
from peterrec.model.study.run import Workplace
from peterrec.model.study.settings import Axes, ComparisonSettings
from tests.model.small_shop import TINY, groups, shop_histories

SETTINGS = ComparisonSettings(
    methods=("peterrec", "fineall"),
    axes=Axes(insertions=("serial2",), bottlenecks=(4,)),
    seeds=2,
    rate_trials=2,
    epochs=6,
    batch_size=16,
    item_dropout=0.0,
    pretraining=replace(TINY, epochs=1),
)

USERS = 160


def targets() -> UserLabels:
    """Make the next items of each group; training users do not know one of the targets."""
    by_user = {
        user: (f"target-{answer[0]}", f"target-{answer[0]}-{i % 3}")
        for i, (user, answer) in enumerate(groups(USERS).by_user.items())
    }
    return UserLabels(by_user, "targets.csv")


def shop_corpus(
    name: str = "shop", labels: UserLabels | None = None, split_seed: int = 0
) -> PreparedCorpus:
    """Make a corpus with one task of groups and one task of targets."""
    histories = shop_histories(USERS)
    tasks = (
        CorpusTask("group", "classification", labels or groups(USERS)),
        CorpusTask("next", "ranking", targets()),
    )
    split = split_users(histories.users, 0.2, 0.3, seed=split_seed)
    own = f"{name}-split{split_seed}" if split_seed else name
    return PreparedCorpus(own, histories, split, tasks, {"source": "a test"}, split_of=name)


def workplace(folder: Path, settings: ComparisonSettings, *corpora: PreparedCorpus) -> Workplace:
    """Make a prepared folder, and an output folder next to it."""
    prepared = folder / "prepared"
    prepared.mkdir()
    write_corpora(prepared, corpora or (shop_corpus(),))
    return Workplace(prepared, folder / "out", settings)
