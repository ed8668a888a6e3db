"""What is copied to a mirror, what is removed there, and what a launch elsewhere gets from it."""

import json
import shutil
import socket
import stat
import time
from pathlib import Path

import pytest

from pipeline.checkpoint.store import CheckpointStore
from pipeline.mirror.claim import use_mirror
from pipeline.mirror.copier import Copier, DamagedHereError
from pipeline.mirror.handle import Mirror
from pipeline.mirror.layout import SNAPSHOT_NAME, snapshots
from pipeline.mirror.place import MirrorError, Place
from pipeline.run.config import read_config
from pipeline.run.evaluations import write_evaluation
from pipeline.run.files import checkpoints, read_evaluations
from pipeline.run.mirror_files import TARGET_NAME, MirrorTarget, read_target, write_target
from tests.support.mirrored_runs import bring, copy_all, files_below, is_whole, mirror, new_run, publish, steps_in
from tests.support.object_store import KEYS, FaultyProxy, place, s3_server


@pytest.fixture(scope="module")
def s3():
    """The port of an S3 server."""
    with s3_server() as port, pytest.MonkeyPatch.context() as patch:
        for name, value in {**KEYS, "AWS_MAX_ATTEMPTS": "1"}.items():
            patch.setenv(name, value)
        yield port


@pytest.mark.parametrize("kind", ["folder", pytest.param("s3", marks=pytest.mark.thorough)])
def test_a_run_goes_on_elsewhere_with_all_that_it_needs(kind: str, run_dir: Path, tmp_path: Path, request):
    location = str(tmp_path / "mirror")
    if kind == "s3":
        query = place(request.getfixturevalue("s3"))
        Place(f"s3://runs?{query}")._files.create_dir("runs")
        location = f"s3://runs/one?{query}"
    for step in (100, 200, 300):
        publish(run_dir, step, top1=0.9 if step == 100 else 0.5)
    write_evaluation(run_dir, 200, {"top1": 0.5}, seconds=1.0)
    copy_all(mirror(run_dir, location))
    there = tmp_path / "there" / "run"
    said = bring(location, there)
    assert "step 300" in said[-1]
    assert str(run_dir) in said[-1]
    # The newest, and the best, which is registered at the end.
    assert sorted(checkpoints(there)) == [100, 300]
    assert is_whole(there, 300)
    assert is_whole(there, 100)
    assert read_config(there).train.steps == 900
    assert read_evaluations(there) == read_evaluations(run_dir) != {}
    assert stat.S_IMODE(there.stat().st_mode) == 0o700
    # The mirror continues from there.
    publish(there, 400)
    target = read_target(there)
    assert target is not None
    copy_all(Copier(there, target))
    assert steps_in(location) == [100, 300, 400]


def test_secrets_and_files_of_this_place_stay_here(run_dir: Path, tmp_path: Path):
    publish(run_dir, 100)
    copy_all(mirror(run_dir, str(tmp_path / "mirror")))
    copied = files_below(tmp_path / "mirror")
    assert not [name for name in copied if Path(name).name in ("notify.json", TARGET_NAME)]
    assert not [name for name, content in copied.items() if b"hunter2" in content or b"SECRET" in content]
    assert stat.S_IMODE((run_dir / TARGET_NAME).stat().st_mode) == 0o600
    assert "hunter2" not in Place("s3://key:hunter2@bucket/run").shown


class Cut(Exception):
    """The process that copies was killed."""


