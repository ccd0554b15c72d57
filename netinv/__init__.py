"""Network inversion: what a trained classifier accepts, whether it knows what it does not know, what its weights give away.

The names that people need lie here, and each is loaded when it is first asked for: `from netinv import Inverter`.
All others are in the modules, such as `netinv.losses`."""
__version__ = "0.3.0"

import sys
from importlib import import_module

from netinv import moved

_HOMES = {
    "data": ("ImageData", "load_data"),
    "classifier": ("CNN", "train_classifier"),
    "frozen": ("FrozenClassifier",),
    "weights": ("load_weights", "save_weights"),
    "bring": ("load_classifier",),
    "generator": ("Generator",),
    "objective": ("Inversion", "Objective", "Term"),
    "samples": ("Samples", "accuracy", "look"),
    "inversion": ("Inverter",),
    "metrics": ("inversion_report",),
    "sae": ("train_sae",),
    "ood": ("evaluate_ood", "ood_score", "train_with_garbage"),
    "reconstruction": ("Reconstruction", "reconstruct"),
    "leaks": ("reconstruction_report",),
    "studio": ("InversionStudio", "ReconstructionStudio"),
    "explorer": ("OODExplorer",),
    "checkup": ("check_up",),
}
_ROOM_OF = {name: room for room, names in _HOMES.items() for name in names}

__all__ = list(_ROOM_OF)
_ROOM_OF["PaperGenerator"] = "paper"  # not for people: saved runs name the class of their generator


def __getattr__(name: str) -> object:
    "One of `__all__`, from its module; a sentence about where it is now for a name of old."
    if name not in _ROOM_OF: moved.refuse("netinv", name)
    value = globals()[name] = getattr(import_module(f"netinv.{_ROOM_OF[name]}"), name)
    return value


def _mend() -> None:
    "What `import torch` calls (an entry point): torchvision is mended, see `netinv.device`, which does it when imported."
    import_module("netinv.device")  # if PyTorch is imported by it, it is half there, and mends when it is whole


def __dir__() -> list[str]:
    return sorted([*__all__, *(name for name in globals() if name.startswith("__"))])


sys.modules[__name__].__class__ = moved.Package
sys.meta_path.append(moved.GoneModules)
