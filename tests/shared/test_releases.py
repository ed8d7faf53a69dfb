"""Releases: whole or not there, verified byte by byte, switched atomically."""

import json
import os
import threading
from pathlib import Path

import pytest

from shared.errors import BadInput, Failure
from shared.releases import (
    BUNDLE,
    MANIFEST,
    ScoreEntry,
    current_folder,
    current_id,
    history,
    list_releases,
    promote,
    read_release,
    rollback,
    write_release,
)
from shared.score import ScoreFormula, ScoreKind, Stack
from tests.made_releases import made_release, write


@pytest.fixture
def release(tmp_path: Path) -> Path:
    return write(tmp_path)


def test_a_written_release_reads_back_as_it_was(tmp_path: Path) -> None:
    manifest, files = made_release()
    found = read_release(write_release(tmp_path, manifest, files))
    assert found.manifest.model_dump_json() == manifest.model_dump_json()
    assert found.bundle == files[BUNDLE]
    assert sorted(p.name for p in found.folder.iterdir()) == sorted([MANIFEST, *files])


def test_the_id_is_the_time_and_the_head_of_the_bundles_hash(tmp_path: Path) -> None:
    folder = write(tmp_path, created_s=1_795_348_800)
    manifest = json.loads((folder / MANIFEST).read_text())
    assert folder.name == f"20261122T120000Z-{manifest['bundle_sha256'][:8]}"


def test_nothing_half_written_stays(tmp_path: Path) -> None:
    manifest, files = made_release()
    files["high_10_k_lc.onnx"] = b"another file"
    with pytest.raises(BadInput, match=r"high_10_k_lc\.onnx is not the file"):
        write_release(tmp_path, manifest, files)
    assert list((tmp_path / "releases").iterdir()) == []


def test_a_release_is_never_written_twice(tmp_path: Path) -> None:
    manifest, files = made_release()
    write_release(tmp_path, manifest, files)
    with pytest.raises(Failure, match="already there"):
        write_release(tmp_path, manifest, files)


@pytest.mark.parametrize("name", [BUNDLE, "low_20_k_lc.onnx"])
def test_a_flipped_or_missing_byte_is_found(release: Path, name: str) -> None:
    path = release / name
    content = path.read_bytes()
    for place in range(0, len(content), len(content) // 25):
        changed = bytearray(content)
        changed[place] ^= 0x10
        path.write_bytes(changed)
        with pytest.raises(BadInput, match=f"{name} is not the file that was released"):
            read_release(release)
    path.write_bytes(content[:-1])
    with pytest.raises(BadInput, match="is not the file"):
        read_release(release)
    path.unlink()
    with pytest.raises(BadInput, match=f"{name} is missing"):
        read_release(release)


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("schema_hash", "0" * 16, "schema hash"),
        ("features", ["close_5", "close_1"], "schema hash"),
        ("left_out", ["nothing_7"], "nothing_7"),
        ("thresholds", {"buy": -0.5, "sell": 0.5}, "sell threshold"),
        ("thresholds", {"buy": 7, "sell": 0}, "thresholds.buy"),
        ("score", {"kind": "magic", "high": ["a"], "low": ["b"]}, "score.kind"),
        ("score", {"kind": "ratio", "high": ["a"], "low": ["b"]}, "unknown model"),
        ("models", {}, "models"),
        ("golden", {"inputs": [[1.0]], "outputs": [[1.0]], "scores": [1.0]}, "golden"),
        ("id", "../../etc", "id"),
        ("format", 2, "format"),
        ("bundle_sha256", "abc", "bundle_sha256"),
        ("symbols", None, "symbols"),
    ],
)
def test_a_wrong_manifest_is_refused_in_one_line(
    release: Path, field: str, value: object, says: str
) -> None:
    path = release / MANIFEST
    manifest = json.loads(path.read_text())
    manifest[field] = value
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput) as error:
        read_release(release)
    assert says in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("text", ["", "{", "[]", "null", "\x00\x01", '{"format": 1}', "[" * 99_999])
def test_a_manifest_that_is_none_is_refused(release: Path, text: str) -> None:
    (release / MANIFEST).write_text(text)
    with pytest.raises(BadInput, match=r"manifest\.json"):
        read_release(release)


def test_unknown_manifest_fields_are_ignored(release: Path) -> None:
    path = release / MANIFEST
    path.write_text(json.dumps(json.loads(path.read_text()) | {"later": 1}))
    assert read_release(release).id == release.name


