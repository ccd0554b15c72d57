"""netinv.data against damaged, hostile, missing and odd files; the plain cases are in nbs/data.ipynb."""

import gzip
import hashlib
import pickle
import urllib.error
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import damaged, one_sentence
from PIL import Image

from netinv import data as nd
from netinv.files import load_tensors
from netinv.splits import stratified_subset

DIGITS = [str(digit) for digit in range(10)]
IDX = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def noise(n: int, *shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (n, *shape), np.uint8)


def arrays(n_train: int = 20, n_test: int = 10, shape: tuple = (8, 8), classes: int = 2) -> dict:
    "A data set as the four arrays of an .npz file."
    return {
        "train_images": noise(n_train, *shape), "train_labels": np.arange(n_train)[:, None] % classes,
        "test_images": noise(n_test, *shape, seed=1), "test_labels": np.arange(n_test)[:, None] % classes,
    }  # fmt: skip


def same(one: nd.ImageData, other: nd.ImageData) -> bool:
    parts = [(one.train, other.train), (one.valid, other.valid), (one.test, other.test)]
    equal = all(torch.equal(a.images, b.images) and torch.equal(a.labels, b.labels) for a, b in parts)
    return one.classes == other.classes and equal


def idx_bytes(array: np.ndarray) -> bytes:
    "An array of bytes in the IDX format of MNIST."
    sizes = b"".join(size.to_bytes(4, "big") for size in array.shape)
    return bytes([0, 0, 8, array.ndim]) + sizes + array.astype(np.uint8).tobytes()


@pytest.fixture
def tiny_mnist(tmp_path, monkeypatch) -> Path:
    "Twenty training and ten test images in MNIST's files, declared to be the published ones; their folder."
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    parts = (noise(20, 28, 28), np.arange(20) % 10, noise(10, 28, 28, seed=1), np.arange(10))
    for name, part in zip(IDX, parts):
        (raw / name).write_bytes(idx_bytes(part))
        digest = hashlib.sha256(idx_bytes(part)).hexdigest()
        monkeypatch.setitem(nd.IDX_SHA256, f"MNIST/raw/{name}", digest)
    monkeypatch.setenv("NETINV_DATA", str(tmp_path))
    return raw


@pytest.fixture
def no_network(monkeypatch):
    "torchvision's downloads fail as they do without a network."
    def refuse(*args, **kwargs): raise urllib.error.URLError("[Errno -3] Temporary failure in name resolution")
    monkeypatch.setattr("torchvision.datasets.utils.urllib.request.urlopen", refuse)


# Damage


@pytest.mark.parametrize("save", [np.savez, np.savez_compressed])
def test_damaged_npz(tmp_path, save):
    path = tmp_path / "some.npz"
    save(path, **arrays(), class_names=["even", "odd"], val_images=noise(2, 8, 8), val_labels=np.arange(2))
    good, blob, refused = nd.load_data(path), path.read_bytes(), 0
    for bad in damaged(blob, 150, seed=1):
        path.write_bytes(bad)
        try:
            assert same(nd.load_data(path), good)
        except (ValueError, OSError) as e:
            one_sentence(e, path)
            refused += 1
    assert refused > 75  # all that were cut short, and more


def test_entries_hidden_in_a_comment(tmp_path):
    "One flipped bit in the length of an entry's comment hides the entries that follow it."
    path = tmp_path / "some.npz"
    np.savez(path, **arrays(), class_names=["even", "odd"])
    blob = bytearray(path.read_bytes())
    directory = blob.rindex(b"PK\x01\x02", 0, blob.rindex(b"PK\x01\x02"))  # the last entry but one
    blob[directory + 32] ^= 64
    path.write_bytes(blob)
    with np.load(path) as archive: assert "class_names" not in archive  # NumPy does not notice
    with pytest.raises(ValueError) as info: nd.load_data(path)
    one_sentence(info.value, path, "directory is damaged")


