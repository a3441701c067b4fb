"""Each run has a folder of its own."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from qat.experiment.folders import check_folder, folder_of_one_run, new_folder, resumed_by, was_interrupted_early


def test_names_given_at_the_same_time_never_collide(tmp_path: Path) -> None:
    with ThreadPoolExecutor(8) as pool:
        made = list(pool.map(new_folder, [str(tmp_path / "outputs" / "12-00-00")] * 24))
    assert len(set(made)) == 24
    assert all(Path(path).is_dir() for path in made)
    assert {str(tmp_path / "outputs" / "12-00-00"), str(tmp_path / "outputs" / "12-00-00_24")} <= set(made)


def test_only_one_of_two_runs_gets_a_folder(tmp_path: Path) -> None:
    second = folder_of_one_run(tmp_path / "run")
    with (
        folder_of_one_run(tmp_path / "run"),
        pytest.raises(ValueError, match="run is the folder of a run that is under way"),
    ):
        second.__enter__()
    with folder_of_one_run(tmp_path / "run"):
        pass
    assert [path.name for path in tmp_path.rglob("*")] == ["run"], "no marker stays"


@pytest.mark.parametrize("written", ["results.json", "metrics", "checkpoints"])
def test_what_another_run_wrote_is_not_overwritten(written: str, tmp_path: Path) -> None:
    (tmp_path / "config.yaml").touch()
    (tmp_path / "train.log").touch()
    check_folder(tmp_path)  # a run that a mistake ended before its first step
    assert was_interrupted_early(tmp_path)
    (tmp_path / written).mkdir()
    with pytest.raises(
        ValueError, match=f"holds {written} of another run, which would be overwritten: write the name of"
    ):
        check_folder(tmp_path)


def test_a_run_without_a_checkpoint_can_only_start_anew(tmp_path: Path) -> None:
    assert not was_interrupted_early(tmp_path), "not a run"
    (tmp_path / "train.log").touch()
    (tmp_path / "checkpoints").mkdir()
    assert resumed_by(tmp_path) is None
    (tmp_path / "config.yaml").write_text(f"resume: {tmp_path.parent}")
    assert resumed_by(tmp_path) == tmp_path.parent
    (tmp_path / "config.yaml").write_text(f"resume: {tmp_path}")
    assert resumed_by(tmp_path) is None
    assert was_interrupted_early(tmp_path)
    (tmp_path / "checkpoints" / "last.ckpt").touch()
    assert not was_interrupted_early(tmp_path)
