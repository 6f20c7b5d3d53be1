"""The Lua files: each is used, and Redis compiles what is made of them."""

from pathlib import Path

import pytest
from redis.asyncio import Redis

from peterrec.patches.registry import scripts

FOLDER = Path(scripts.__file__).parent
SCRIPTS = {name: text for name, text in vars(scripts).items() if isinstance(text, str)}
TEXTS = {name: text for name, text in SCRIPTS.items() if "redis.call" in text}


def test_every_lua_file_is_part_of_a_script() -> None:
    files = [path.read_text(encoding="utf-8") for path in FOLDER.glob("*.lua")]
    assert len(files) > len(TEXTS)
    assert all(any(text in script for script in TEXTS.values()) for text in files)


@pytest.mark.parametrize("name", TEXTS)
async def test_redis_compiles_every_script(redis: Redis, name: str) -> None:
    assert len(await redis.script_load(TEXTS[name])) == 40


def test_the_scripts_name_as_many_keys_as_they_are_given() -> None:
    text = (FOLDER / "keys.lua").read_text(encoding="utf-8")
    assert f"KEYS[{len(scripts.KEY_NAMES)}]" in text
    assert f"KEYS[{len(scripts.KEY_NAMES) + 1}]" not in text