def test_damaged_idx(tiny_mnist):
    assert nd.load_data("mnist").train.images.shape == (20, 1, 28, 28)
    for name in IDX:
        path = tiny_mnist / name
        blob = path.read_bytes()
        for bad in damaged(blob, 30, seed=len(blob)):
            path.write_bytes(bad)
            with pytest.raises(ValueError) as info: nd.load_data("mnist")
            one_sentence(info.value, path, "damaged", "delete it")
        path.write_bytes(blob)
    assert nd.load_data("mnist").train.images.shape == (20, 1, 28, 28)


def test_damaged_pictures(tmp_path):
    for i, pixels in enumerate(noise(10, 12, 12)):
        (tmp_path / str(i % 2)).mkdir(exist_ok=True)
        Image.fromarray(pixels).save(tmp_path / str(i % 2) / f"{i}.png")
    good, path = nd.load_data(tmp_path), tmp_path / "1" / "5.png"
    for bad in damaged(path.read_bytes(), 100, seed=3):
        path.write_bytes(bad)
        try:
            assert same(nd.load_data(tmp_path), good)
        except ValueError as e:
            one_sentence(e, path)


# Hostile files


class Bomb:
    "Unpickling it makes a file."

    def __init__(self, path: Path): self.path = str(path)
    def __reduce__(self): return open, (self.path, "w")


@pytest.fixture
def bomb(tmp_path):
    "A bomb that is known to go off where it is unpickled; afterwards it must not have."
    marker = tmp_path / "boom"
    pickle.loads(pickle.dumps(Bomb(marker))).close()
    assert marker.exists()
    marker.unlink()
    yield Bomb(marker)
    assert not marker.exists()


@pytest.mark.parametrize("key", ["train_images", "test_labels", "val_images", "class_names", "extra"])
def test_objects_in_npz_stay_closed(tmp_path, bomb, key):
    objects = np.empty(20, object)
    objects[:] = [bomb] * 20
    np.savez(tmp_path / "some.npz", **{**arrays(), key: objects})
    with pytest.raises(ValueError) as info: nd.load_data(tmp_path / "some.npz")
    one_sentence(info.value, "some.npz", "Object arrays cannot be loaded")


@pytest.mark.parametrize("dump", [lambda x, path: path.write_bytes(pickle.dumps(x)), torch.save])
@pytest.mark.parametrize("name, load", [("x.npz", nd.load_data), ("x.safetensors", load_tensors)])
def test_renamed_pickles_stay_closed(tmp_path, bomb, dump, name, load):
    dump({"train_images": bomb}, tmp_path / name)
    with pytest.raises(ValueError) as info: load(tmp_path / name)
    one_sentence(info.value, name)


# Sizes


@pytest.mark.parametrize("size", [0, -1, 1439, 2.5, True, "10"])
def test_sizes_that_cannot_be_had(size):
    for argument in ("train_size", "test_size"):
        with pytest.raises(ValueError) as info: nd.load_data("digits", **{argument: size})
        one_sentence(info.value, argument, repr(size), "from 1 to")


# The validation part


def test_digits_have_the_same_validation_images_for_every_training_size():
    whole = nd.load_data("digits", valid_size=0, seed=3)
    usual = nd.load_data("digits", seed=3)
    assert (len(usual.train), len(usual.valid), len(usual.test)) == (1295, 143, 359)
    assert usual.name == "digits, 1,295 of 1,438 training images"
    assert repr(usual).count("1,295 training, 143 validation and 359 test images of 1x28x28") == 1
    for size in (10, 500, 1295):
        data = nd.load_data("digits", train_size=size, seed=3)
        before = stratified_subset(whole.train, size, seed=3)
        assert same(data, nd.ImageData(before, usual.valid, whole.test, DIGITS, (1, 28, 28), ""))
    assert len(nd.load_data("digits", train_size=1438, valid_size=0).valid) == 0
    assert not torch.equal(nd.load_data("digits").valid.images, usual.valid.images)  # of another seed