class CutPlace(Place):
    """A folder that is cut off at its n-th change: a file is left half written, as by a kill."""

    def __init__(self, location: str, left: int) -> None:
        super().__init__(location)
        self.left = left

    def _write(self, name, parts) -> None:
        self.left -= 1
        if self.left >= 0:
            return super()._write(name, parts)
        whole = b"".join(parts)
        super()._write(name, iter([whole[: len(whole) // 2]]))
        raise Cut

    def remove(self, name: str) -> None:
        self.left -= 1
        if self.left >= 0:
            return super().remove(name)
        remains = sorted(path for path in Path(self._path(name)).rglob("*") if path.is_file())
        for path in remains[: len(remains) // 2]:
            path.unlink()
        raise Cut


def test_a_copy_that_is_cut_off_anywhere_is_never_chosen(run_dir: Path, tmp_path: Path):
    location, there = tmp_path / "mirror", tmp_path / "there"
    publish(run_dir, 100)
    copy_all(mirror(run_dir, str(location)))
    shutil.copytree(location, tmp_path / "before")
    publish(run_dir, 200)
    CheckpointStore(run_dir).retain(1)
    target, brought, cuts = read_target(run_dir), [], 0
    assert target is not None
    while True:
        shutil.rmtree(location)
        shutil.copytree(tmp_path / "before", location)
        copier = Copier(run_dir, target)
        copier.place = CutPlace(str(location), cuts)
        try:
            copy_all(copier)
            break
        except Cut:
            cuts += 1
        saved = tmp_path / "saved"
        shutil.copytree(location, saved)
        bring(str(location), there)
        [step] = checkpoints(there)
        assert is_whole(there, step)
        brought.append(step)
        shutil.rmtree(there)
        shutil.rmtree(location)
        saved.rename(location)
        # A later attempt makes it good, and leaves nothing of the torn one.
        copy_all(Copier(run_dir, target))
        assert steps_in(str(location)) == [200]
        assert not snapshots(Place(str(location)), target.owner)[1]
    # A sign of life, records, three files, and the manifest, then the removal of the older one.
    assert cuts >= 7
    assert brought == sorted(brought)
    assert set(brought) == {100, 200}


def test_a_damaged_copy_is_left_out_and_an_older_one_taken(run_dir: Path, tmp_path: Path):
    location = tmp_path / "mirror"
    for step in (100, 200):
        publish(run_dir, step)
    copy_all(mirror(run_dir, str(location)))
    damaged = next(location.glob("*/step_00000200-*/checkpoints/*/rank_00001.safetensors"))
    content = bytearray(damaged.read_bytes())
    content[7] ^= 1
    damaged.write_bytes(content)
    said = bring(str(location), tmp_path / "there")
    assert any("step 200" in line and "sha256" in line and "older" in line for line in said)
    assert sorted(checkpoints(tmp_path / "there")) == [100]
    for path in location.glob("*/step_00000100-*/metrics.jsonl"):
        path.unlink()
    with pytest.raises(MirrorError, match="none of its 2 checkpoints is whole"):
        bring(str(location), tmp_path / "other")
    assert not (tmp_path / "other").exists()


def test_a_finished_run_is_brought_with_its_weights_if_they_are_whole(run_dir: Path, tmp_path: Path):
    location = tmp_path / "mirror"
    publish(run_dir, 900)
    (run_dir / "export" / "best").mkdir(parents=True)
    (run_dir / "export" / "model.safetensors").write_bytes(b"weights" * 99)
    (run_dir / "export" / "best" / "model.safetensors").write_bytes(b"better" * 99)
    (run_dir / "export" / "model.json").write_text('{"step": 900}')
    copier = mirror(run_dir, str(location))
    copy_all(copier)
    (run_dir / "registered.json").write_text('{"name": "model"}')
    copy_all(copier)
    assert len(list(location.glob("*/export-*"))) == 1
    bring(str(location), tmp_path / "there")
    assert files_below(tmp_path / "there" / "export") == files_below(run_dir / "export")
    assert (tmp_path / "there" / "registered.json").exists()
    [weights] = location.glob("*/export-*/export/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-1])
    assert any("export" in line and "left out" in line for line in bring(str(location), tmp_path / "third"))
    # The attempt that goes on exports them again.
    assert not (tmp_path / "third" / "export").exists()
    assert is_whole(tmp_path / "third", 900)


def test_a_checkpoint_that_is_damaged_here_is_not_copied(run_dir: Path, tmp_path: Path):
    publish(run_dir, 100)
    publish(run_dir, 200)
    path = run_dir / "checkpoints" / "step_00000200" / "rank_00000.safetensors"
    path.write_bytes(path.read_bytes()[:-1] + b"!")
    copier = mirror(run_dir, str(tmp_path / "mirror"))
    with pytest.raises(DamagedHereError, match=r"rank_00000\.safetensors"):
        copy_all(copier)
    copy_all(copier)
    assert steps_in(str(tmp_path / "mirror")) == [100]


def test_a_checkpoint_that_is_removed_while_it_is_copied_is_dropped(run_dir: Path, tmp_path: Path):
    publish(run_dir, 100)
    copier = mirror(run_dir, str(tmp_path / "mirror"))
    copies: list[str] = []

    class SlowPlace(Place):
        def upload(self, source: Path, name: str, between):
            if not copies:  # the training goes on meanwhile
                publish(run_dir, 200)
                CheckpointStore(run_dir).retain(1)
            copies.append(name)
            return super().upload(source, name, between)

    copier.place = SlowPlace(str(tmp_path / "mirror"))
    copy_all(copier)
    assert steps_in(str(tmp_path / "mirror")) == [200]
    assert len(list((tmp_path / "mirror").glob("*/step_*"))) == 1


def test_what_is_gone_here_goes_there_once_a_newer_one_is_complete(run_dir: Path, tmp_path: Path):
    location = str(tmp_path / "mirror")
    copier = mirror(run_dir, location)
    publish(run_dir, 100)
    copy_all(copier)
    shutil.rmtree(run_dir / "checkpoints")
    copy_all(copier)
    assert steps_in(location) == [100]  # the only one there is
    publish(run_dir, 200)
    publish(run_dir, 300)
    assert not copier.copy_next()
    assert steps_in(location) == [100, 300]  # the newest first
    copy_all(copier)
    assert steps_in(location) == [200, 300]
    CheckpointStore(run_dir).retain(1)
    copy_all(copier)
    assert steps_in(location) == [300]


def test_what_cannot_be_brought_is_refused_in_one_line(run_dir: Path, tmp_path: Path):
    location, there = str(tmp_path / "mirror"), tmp_path / "there"
    with pytest.raises(MirrorError, match="nothing is there"):
        bring(location, there)
    copy_all(mirror(run_dir, location))
    with pytest.raises(MirrorError, match="no checkpoint is complete"):
        bring(location, there)
    publish(run_dir, 100)
    copy_all(Copier(run_dir, read_target(run_dir)))  # type: ignore[arg-type]
    new_run(there)
    with pytest.raises(MirrorError, match="holds something else"):
        bring(location, there)
    for path in (tmp_path / "mirror").glob(f"*/*/{SNAPSHOT_NAME}"):
        path.write_text(path.read_text().replace('"config.json"', '"../../config.json"'))
    with pytest.raises(MirrorError, match="no checkpoint is complete"):
        bring(location, tmp_path / "other")
    assert not (tmp_path / "other").exists()
    with pytest.raises(MirrorError, match="cannot be opened"):
        use_mirror(run_dir, "nonsense://place")


def test_a_store_that_hangs_does_not_hold_up_the_end_of_an_attempt(run_dir: Path):
    with socket.create_server(("127.0.0.1", 0)) as silent:
        location = f"s3://hangs/run?{place(silent.getsockname()[1])}"
        write_target(run_dir, MirrorTarget(location=location, run="r", owner="000001-aa"))
        publish(run_dir, 100)
        handle = Mirror.start(run_dir)
        assert handle is not None
        connection, _ = silent.accept()  # the process waits for an answer now
        pid = handle._worker.pid  # type: ignore[union-attr]
        handle.close("interrupted", began=time.monotonic() - 1000)
        assert not Path(f"/proc/{pid}").exists()
        connection.close()


def test_a_store_that_is_down_or_full_is_said_once_and_made_good(run_dir: Path, tmp_path: Path, s3: int, capfd):
    from pipeline.mirror import worker

    proxy = FaultyProxy(s3)
    proxy.faults = (503, 507, 0)
    location = f"s3://down/run?{place(proxy.port)}"
    Place(location)._files.create_dir("down")
    use_mirror(run_dir, location)
    publish(run_dir, 100)
    waits: list[float] = []

    def is_over(seconds: float) -> bool:
        """Count the looks; the store works again at the fifth, and the attempt is over at the eighth."""
        waits.append(seconds)
        proxy.fail_every = 1 if len(waits) < 5 else 0
        return len(waits) >= 8

    worker.follow(run_dir, is_over)
    said = capfd.readouterr().err.splitlines()
    assert len(said) == 2, said
    assert "takes nothing" in said[0]
    assert "works again" in said[1]
    assert waits[:5] == [0, *sorted(waits[1:5])]  # it waits longer and longer
    assert steps_in(location) == [100]
    progress = json.loads((run_dir / "mirror_progress.json").read_text())
    assert (progress["step"], progress["is_complete"], progress["problem"]) == (100, True, "")
    proxy.close()