@pytest.mark.parametrize("file", ["../x.onnx", "/etc/passwd", "model.pickle", ".hidden.onnx", ""])
def test_a_model_file_elsewhere_or_of_another_kind_is_refused(release: Path, file: str) -> None:
    path = release / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["models"]["high_10_k_lc"]["file"] = file
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match=r"models\.high_10_k_lc\.file"):
        read_release(release)


@pytest.mark.parametrize("name", ["model.pickle", "scaler.joblib", "code.py", "net.pt", "weights"])
def test_files_that_could_run_code_have_no_place(release: Path, name: str) -> None:
    (release / name).write_bytes(b"cos\nsystem\n")
    with pytest.raises(BadInput, match=f"{name} has no place in a release"):
        read_release(release)


def test_links_and_pipes_are_not_followed(release: Path, tmp_path: Path) -> None:
    bundle = release / BUNDLE
    elsewhere = tmp_path / "elsewhere.onnx"
    bundle.rename(elsewhere)
    bundle.symlink_to(elsewhere)
    with pytest.raises(BadInput, match=r"cannot open bundle\.onnx"):
        read_release(release)
    bundle.unlink()
    os.mkfifo(bundle)
    with pytest.raises(BadInput, match="not a regular file"):
        read_release(release)


def test_a_file_above_the_limit_is_not_read(release: Path) -> None:
    size = (release / BUNDLE).stat().st_size
    read_release(release, max_bytes=size)
    with pytest.raises(BadInput, match="more than the limit"):
        read_release(release, max_bytes=size - 1)


def test_a_renamed_release_is_refused(release: Path) -> None:
    other = release.with_name("20300101T000000Z-00000000")
    release.rename(other)
    with pytest.raises(BadInput, match=f"its manifest is of release {release.name}"):
        read_release(other)


def test_nothing_is_live_before_the_first_promote(release: Path, tmp_path: Path) -> None:
    assert current_id(tmp_path) is None
    assert current_folder(tmp_path) is None
    assert list_releases(tmp_path) == [release.name]


def test_promote_and_rollback_walk_the_history(tmp_path: Path) -> None:
    a, b, c = (write(tmp_path, seed, created_s=1_700_000_000 + seed).name for seed in range(3))
    with pytest.raises(Failure, match="no earlier release"):
        rollback(tmp_path)
    assert promote(tmp_path, a) is None
    assert promote(tmp_path, b) == a
    assert rollback(tmp_path) == (a, b)
    with pytest.raises(Failure, match="no earlier release"):
        rollback(tmp_path)
    promote(tmp_path, c)
    promote(tmp_path, b)
    promote(tmp_path, b)  # twice changes nothing
    assert rollback(tmp_path) == (c, b)
    assert rollback(tmp_path) == (a, c)
    assert current_id(tmp_path) == a
    assert [entry["action"] for entry in history(tmp_path)] == [
        *["promote", "promote", "rollback"],
        *["promote", "promote", "promote", "rollback", "rollback"],
    ]
    assert (tmp_path / "current").readlink() == Path(f"releases/{a}")


@pytest.mark.parametrize("torn", [False, True])
def test_a_switch_that_was_killed_is_made_once_when_it_is_run_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, torn: bool
) -> None:
    """Killed between its line in the history and the link (or in that line)."""

    class Killed(BaseException):
        pass

    def killed(path: Path, line: bytes) -> None:
        with path.open("ab") as file:
            file.write(line[:20] if torn else line)
        raise Killed

    a, b, c = (write(tmp_path, seed).name for seed in range(3))
    promote(tmp_path, a)
    promote(tmp_path, b)
    for action in (lambda: promote(tmp_path, c), lambda: rollback(tmp_path)):
        with monkeypatch.context() as patch:
            patch.setattr("shared.releases._append_synced", killed)
            with pytest.raises(Killed):
                action()
        assert current_id(tmp_path) == b
    assert rollback(tmp_path) == (a, b), "not c, which never was live"
    with pytest.raises(Failure, match="no earlier release"):
        rollback(tmp_path)
    promote(tmp_path, c)
    assert rollback(tmp_path) == (a, c)


def test_a_torn_line_of_the_history_is_passed_over(tmp_path: Path) -> None:
    a, b = (write(tmp_path, seed, created_s=1_700_000_000 + seed).name for seed in range(2))
    promote(tmp_path, a)
    with (tmp_path / "history.jsonl").open("a") as file:
        file.write('{"time": "2026-')
    promote(tmp_path, b)
    assert [entry["release"] for entry in history(tmp_path)] == [a, b]
    assert rollback(tmp_path) == (a, b)