@pytest.mark.parametrize("size", [-1, 1438, 2.5, True, "10"])
def test_validation_sizes_that_cannot_be_had(size):
    with pytest.raises(ValueError) as info: nd.load_data("digits", valid_size=size)
    one_sentence(info.value, "valid_size", repr(size), "from 0 to 1,437", "None for a tenth")


@pytest.mark.parametrize("sizes, parts", [
    ({"train_size": 1296}, ["train_size=1296", "from 1 to 1,295 (to 1,438 with valid_size=0)"]),
    ({"train_size": 439, "valid_size": 1000}, ["train_size=439", "from 1 to 438 (to 1,438 with valid_size=0)"]),
    ({"train_size": 1439, "valid_size": 0}, ["train_size=1439", "from 1 to 1,438, or None"]),
])  # fmt: skip
def test_training_sizes_that_validation_leaves_no_room_for(sizes, parts):
    with pytest.raises(ValueError) as info: nd.load_data("digits", **sizes)
    one_sentence(info.value, *parts)


def test_digits_split_ignores_the_seed():
    one = nd.load_data("digits", valid_size=0, test_size=100, seed=1)
    other = nd.load_data("digits", train_size=900, valid_size=0, seed=2)
    assert (len(one.train), len(other.test)) == (1438, 359)
    made = nd.ImageData(one.train, one.valid, other.test, DIGITS, (1, 28, 28), "")
    assert same(nd.load_data("digits", valid_size=0), made)
    assert one.name == "digits, 100 of 359 test images" and other.name == "digits, 900 of 1,438 training images"
    assert one.train.images.float().mean() > 60 and one.train.images.max() == 255 and one.train.images.min() == 0


# Arrays


@pytest.mark.parametrize("change, parts", [
    ({"train_labels": None}, ["has no train_labels"]),
    ({"train_images": None, "test_images": None}, ["has no train_images and no test_images"]),
    ({"train_images": noise(20, 8, 8) / 255 - 0.5}, ["(train)", "0..255 or [0, 1], got float64", "undo"]),
    ({"train_images": noise(20, 8, 8) / 255 + np.inf}, ["(train)", "infinity in 1,280 of 1,280"]),
    ({"train_images": noise(20, 8, 8).astype(np.uint16) * 9}, ["got uint16 from 0 to 2295"]),
    ({"train_images": noise(20, 8, 8, 4)}, ["[20, 8, 8, 4]", "leave the fourth channel out"]),
    ({"train_images": noise(20, 5, 8, 8)}, ["[20, 5, 8, 8]", "[N, H, W, 3]"]),
    ({"train_images": noise(20, 64)}, ["[20, 64]"]),
    ({"train_images": noise(19, 8, 8)}, ["19 images but 20 labels"]),
    ({"train_images": noise(20, 9, 8)}, ["one size", "1x9x8 but 1x8x8"]),
    ({"train_images": noise(20, 0, 8)}, ["[20, 0, 8, 1]"]),
    ({"test_images": noise(0, 8, 8), "test_labels": np.zeros(0, int)}, ["test part is empty"]),
    ({"train_images": noise(0, 8, 8), "train_labels": np.zeros(0, int)}, ["training part is empty"]),
    ({"val_images": noise(4, 8, 8)}, ["has no val_labels", "val_images, val_labels"]),
    ({"val_labels": np.zeros(4, int)}, ["has no val_images"]),
    ({"val_images": noise(4, 8, 8), "val_labels": np.zeros(3, int)}, ["(val)", "4 images but 3 labels"]),
    ({"val_images": noise(4, 8, 9), "val_labels": np.zeros(4, int)}, ["training and validation", "1x8x8 but 1x8x9"]),
    ({"val_images": noise(4, 8, 8), "val_labels": np.arange(4)}, ["validation label 3 is out of range"]),
    ({"val_images": noise(0, 8, 8), "val_labels": np.zeros(0, int)}, ["validation part is empty"]),
    ({"test_labels": np.arange(10)}, ["test label 9 is out of range", "2 classes"]),
    ({"test_labels": np.arange(10) - 1, "class_names": np.array(DIGITS)}, ["(test): labels go from -1 to 8"]),
    ({"train_labels": np.arange(20) * 2}, ["no training image has label 1", "class_names"]),
    ({"train_labels": np.arange(20) / 2}, ["whole numbers", "got 0.5"]),
    ({"train_labels": np.eye(20, 2)}, ["(train): labels must be [N] or [N, 1]", "argmax(1)"]),
    ({"train_labels": np.zeros(20, int), "test_labels": np.zeros(10, int)}, ["a single class"]),
    ({"train_labels": np.arange(20) % 2 + 1, "class_names": np.array(["a", "b"])}, ["label 2 is out", "subtract 1"]),
    ({"train_labels": np.ones((20, 14), int)}, ["[N, 1]", "[20, 14]"]),
    ({"train_labels": np.array(3)}, ["whole numbers"]),
    ({"class_names": np.array([1, 2])}, ["class_names must be a list of strings"]),
    ({"class_names": np.array("only one")}, ["class_names must be a list of strings"]),
])  # fmt: skip
def test_npz_that_is_no_data_set(tmp_path, change, parts):
    changed = {key: value for key, value in {**arrays(), **change}.items() if value is not None}
    np.savez(tmp_path / "some.npz", **changed)
    with pytest.raises(ValueError) as info: nd.load_data(tmp_path / "some.npz")
    one_sentence(info.value, tmp_path / "some.npz", *parts)


