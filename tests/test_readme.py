"""What the README shows runs."""

import re

from tests import tiny


def test_the_library_example():
    readme = (tiny.REPOSITORY / "README.md").read_text()
    (example,) = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    names: dict = {}
    exec(example, names)  # noqa: S102  the text is our own
    assert names["logits"].shape == (2, 101)
    assert names["embedding"].shape == (2, 128)
    assert len(names["maps"]) == 4


def test_every_file_and_config_it_names_is_there():
    readme = (tiny.REPOSITORY / "README.md").read_text()
    named = set(re.findall(r"\b(?:configs|skd_jax|docs)/[\w/]+\.(?:py|png)", readme))
    assert "configs/demo.py" in named
    assert [name for name in sorted(named) if not (tiny.REPOSITORY / name).is_file()] == []
