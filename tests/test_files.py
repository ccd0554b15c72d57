"netinv.files against damage, full disks and interruptions; the plain cases are in nbs/files.ipynb."
import os
import subprocess
import sys

import pytest
import torch
from faults import damaged, one_sentence

from netinv import files as nf


def test_damaged_tensors(tmp_path):
    path = tmp_path / "some.safetensors"
    nf.save_tensors(path, {"a": torch.randn(5, 4), "b": torch.arange(7)}, {"step": 12})
    blob = path.read_bytes()
    for bad in damaged(blob, 300, seed=2):
        path.write_bytes(bad)
        with pytest.raises(ValueError) as info: nf.load_tensors(path)
        one_sentence(info.value, path)


def test_full_disk_keeps_the_old_file(tmp_path):
    pytest.importorskip("resource")
    script = f"""
import resource, signal, torch
from netinv.files import save_tensors, write_atomic
write_atomic({str(tmp_path / "note.txt")!r}, "old")
save_tensors({str(tmp_path / "w.safetensors")!r}, {{"w": torch.ones(3)}}, {{"step": 1}})
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, 50_000))
for save in (lambda: write_atomic({str(tmp_path / "note.txt")!r}, "x" * 100_000),
             lambda: save_tensors({str(tmp_path / "w.safetensors")!r}, {{"w": torch.ones(100_000)}})):
    try: save()
    except OSError as e: print(e)
"""
    out = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.splitlines()
    assert len(out) == 2
    for line, name in zip(out, ("note.txt", "w.safetensors")):
        one_sentence(OSError(line), name, "could not be written", "unchanged")
    assert sorted(os.listdir(tmp_path)) == ["note.txt", "w.safetensors"]
    assert (tmp_path / "note.txt").read_text() == "old"
    tensors, meta = nf.load_tensors(tmp_path / "w.safetensors")
    assert torch.equal(tensors["w"], torch.ones(3)) and meta == {"step": 1}


@pytest.mark.parametrize("stage", ["fsync", "replace"])
def test_interrupted_write_keeps_the_old_file(tmp_path, monkeypatch, stage):
    def interrupt(*args): raise KeyboardInterrupt
    nf.write_atomic(tmp_path / "note.txt", "old")
    monkeypatch.setattr(nf.os, stage, interrupt)
    with pytest.raises(KeyboardInterrupt): nf.write_atomic(tmp_path / "note.txt", "new")
    assert os.listdir(tmp_path) == ["note.txt"] and (tmp_path / "note.txt").read_text() == "old"


def test_tensors_of_all_kinds_come_back(tmp_path):
    shared = torch.randn(4, 6)
    tensors = {
        "bf16": torch.randn(3, 2).bfloat16(), "bool": torch.tensor([True, False]), "scalar": torch.tensor(3),
        "empty": torch.zeros(0, 5), "turned": shared.T, "slice": shared[1:3], 'a "quoted" name': torch.zeros(1),
        "state": torch.Generator().get_state(),
    }  # fmt: skip
    meta = {"netinv_sha256": "0" * 64, "nested": {"list": [1, 2.5, None]}, "text": "é\n"}
    nf.save_tensors(tmp_path / "a", tensors, meta)
    back, meta_back = nf.load_tensors(tmp_path / "a")
    assert meta_back == meta and back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == tensor.dtype and torch.equal(back[name], tensor), name
    nf.save_tensors(tmp_path / "b", tensors, meta)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_tensors_of_other_programs(tmp_path):
    from safetensors.torch import load_file, save_file

    save_file({"w": torch.ones(2)}, tmp_path / "a", metadata={"format": "pt"})
    save_file({"w": torch.ones(2)}, tmp_path / "b")
    assert nf.load_tensors(tmp_path / "a")[1] == {"format": "pt"}
    assert nf.load_tensors(tmp_path / "b")[1] == {}
    nf.save_tensors(tmp_path / "c", {"w": torch.ones(2)}, {})
    assert torch.equal(load_file(tmp_path / "c")["w"], torch.ones(2))  # and they read ours
    with pytest.raises(FileNotFoundError) as info: nf.load_tensors(tmp_path / "d")
    one_sentence(info.value, tmp_path / "d")