def test_npz_shapes(tmp_path):
    path = tmp_path / "some.npz"
    for shape in ((8, 6), (8, 6, 1), (8, 6, 3)):
        content = arrays(shape=shape)
        np.savez(path, **content, more=np.zeros(3))
        data = nd.load_data(str(path))
        assert data.shape == ((3 if shape[-1] == 3 else 1), 8, 6) and data.classes == ["0", "1"]
        expected = content["test_images"].reshape(10, 8, 6, -1)
        assert np.array_equal(data.test.images.permute(0, 2, 3, 1).cpu().numpy(), expected)
        assert data.test.labels.tolist() == [0, 1] * 5


def test_validation_part_of_an_npz(tmp_path):
    path, content = tmp_path / "some.npz", arrays(40)
    val_images = noise(6, 8, 8, seed=2)
    np.savez(path, **content, val_images=val_images, val_labels=np.arange(6)[:, None] % 2)
    data = nd.load_data(path)
    assert np.array_equal(data.train.images[:, 0].cpu(), content["train_images"])  # nothing is cut
    assert np.array_equal(data.valid.images[:, 0].cpu(), val_images) and data.valid.labels.tolist() == [0, 1] * 3
    assert data.name == str(path)
    fewer = nd.load_data(path, train_size=10, valid_size=2)
    assert fewer.valid.labels.bincount().tolist() == [1, 1]
    assert fewer.name == f"{path}, 10 of 40 training and 2 of 6 validation images"
    assert nd.load_data(path, valid_size=0).valid.images.shape == (0, 1, 8, 8)
    with pytest.raises(ValueError) as info: nd.load_data(path, valid_size=7)
    one_sentence(info.value, "valid_size=7", "from 0 to 6, or None for all")
    with pytest.raises(ValueError) as info: nd.load_data(path, train_size=41)
    one_sentence(info.value, "train_size=41", "from 1 to 40, or None for all")


