from __future__ import annotations

import pytest
import yaml

from llmrec_pl.configs import as_list, setting


@pytest.fixture
def files(tmp_path):
    paths = [tmp_path / "a.yaml", tmp_path / "b.yaml"]
    for path, root in zip(paths, ("data/a", "data/b"), strict=True):
        path.write_text(yaml.safe_dump({"data": {"root": root}}))
    return paths


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "data/b"),
        (["--data.root", "x"], "x"),
        (["--data.root=x=y"], "x=y"),
        (["--data.root=x", "--data.rooted", "no", "--data.root", "z"], "z"),
    ],
)
def test_the_command_line_wins_over_files_and_the_last_wins(files, arguments, expected):
    assert setting(files, arguments, "data.root") == expected


@pytest.mark.parametrize(
    ("value", "expected"),
    [(None, []), ("text", ["text"]), (0, [0]), ([1, 2], [1, 2]), ((1, 2), [1, 2]), ([], [])],
)
def test_one_value_several_or_none_make_a_list(value, expected):
    assert as_list(value) == expected


def test_a_key_that_nobody_states_has_the_default(files):
    assert setting(files, ["--data.size", "3"], "evaluation.candidates", "all") == "all"
