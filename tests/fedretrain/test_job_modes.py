"""What a job says about how it retrains: modes, their tables, stages, and since when examples are new."""

import tomllib
from datetime import UTC, datetime
from pathlib import Path

import pytest

from fedretrain.errors import ConfigurationError
from fedretrain.job import Job
from fedretrain.tomlfile import check_toml

HEAD = '[model]\npath = "a.keras"\n[[holdout]]\nname = "old"\npath = "old.npz"\n'
EXTEND = '[train]\nmode = "extend"\n[extend]\nlabels = ["a", "b", "c"]\n'
STAGES = "[[train.stages]]\nrounds = 2\nfreeze = ['conv*']\n[[train.stages]]\nrounds = 3\nlearning_rate = 0.1\n"


def read(text: str) -> Job:
    return check_toml(tomllib.loads(HEAD + text), Job, Path("job.toml"))


def test_a_job_that_only_goes_on_is_written_as_if_there_were_nothing_else() -> None:
    """So its digest, and those of its messages, do not depend on what other jobs can say."""
    dump = read("").model_dump(mode="json")
    assert set(dump["train"]) == {
        "rounds", "local_epochs", "local_steps", "batch_size", "optimizer", "loss", "metrics", "jit_compile",
        "validation_fraction", "seed",
    }  # fmt: skip
    assert not {"transfer", "extend", "ensemble", "online"} & set(dump)
    assert read("").digest == read('[train]\nmode = "continue"\n').digest != read('[train]\nmode = "full"\n').digest


@pytest.mark.parametrize("text", [EXTEND, STAGES, "[train]\nsince = 2026-06-01T02:00:00+02:00\n"])
def test_what_is_said_survives_being_written(text: str) -> None:
    """As it is kept in a run's folder, and as it travels."""
    job = read(text)
    assert Job.model_validate_json(job.model_dump_json()) == job


def test_the_rounds_of_stages_need_not_be_said_twice() -> None:
    """Their sum is the run's; another number is refused."""
    assert read(STAGES).train.rounds == 5
    with pytest.raises(ConfigurationError, match=r"stages: expected rounds that sum to train.rounds, 4, got 5"):
        read("[train]\nrounds = 4\n" + STAGES)


def test_times_are_in_utc() -> None:
    """Whatever zone they were written in, and where none was."""
    for text in ("2026-06-01T00:00:00Z", "2026-06-01T02:00:00+02:00", "2026-06-01T00:00:00"):
        assert read(f"[train]\nsince = {text}\n").train.since == datetime(2026, 6, 1, tzinfo=UTC)


@pytest.mark.parametrize(
    ("text", "line"),
    [
        ('[train]\nmode = "ful"\n', "job.toml: train.mode: expected 'continue', 'full', 'incremental'"),
        ('[train]\nmode = "extend"\n', "job.toml: extend: required with train.mode = 'extend', but missing"),
        ('[transfer]\nhead = "a:b"\n', "job.toml: transfer: no such table where train.mode is 'continue'; set it to"),
        (EXTEND + 'merg = ["a"]\n', "job.toml: extend.merg: unknown key; did you mean 'merge'?"),
        (
            '[train]\nmode = "full"\n' + STAGES,
            "stages: expected one of the modes continue, transfer, extend, got 'full'",
        ),
    ],
)
def test_a_mistake_is_one_line(text: str, line: str) -> None:
    """The key, what was expected, what was found."""
    with pytest.raises(ConfigurationError) as caught:
        read(text)
    assert line in str(caught.value)
    assert "\n" not in str(caught.value)