def test_labels_of_a_named_npz_are_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("NETINV_DATA", str(tmp_path))
    np.savez(tmp_path / "svhn.npz", **arrays(shape=(32, 32, 3), classes=11))
    with pytest.raises(ValueError) as info: nd.load_data("svhn")
    one_sentence(info.value, "svhn.npz", "training label 10 is out of range")
    np.savez(tmp_path / "svhn.npz", **arrays(shape=(32, 32, 3), classes=5))
    data = nd.load_data("svhn", train_size=10)
    assert data.classes == DIGITS and data.name == "svhn, 10 of 73,257 training images, from svhn.npz"


# Folders


def write_pictures(folder: Path, mode: str = "L", size: tuple = (10, 12), n: int = 5, classes=("cat", "dog")) -> Path:
    for name in classes:
        (folder / name).mkdir(parents=True)
        for i, pixels in enumerate(noise(n, *size, 3, seed=len(name))):
            Image.fromarray(pixels).convert(mode).save(folder / name / f"{i}.png")
    return folder


def test_folder_of_classes(tmp_path):
    write_pictures(tmp_path)
    (tmp_path / ".ipynb_checkpoints").mkdir()
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    data = nd.load_data(tmp_path)
    assert (data.shape, data.classes, len(data.train), len(data.test)) == ((1, 10, 12), ["cat", "dog"], 8, 2)
    assert same(data, nd.load_data(tmp_path, seed=5))


def test_folder_with_train_and_test(tmp_path):
    from torchvision.datasets import ImageFolder

    write_pictures(tmp_path / "train", "RGB")
    write_pictures(tmp_path / "test", "RGB", classes=("dog",))
    data = nd.load_data(str(tmp_path) + "/")
    expected = [(np.asarray(image), label) for image, label in ImageFolder(tmp_path / "train")]
    assert np.array_equal(data.train.images.permute(0, 2, 3, 1).cpu(), np.stack([image for image, _ in expected]))
    assert data.train.labels.tolist() == [label for _, label in expected]
    assert data.test.labels.tolist() == [1] * 5 and data.shape == (3, 10, 12)


@pytest.mark.parametrize("name", ["val", "valid", "validation"])
def test_folder_with_a_validation_part(tmp_path, name):
    write_pictures(tmp_path / "train", n=10)
    write_pictures(tmp_path / "test")
    without = nd.load_data(tmp_path)
    assert (len(without.train), len(without.valid), len(without.test)) == (18, 2, 10)
    write_pictures(tmp_path / name, n=3, classes=("dog",))
    data = nd.load_data(tmp_path)
    assert (len(data.train), data.valid.labels.tolist(), len(data.test)) == (20, [1] * 3, 10)
    assert torch.equal(data.valid.images, data.train.images[10:13])  # the same three dogs
    assert torch.equal(data.test.images, without.test.images)


def test_a_validation_part_serves_as_the_test_part_where_there_is_none(tmp_path):
    write_pictures(tmp_path / "train")
    write_pictures(tmp_path / "val", n=3)
    with pytest.warns(UserWarning, match="has no test part: val/ serves as the test part"): data = nd.load_data(tmp_path)
    assert (len(data.train), len(data.valid), len(data.test)) == (10, 0, 6)
    assert "has no test part" in repr(data) and "has no test part" in data._repr_html_()


def test_validation_folders_that_are_refused(tmp_path):
    write_pictures(tmp_path / "train")
    write_pictures(tmp_path / "val")
    write_pictures(tmp_path / "test")
    write_pictures(tmp_path / "val", classes=("cow",))
    with pytest.raises(ValueError) as info: nd.load_data(tmp_path)
    one_sentence(info.value, tmp_path / "val", "'cow' that")
    (tmp_path / "validation").mkdir()
    with pytest.raises(ValueError) as info: nd.load_data(tmp_path)
    one_sentence(info.value, tmp_path, "has val/ and validation/: keep one")
    (tmp_path / "val").rename(tmp_path / "other")
    with pytest.raises(ValueError) as info: nd.load_data(tmp_path)
    one_sentence(info.value, tmp_path, "validation part is empty")


