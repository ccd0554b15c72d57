"netinv.device: what is picked where there is little to pick from, and the mend of torchvision."
import subprocess
import sys

import pytest
import torch
from faults import one_sentence

from netinv import device as nd
from netinv.data import load_data


def run(script: str) -> str:
    "What a fresh interpreter prints."
    return subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True).stdout.strip()


def test_torchvision_can_be_imported_after_netinv():
    script = "import sys, netinv.data; print('torchvision' in sys.modules); import torchvision.models; print('fine')"
    assert run(script).split() == ["False", "fine"]


@pytest.mark.parametrize("loads, cuda, defined", [(True, None, False), (False, None, True), (False, "13.0", False)])
def test_operators_are_defined_only_where_they_cannot_be_loaded(tmp_path, loads, cuda, defined):
    (tmp_path / "torchvision").mkdir()
    (tmp_path / "torchvision" / "__init__.py").write_text("raise RuntimeError('the mend must not import torchvision')")
    (tmp_path / "torchvision" / "_C.so").touch()
    script = f"""
import sys, torch
sys.path.insert(0, {str(tmp_path)!r})
torch.version.cuda = {cuda!r}
if {loads}: torch.ops.load_library = lambda path: print(path)
import netinv.data
print(hasattr(torch.ops.torchvision, "nms"))
"""
    compiled = [str(tmp_path / "torchvision" / "_C.so")] * loads
    assert run(script).splitlines() == [*compiled, str(defined)]


def test_devices_and_dtypes(monkeypatch):
    assert nd.pick_device("cpu") == torch.device("cpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    assert nd.pick_device() == torch.device("cpu")
    with pytest.raises(ValueError) as info: load_data("digits", device="cuda:99")
    one_sentence(info.value, "cuda:99")
    for has, dtype in ((True, torch.bfloat16), (False, None)):
        monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda has=has: has)
        monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: False)
        assert nd.pick_amp("auto", "cpu") is dtype
    assert nd.pick_amp(None) is nd.pick_amp("off") is None and nd.pick_amp(torch.bfloat16) is torch.bfloat16