def test_promoting_what_is_not_there_is_refused(release: Path, tmp_path: Path) -> None:
    with pytest.raises(Failure, match=f"the newest is {release.name}"):
        promote(tmp_path, "20300101T000000Z-00000000")
    with pytest.raises(Failure, match="no release"):
        promote(tmp_path, "../releases")
    assert current_id(tmp_path) is None


def test_a_current_that_is_no_link_to_a_release_is_refused(release: Path, tmp_path: Path) -> None:
    (tmp_path / "current").mkdir()
    with pytest.raises(BadInput, match="not a symlink"):
        current_id(tmp_path)
    (tmp_path / "current").rmdir()
    (tmp_path / "current").symlink_to("/etc")
    with pytest.raises(BadInput, match="no release"):
        current_id(tmp_path)


def test_readers_never_see_a_torn_switch(tmp_path: Path) -> None:
    names = [write(tmp_path, seed, created_s=1_700_000_000 + seed).name for seed in range(2)]
    promote(tmp_path, names[0])
    stop = threading.Event()
    seen: set[str] = set()
    faults: list[Exception] = []

    def read() -> None:
        try:
            while not stop.is_set():
                folder = current_folder(tmp_path)
                assert folder is not None
                seen.add(read_release(folder).id)
        except Exception as error:  # noqa: BLE001 - handed to the test
            faults.append(error)

    readers = [threading.Thread(target=read) for _ in range(2)]
    for reader in readers:
        reader.start()
    for turn in range(30):
        promote(tmp_path, names[turn % 2])
    stop.set()
    for reader in readers:
        reader.join()
    assert not faults
    assert seen == set(names)


# --- what newer releases hold besides ------------------------------------------------------------


def test_a_manifest_of_before_stacks_and_regressions_still_loads(release: Path) -> None:
    path = release / MANIFEST
    manifest = json.loads(path.read_text())
    for name in ("values", "made_from"):
        del manifest[name]
    for name in ("high_stack", "low_stack"):
        del manifest["score"][name]
    for model in manifest["models"].values():
        del model["calibration"]
    path.write_text(json.dumps(manifest))
    found = read_release(release).manifest
    assert (found.values, found.made_from) == ({}, {})
    assert found.score.formula.high_stack is None
    assert {model.calibration for model in found.models.values()} == {"none"}


def test_the_weights_of_a_stack_come_back_as_they_were() -> None:
    weights = {"a": 0.1, "b": -1 / 3}
    formula = ScoreFormula(
        kind=ScoreKind.STACK,
        high=("a",),
        low=("b",),
        high_stack=Stack(weights=weights, bias=0.7),
        low_stack=Stack(weights=weights, bias=-1e-17),
    )
    entry = ScoreEntry.model_validate_json(ScoreEntry.of(formula).model_dump_json())
    assert entry.formula == formula


@pytest.mark.parametrize("side", [{}, {"high_stack": {"weights": {}, "bias": 0.0}}])
def test_a_stack_without_its_weights_is_refused_in_one_line(
    release: Path, side: dict[str, object]
) -> None:
    path = release / MANIFEST
    manifest = json.loads(path.read_text())
    manifest["score"] |= {"kind": "stack"} | side
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="score: a stack") as error:
        read_release(release)
    assert "\n" not in str(error.value)


def test_a_regression_is_verified_like_a_model(release: Path) -> None:
    path = release / MANIFEST
    manifest = json.loads(path.read_text())
    content = (release / "high_10_k_lc.onnx").read_bytes()
    (release / "high_max_60_k_lc.onnx").write_bytes(content)
    entry = manifest["models"]["high_10_k_lc"] | {
        "file": "high_max_60_k_lc.onnx",
        "label": "high_max_60",
        "horizon": 60,
        "definition": "percent",
    }
    manifest["values"] = {"high_max_60_k_lc": entry}
    path.write_text(json.dumps(manifest))
    assert list(read_release(release).manifest.values) == ["high_max_60_k_lc"]
    (release / "high_max_60_k_lc.onnx").write_bytes(content[:-1])
    with pytest.raises(BadInput, match=r"high_max_60_k_lc\.onnx is not the file"):
        read_release(release)
    manifest["values"] = {"high_10_k_lc": entry}
    path.write_text(json.dumps(manifest))
    with pytest.raises(BadInput, match="both a model and a regression"):
        read_release(release)