def test_one_colour_picture_makes_all_rgb(tmp_path):
    write_pictures(tmp_path)
    gray = nd.load_data(tmp_path).train.images
    Image.new("RGB", (12, 10), (255, 0, 0)).save(tmp_path / "dog" / "9.png")
    colour = nd.load_data(tmp_path)
    assert colour.shape == (3, 10, 12)
    assert any(torch.equal(colour.train.images[0, channel], gray[0, 0]) for channel in range(3))


def test_a_class_may_be_called_train(tmp_path):
    assert nd.load_data(write_pictures(tmp_path, classes=("car", "train"))).classes == ["car", "train"]


@pytest.mark.parametrize("change, parts", [
    (lambda f: (f / "cat" / "2.png").write_bytes(b"no image at all"), ["cat/2.png cannot be read"]),
    (lambda f: Image.new("L", (7, 7)).save(f / "cat" / "2.png"), ["cat/0.png is 10 x 12", "cat/2.png is 7 x 7"]),
    (lambda f: Image.fromarray(np.ones((10, 12), np.uint16)).save(f / "cat" / "2.png"), ["cat/2.png", "8 bits"]),
    (lambda f: (f / "cow").mkdir(), ["cow has no images"]),
])  # fmt: skip
def test_folder_that_is_no_data_set(tmp_path, change, parts):
    change(write_pictures(tmp_path))
    with pytest.raises(ValueError) as info: nd.load_data(tmp_path)
    one_sentence(info.value, tmp_path, *parts)


def test_folder_layouts_that_are_refused(tmp_path):
    with pytest.raises(ValueError) as info: nd.load_data(tmp_path)
    one_sentence(info.value, tmp_path, "no class folders")
    write_pictures(tmp_path / "train")
    (tmp_path / "test").mkdir()
    with pytest.raises(ValueError) as info: nd.load_data(tmp_path)
    one_sentence(info.value, tmp_path, "test part is empty")
    write_pictures(tmp_path / "test", classes=("cow",))
    with pytest.raises(ValueError) as info: nd.load_data(tmp_path)
    one_sentence(info.value, "'cow' that")


# Named sets


@pytest.mark.parametrize("name", list(nd.NAMED_SETS))
def test_no_file_and_no_network(tmp_path, monkeypatch, no_network, name):
    monkeypatch.setenv("NETINV_DATA", str(tmp_path))
    with pytest.raises(FileNotFoundError) as info: nd.load_data(name)
    one_sentence(info.value, tmp_path, f"{name}.npz", "NETINV_DATA", "Temporary failure in name resolution")
    assert nd.first_available(name, "digits") == "digits"


