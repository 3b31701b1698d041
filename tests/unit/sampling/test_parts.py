"""Files whole or absent, fingerprints that see changes, and folders of parts that never mix settings."""

import os
from pathlib import Path

import pyarrow as pa
import pytest

from opd_verl.sampling.parts import ShardFolder
from opd_verl.sampling.settings import differing
from opd_verl.utils.files import digest, model_fingerprint, whole, write_json, write_text

TABLE = pa.table({"a": [1, 2]})


def test_a_file_whose_writing_fails_leaves_the_old_one(tmp_path: Path) -> None:
    write_text(tmp_path / "x", "old")
    with pytest.raises(RuntimeError), whole(tmp_path / "x") as partial:
        partial.write_text("half")
        raise RuntimeError
    assert (tmp_path / "x").read_text() == "old"
    assert os.listdir(tmp_path) == ["x"]


def test_writing_makes_the_folder(tmp_path: Path) -> None:
    write_json(tmp_path / "a" / "b.json", {"b": "é"})
    assert (tmp_path / "a" / "b.json").read_text() == '{\n  "b": "é"\n}\n'


def test_a_models_fingerprint_sees_every_file(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    first = model_fingerprint(str(tmp_path))
    assert first["files"]["config.json"] == digest(tmp_path / "config.json")
    assert model_fingerprint(str(tmp_path)) == first
    os.utime(tmp_path / "model.safetensors", ns=(0, 0))
    assert model_fingerprint(str(tmp_path)) == first, "a small file is its content"
    (tmp_path / "model.safetensors").write_bytes(b"WEIGHTS")
    assert model_fingerprint(str(tmp_path)) != first


def test_large_weights_are_known_by_size_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opd_verl.utils.files.SMALL", 3)
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    os.utime(tmp_path / "model.safetensors", ns=(7, 7))
    assert model_fingerprint(str(tmp_path))["files"] == {"model.safetensors": "7 bytes, mtime 7"}


def test_parts_are_missing_until_written(tmp_path: Path) -> None:
    parts = ShardFolder(tmp_path / "x.parts", 3)
    parts.open({"n": 1})
    assert parts.missing() == [0, 1, 2]
    parts.write(1, TABLE)
    assert parts.missing() == [0, 2]
    assert parts.read(1) == TABLE


def test_the_same_settings_find_their_parts_and_others_do_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    parts = ShardFolder(tmp_path / "x.parts", 2)
    for settings in ({"n": 1, "at": {"t": 1.0}}, {"n": 1, "at": {"t": 1.0}}):
        parts.open(settings)
        parts.write(0, TABLE)
    assert parts.missing() == [1] and not capsys.readouterr().err
    for times in (1, 2):
        parts.open({"n": 1, "at": {"t": 0.5 + times}})
        assert parts.missing() == [0, 1]
        message = capsys.readouterr().err
        assert "(at.t)" in message and f"renamed to x.parts.old{times}" in message
    assert ShardFolder(tmp_path / "x.parts.old1", 2).missing() == [1], "nothing is lost"


def test_differing_names_the_keys() -> None:
    assert differing({"a": 1, "b": {"c": 2, "d": 3}}, {"a": 1, "b": {"c": 3, "d": 3}, "e": 0}) == ["b.c", "e"]
