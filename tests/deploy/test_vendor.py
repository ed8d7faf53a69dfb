"""The charting library that is served is the one that npm has under its version."""

import hashlib
import io
import tarfile
from pathlib import Path

import pytest

from deploy import vendor
from shared.errors import Failure


def package(folder: Path, files: dict[str, bytes]) -> Path:
    path = folder / "package.tgz"
    with tarfile.open(path, "w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def test_what_is_committed_is_what_is_known() -> None:
    for name, sha256 in vendor.FILES.values():
        content = (vendor.FOLDER / name).read_bytes()
        assert hashlib.sha256(content).hexdigest() == sha256
    text = (vendor.FOLDER / "lightweight-charts.mjs").read_text(encoding="utf-8")
    assert f"Lightweight Charts™ v{vendor.VERSION}" in text[:200]
    assert f"{vendor.PACKAGE} {vendor.VERSION} " in (vendor.FOLDER / "NOTICE.txt").read_text()


def test_a_package_with_other_files_is_refused_and_nothing_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = {inside: inside.encode() for inside in vendor.FILES}
    known = {
        inside: (name, hashlib.sha256(good[inside]).hexdigest())
        for inside, (name, _) in vendor.FILES.items()
    }
    monkeypatch.setattr(vendor, "FILES", known)
    target = tmp_path / "target"
    last = list(good)[-1]
    for files in (good | {last: b"other"}, {k: v for k, v in good.items() if k != last}):
        with pytest.raises(Failure, match="is not the file that is known here"):
            vendor.unpack(package(tmp_path, files), target)
        assert not target.exists()
    vendor.unpack(package(tmp_path, good), target)
    assert sorted(path.name for path in target.iterdir()) == [
        "LICENSE.txt",
        "lightweight-charts.mjs",
    ]