def test_first_available_says_what_it_took(tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("NETINV_DATA", str(tmp_path))
    np.savez(tmp_path / "svhn.npz", **arrays())
    assert nd.first_available("svhn", "digits") == "svhn" and not capsys.readouterr().out
    assert nd.first_available("mnist", "svhn") == "svhn"
    assert capsys.readouterr().out == "mnist is not on this machine: using svhn instead\n"
    assert nd.first_available("mnist") == "digits"


@pytest.mark.parametrize("name", ["fashionmnist", "my.npz", "/no/such/folder"])
def test_first_available_takes_nothing_for_a_misspelt_name(name):
    with pytest.raises(FileNotFoundError) as info: nd.first_available(name, "digits")
    one_sentence(info.value, name, "fashion_mnist")


def test_compressed_idx_is_enough(tiny_mnist, monkeypatch, no_network):
    from torchvision.datasets import MNIST

    whole, resources = nd.load_data("mnist"), []
    for name in IDX:
        content = gzip.compress((tiny_mnist / name).read_bytes())
        (tiny_mnist / f"{name}.gz").write_bytes(content)
        (tiny_mnist / name).unlink()
        resources.append((f"{name}.gz", hashlib.md5(content).hexdigest()))
    monkeypatch.setattr(MNIST, "resources", resources)
    assert same(nd.load_data("mnist"), whole)


def test_svhn_in_torchvisions_layout(tmp_path, monkeypatch):
    from scipy.io import savemat
    from torchvision.datasets import SVHN

    monkeypatch.setenv("NETINV_DATA", str(tmp_path))
    images, split_list = noise(20, 32, 32, 3), {}
    for part in ("train", "test"):
        path = tmp_path / f"{part}_32x32.mat"
        savemat(path, {"X": images.transpose(1, 2, 3, 0), "y": np.arange(20)[:, None] % 10 + 1})  # 10 stands for 0
        split_list[part] = ["", path.name, hashlib.md5(path.read_bytes()).hexdigest()]
    monkeypatch.setattr(SVHN, "split_list", split_list)
    data = nd.load_data("svhn")
    assert torch.equal(data.train.images.cpu(), torch.from_numpy(images).permute(0, 3, 1, 2))
    assert data.train.labels.tolist() == [*range(1, 10), 0] * 2 and data.name == "svhn"
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(ValueError) as info: nd.load_data("svhn")
    one_sentence(info.value, tmp_path, "svhn", "damaged", "test_32x32.mat")


def test_cifar10_in_torchvisions_layout(tmp_path, monkeypatch, bomb):
    from torchvision.datasets import CIFAR10

    monkeypatch.setenv("NETINV_DATA", str(tmp_path))
    folder, sums = tmp_path / "cifar-10-batches-py", {}
    folder.mkdir()
    images = noise(10, 3, 32, 32)
    batches = [f"data_batch_{i}" for i in range(1, 6)] + ["test_batch"]
    for name in (*batches, "batches.meta"):
        content = {"data": images.reshape(10, -1), "labels": list(range(10)), "label_names": DIGITS}
        (folder / name).write_bytes(pickle.dumps(content))
        sums[name] = [name, hashlib.md5((folder / name).read_bytes()).hexdigest()]
    monkeypatch.setattr(CIFAR10, "train_list", [sums[name] for name in batches[:5]])
    monkeypatch.setattr(CIFAR10, "test_list", [sums["test_batch"]])
    meta = {"filename": "batches.meta", "key": "label_names", "md5": sums["batches.meta"][1]}
    monkeypatch.setattr(CIFAR10, "meta", meta)
    data = nd.load_data("cifar10")
    assert torch.equal(data.test.images.cpu(), torch.from_numpy(images)) and data.classes[9] == "truck"
    assert len(data.train) == 50 and data.train.labels[:10].tolist() == list(range(10))
    (folder / "data_batch_3").write_bytes(pickle.dumps(bomb))  # a pickle, but not the published one
    with pytest.raises(ValueError) as info: nd.load_data("cifar10")
    one_sentence(info.value, tmp_path, "cifar10", "damaged", "data_batch_3")


def test_data_root(tmp_path, monkeypatch):
    (tmp_path / "project" / "nbs").mkdir(parents=True)
    (tmp_path / "data").mkdir()
    monkeypatch.setenv("NETINV_DATA", "../data")
    for folder in ("project", "project/nbs"):
        monkeypatch.chdir(tmp_path / folder)
        assert nd.data_root() == (tmp_path / "data").resolve()
    monkeypatch.delenv("NETINV_DATA")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert nd.data_root() == tmp_path / "netinv"


@pytest.mark.parametrize("source", ["mnits", "some.txt", "nothing.npz", "no/folder"])
def test_sources_that_are_not_there(tmp_path, monkeypatch, source):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(FileNotFoundError) as info: nd.load_data(source)
    one_sentence(info.value, source)


# The real files


def test_real_idx_files(real_data):
    mnist, fashion = nd.load_data("mnist"), nd.load_data("fashion_mnist")
    for data in (mnist, fashion):
        assert (len(data.train), len(data.valid), len(data.test)) == (55_000, 5000, 10_000)
        assert data.shape == (1, 28, 28)
    counts = mnist.train.labels.bincount() + mnist.valid.labels.bincount()
    assert counts.tolist() == [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert fashion.train.labels.bincount().tolist() == [5500] * 10 and fashion.classes[9] == "ankle boot"
    assert mnist.name == "mnist, 55,000 of 60,000 training images"
    assert nd.load_data("fashion_mnist", valid_size=0).name == "fashion_mnist"
    assert abs(nd.to_float(mnist.train.images[:6000]).mean().item() - 0.13) < 0.01


def test_real_subsets(real_data):
    whole = nd.load_data("mnist", valid_size=0).train
    keys = []
    for size in (1000, 5000, 10_000):
        subset = nd.load_data("mnist", train_size=size).train
        share = whole.labels.bincount() * size / 60_000
        assert ((subset.labels.bincount() - share).abs() < 1).all()
        keys.append({image.tobytes() for image in subset.images.cpu().numpy()})
    assert keys[0] < keys[1] < keys[2]


def test_real_npz_files(real_data):
    cifar, svhn = (nd.load_data(name, valid_size=0) for name in ("cifar10", "svhn"))
    assert cifar.shape == svhn.shape == (3, 32, 32)
    assert cifar.train.labels.bincount().tolist() == [669] * 10 and cifar.test.labels.bincount().tolist() == [200] * 10
    assert svhn.train.labels.bincount().tolist() == [30, 108, 52, 50, 54, 48, 35, 39, 37, 30]
    assert svhn.test.labels.bincount().tolist() == [36, 119, 89, 84, 56, 64, 43, 31, 41, 37]
    assert cifar.name == "cifar10, 6,690 of 50,000 training images, from cifar10.npz"
    usual = nd.load_data("cifar10")
    assert (len(usual.train), len(usual.valid)) == (6021, 669)
    assert usual.name == "cifar10, 6,021 of 50,000 training images, from cifar10.npz"


def test_real_file_cut_short(real_data, tmp_path, monkeypatch):
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name in IDX: (raw / name).symlink_to(real_data / "MNIST" / "raw" / name)
    (raw / IDX[2]).unlink()
    (raw / IDX[2]).write_bytes((real_data / "MNIST" / "raw" / IDX[2]).read_bytes()[:-1])
    monkeypatch.setenv("NETINV_DATA", str(tmp_path))
    with pytest.raises(ValueError) as info: nd.load_data("mnist")
    one_sentence(info.value, raw / IDX[2], "damaged")


# Looking at it


def test_contact_sheet(tmp_path):
    names = ["<script>", '"quoted"', *map(str, range(23))]
    np.savez(tmp_path / "some.npz", **arrays(50, 25, (100, 50), 25), class_names=names)
    html = nd.load_data(tmp_path / "some.npz")._repr_html_()
    assert "50 training, 0 validation and 25 test images of 1x100x50" in html
    assert "<script>" not in html and 'alt="2 training images of class &lt;script&gt;"' in html
    assert html.count("<img ") == html.count(' alt="') == 20 and "and 5 more classes" in html
    assert "no images" in nd.load_data("digits", train_size=3)._repr_html_()


def test_image_grid_takes_bytes_and_floats():
    images = torch.from_numpy(noise(6, 3, 5, 4))
    from_bytes, from_floats = (nd.image_grid(x, 3, scale=1) for x in (images, nd.to_float(images)))
    assert from_bytes.tobytes() == from_floats.tobytes() and from_bytes.size == (3 * 5 + 1, 2 * 6 + 1)
    assert np.array_equal(np.asarray(from_bytes)[1:6, 1:5], images[0].permute(1, 2, 0))
    odd = torch.tensor([-1.0, 2.0, float("nan"), float("inf")]).view(1, 1, 2, 2)
    assert np.asarray(nd.image_grid(odd, scale=1, padding=0))[..., 0].ravel().tolist() == [0, 255, 0, 255]
