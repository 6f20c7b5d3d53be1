"""What the documents show is what happens."""

from pathlib import Path

import pytest

from tests.docs.conftest import Ground
from tests.docs.snippets import (
    Session,
    blocks_of,
    is_as_shown,
    problems_of,
    scenarios_of,
    steps_of,
)

ROOT = Path(__file__).parent.parent.parent
PLACES = ("*.md", "docs/*.md", "clients/python/*.md", "bench/*.md", "docker/*.md")
DOCUMENTS = {
    str(path.relative_to(ROOT)): blocks_of(
        path.read_text(encoding="utf-8"), str(path.relative_to(ROOT))
    )
    for place in PLACES
    for path in sorted(ROOT.glob(place))
}
RUNS = [(name, scenario) for name, blocks in DOCUMENTS.items() for scenario in scenarios_of(blocks)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_every_block_says_whether_it_is_run(document):
    assert problems_of(DOCUMENTS[document]) == []


@pytest.mark.slow
@pytest.mark.timeout(600)  # the guide of training trains a dozen times
@pytest.mark.parametrize(("document", "scenario"), RUNS)
def test_the_blocks_of_a_document_do_what_it_says(document, scenario, request, tmp_path):
    ground: Ground = request.getfixturevalue(f"scenario_{scenario}")
    for name, content in ground.files.items():
        (tmp_path / name).write_bytes(content)
    session = Session(tmp_path, ground.environment)
    for block, output in steps_of(DOCUMENTS[document], scenario):
        printed = session.run(block)
        assert output is None or is_as_shown(output.text, printed), f"{block.place}:\n{printed}"


TEXT = """
<!-- run: shell -->
```bash
echo 1 > one
```

1. In a list:

   <!-- run: shell -->
   ```console
   $ cat \\
       one
   1
   $ echo "a b"; echo c
   a …
   ```

<!-- run: shell -->
```python
from pathlib import Path
value = int(Path("one").read_text())
```

<!-- run: shell -->
```python
print({"value": value, "other": value + 1})
```

<!-- output -->
```text
{'value': 1, …}
```

<!-- shown: it would take an hour -->
```bash
exit 1
```

```json
{}
```
"""


def test_blocks_run_in_order_in_one_folder_and_one_namespace(tmp_path):
    blocks = blocks_of(TEXT, "text.md")
    assert problems_of(blocks) == []
    assert scenarios_of(blocks) == ["shell"]
    session = Session(tmp_path, {})
    outputs = []
    for block, output in steps_of(blocks, "shell"):
        printed = session.run(block)
        if output is not None:
            outputs.append(is_as_shown(output.text, printed))
    assert outputs == [True]


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("```bash\nls\n```", "neither"),
        ("<!-- a remark -->\n```python\n1\n```", "neither"),
        ("<!-- run: shell -->\n\nBut then prose.\n\n```bash\nls\n```", "neither"),
        ("<!-- shown -->\n```bash\nls\n```", "needs a name or a reason"),
        ("<!-- run -->\n```bash\nls\n```", "needs a name or a reason"),
        ("<!-- run: shell -->\n```yaml\na: 1\n```", "can't be run"),
        ("<!-- output -->\n```text\n1\n```", "output of which block"),
    ],
)
def test_a_block_without_a_proper_mark_is_told(text, problem):
    (found,) = problems_of(blocks_of(text, "text.md"))
    assert problem in found
    assert found.startswith("text.md:")


@pytest.mark.parametrize("text", ["```bash\nfalse | cat\n```", "```bash\necho $NOT_SET\n```"])
def test_a_failing_command_fails(tmp_path, text):
    (block,) = blocks_of(f"<!-- run: shell -->\n{text}", "text.md")
    with pytest.raises(AssertionError, match=r"text\.md:2: exit status"):
        Session(tmp_path, {}).run(block)


def test_a_python_block_fails_with_the_documents_line(tmp_path):
    (block,) = blocks_of("<!-- run: shell -->\n```python\n1\nraise KeyError\n```", "text.md")
    with pytest.raises(KeyError) as failed:
        Session(tmp_path, {}).run(block)
    assert failed.traceback[-1].lineno == 3


@pytest.mark.parametrize(
    ("shown", "printed", "expected"),
    [
        ("1", "1\n", True),
        ("a … d", "a b\nc d", True),
        ("…", "", True),
        ("1", "2", False),
        ("a…", "b", False),
        ("1.5", "145", False),
    ],
)
def test_an_ellipsis_stands_for_anything(shown, printed, expected):
    assert is_as_shown(shown, printed) is expected
