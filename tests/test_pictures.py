"netinv.pictures: folders as they come, with everything that lies in them, and pictures of every kind."
import io
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from faults import one_sentence
from PIL import Image

from netinv.data import ImageData, load_data

GRAY = Image.fromarray(np.arange(144, dtype=np.uint8).reshape(12, 12))
NAMES = ("cat", "dog", "owl")


def tree(root: Path, *parts: str, names: tuple[str, ...] = NAMES, n: int = 5) -> Path:
    "Gray pictures in class folders below each part."
    for k, folder in enumerate(root / part / name for part in parts or ("",) for name in names):
        folder.mkdir(parents=True, exist_ok=True)
        for i in range(n): GRAY.point(lambda v, k=k, i=i: (v + 7 * k + i) % 256).save(folder / f"{i}.png")
    return root


def sizes(data: ImageData) -> tuple[int, int, int]:
    return len(data.train), len(data.valid), len(data.test)


@pytest.fixture
def quiet(recwarn):
    "Afterwards there must have been no warning."
    yield
    assert not recwarn.list, [str(warning.message) for warning in recwarn.list]


# Layouts


@pytest.mark.parametrize("parts, expected", [
    (("training", "testing"), (15, 0, 15)), (("Train", "Test"), (15, 0, 15)), (("TRAIN", "TEST", "VAL"), (15, 15, 15)),
    (("mydata/train", "mydata/test"), (15, 0, 15)), (("a/b/Training", "a/b/Testing"), (15, 0, 15)),
    (("images/train", "images/test"), (15, 0, 15)), (("seg_train/seg_train", "seg_test/seg_test"), (15, 0, 15)),
    (("train_images", "test_images", "valid_images"), (15, 15, 15)), (("train2017", "val2017", "test2017"), (15, 15, 15)),
    (("trainset", "dev", "testset"), (15, 15, 15)), (("train",), (12, 0, 3)), (("photos",), (12, 0, 3)),
])  # fmt: skip
def test_parts_go_by_many_names(tmp_path, quiet, parts, expected):
    data = load_data(tree(tmp_path, *parts))
    assert data.classes == list(NAMES) and sizes(data) == expected
    usual = {"train", "test", "val", "valid", "validation"}
    assert bool(data.notes) == (not set(parts) <= usual or len(parts) == 1) and all(note in repr(data) for note in data.notes)


@pytest.mark.parametrize("parts", [("train", "val"), ("Training", "dev"), ("train", "Validation")])
def test_a_validation_part_is_the_test_part_where_there_is_no_other(tmp_path, parts):
    with pytest.warns(UserWarning, match=f"has no test part: {parts[1]}/ serves"): data = load_data(tree(tmp_path, *parts))
    assert sizes(data) == (15, 0, 15)


def test_a_test_part_without_classes_is_left_out(tmp_path):
    tree(tmp_path, "train")
    (tmp_path / "test").mkdir()
    for i in range(3): GRAY.save(tmp_path / "test" / f"{i}.png")
    with pytest.warns(UserWarning, match="test has pictures but no class folders, so no labels"): data = load_data(tmp_path)
    assert sizes(data) == (12, 0, 3)
    tree(tmp_path, "val")
    with pytest.warns(UserWarning, match="val/ serves as the test part"): assert sizes(load_data(tmp_path)) == (15, 0, 15)


def test_parts_inside_the_class_folders(tmp_path, quiet):
    for name in NAMES: tree(tmp_path / name, names=("Train", "Test"))
    data = load_data(tmp_path)
    assert data.classes == list(NAMES) and sizes(data) == (15, 0, 15) and "hold the parts" in data.notes[0]


@pytest.mark.parametrize("names", [("car", "plane", "train"), ("test", "train", "valve"), ("Training shoes", "test tube")])
def test_classes_may_have_the_names_of_parts(tmp_path, quiet, names):
    assert load_data(tree(tmp_path, names=names)).classes == sorted(names)


def test_a_part_may_have_classes_with_the_names_of_parts(tmp_path, quiet):
    assert load_data(tree(tmp_path, "train", "test", names=("test", "train", "val"))).classes == ["test", "train", "val"]


@pytest.mark.parametrize("parts, names, says", [
    ((), ("cat",), ["single class, 'cat'"]), (("train", "test"), ("cat",), ["train has a single class, 'cat'"]),
    (("mine",), ("cat",), ["single class, 'cat'"]), ((), ("train", "test"), ["no training part with class folders"]),
    (("test", "val"), NAMES, ["test/ and val/, but no training part"]),
    (("train", "training", "test"), NAMES, ["train/ and training/: keep one as the training part"]),
])  # fmt: skip
def test_folders_that_are_refused(tmp_path, parts, names, says):
    with pytest.raises(ValueError) as info: load_data(tree(tmp_path, *parts, names=names))
    one_sentence(info.value, tmp_path, *says)


def test_classes_that_differ_between_parts(tmp_path):
    tree(tmp_path, "train")
    tree(tmp_path, "test", names=("CAT", "dog"))
    data = load_data(tmp_path)
    assert data.test.labels.bincount(minlength=3).tolist() == [5, 5, 0]
    assert any("has 'CAT' for the class 'cat'" in note for note in data.notes)
    assert any("no folder for 1 of the 3 classes, such as 'owl'" in note for note in data.notes)
    tree(tmp_path, "test", names=("cow",))
    with pytest.raises(ValueError) as info: load_data(tmp_path)
    one_sentence(info.value, tmp_path / "test", "'cow' that")


def test_pictures_beside_the_classes_and_other_folders_are_left_out_aloud(tmp_path):
    tree(tmp_path, "train", "test", "train_masks", "extra")
    GRAY.save(tmp_path / "train" / "overview.png")
    with pytest.warns(UserWarning) as caught: data = load_data(tmp_path)
    said = str(caught[0].message)
    assert len(caught) == 1 and caught[0].filename == __file__ and sizes(data) == (15, 0, 15)
    for part in ("extra is no part", "train_masks is no part", "beside the class folders, such as", "overview.png"):
        assert part in said


def test_numbered_classes_are_in_the_order_of_text(tmp_path, quiet):
    data = load_data(tree(tmp_path, names=tuple(map(str, range(11))), n=2))
    assert data.classes[:3] == ["0", "1", "10"] and "which sorts text" in data.notes[0]


# What else lies there


def half(root: Path) -> list[Path]:
    return [path for name in NAMES for path in sorted((root / name).iterdir())[:2]]


def resaved(suffix: str, **more):
    def change(root: Path) -> None:
        for path in half(root):
            Image.open(path).convert("RGB").save(path.with_suffix(suffix), **more)
            path.unlink()
    return change


def renamed(name: str):
    def change(root: Path) -> None:
        for i, path in enumerate(half(root)): path.rename(path.with_name(f"{i}{name}"))
    return change


def hidden(root: Path) -> None:
    (root / "cat/.ipynb_checkpoints").mkdir()
    shutil.copy(root / "cat/0.png", root / "cat/.ipynb_checkpoints/0-checkpoint.png")
    for name in ("__MACOSX/cat", "@eaDir", ".git", "cat/@eaDir/0.png"): (root / name).mkdir(parents=True)
    for name in ("cat/._0.png", "__MACOSX/cat/._0.png", "@eaDir/0.png", "cat/.DS_Store", "cat/@eaDir/0.png/THUMB.jpg"):
        (root / name).write_bytes(b"\0\5\26\7" + bytes(60))


def circles(root: Path) -> None:
    for link, there in (("cat/again", root / "cat"), ("cat/up", root), ("back", root), ("dog/deep", root.parent)):
        (root / link).symlink_to(there)
    (root / "owl/loop").symlink_to(root / "owl/loop")


def doubled(root: Path) -> None:
    (root / "cat/z.png").symlink_to(root / "cat/0.png")
    (root / "cat/00.png").symlink_to(root / "cat/1.png")
    (root / "dog/same.png").hardlink_to(root / "dog/3.png")
    (root / "owl/more").mkdir()
    GRAY.save(root / "owl/more/5.png")
    (root / "owl/also").symlink_to(root / "owl/more")


@pytest.mark.parametrize("change, n", [
    (resaved(".gif"), 15), (resaved(".webp", lossless=True), 15), (resaved(".bmp"), 15), (resaved(".tif"), 15),
    (resaved(".TIFF"), 15), (resaved(".ppm"), 15), (resaved(".jp2"), 15), (renamed(".jfif"), 15), (renamed(".JPG"), 15),
    (renamed(".jpg_large"), 15), (renamed(""), 15), (hidden, 15), (circles, 15), (doubled, 16),
])  # fmt: skip
def test_all_pictures_are_read_once(tmp_path, change, n):
    change(tree(tmp_path / "set"))
    data = load_data(tmp_path / "set")
    assert len(data.train) + len(data.test) == n and data.classes == list(NAMES)
    if change in (hidden, doubled): assert any("passed over" in note or "links were left out" in note for note in data.notes)


def test_what_is_skipped_is_said(tmp_path):
    tree(tmp_path)
    for name in ("cat/notes.txt", "dog/film.mp4", "dog/a.heic", "owl/Thumbs.db"): (tmp_path / name).write_bytes(b"abc" * 9)
    (tmp_path / "owl/gone.png").symlink_to(tmp_path / "nowhere.png")
    os.mkfifo(tmp_path / "owl/pipe.png")
    with pytest.warns(UserWarning, match=r"6 files were left out for .* such as .*notes.txt"): data = load_data(tmp_path)
    assert len(data.train) + len(data.test) == 15 and len(data.notes) == 1


def test_a_class_without_readable_pictures_names_what_is_there(tmp_path):
    tree(tmp_path)
    for path in (tmp_path / "owl").iterdir(): path.with_suffix(".heic").write_bytes(b"abc") and path.unlink()
    with pytest.raises(ValueError) as info: load_data(tmp_path)
    one_sentence(info.value, tmp_path / "owl", "has no images in it but", ".heic")


def test_one_picture_in_two_places(tmp_path):
    tree(tmp_path, "train", "test")
    (tmp_path / "test/cat/copy.png").symlink_to(tmp_path / "train/cat/0.png")
    with pytest.warns(UserWarning, match="one file is in two places, such as .*train/cat/0.png and .*test/cat/copy.png"):
        assert sizes(load_data(tmp_path)) == (15, 0, 16)


def test_the_order_is_that_of_image_folder(tmp_path):
    from torchvision.datasets import ImageFolder

    tree(tmp_path, "cat/b", "cat/a-b", "cat/a", "dog", names=("x", "y"), n=2)
    for name in ("10.png", "9.png", "Z.png", "_.png"): GRAY.rotate(len(name)).save(tmp_path / "dog" / name)
    expected = ImageFolder(tmp_path)
    from netinv.pictures import list_images
    found = list_images({0: tmp_path / "cat", 1: tmp_path / "dog"})
    assert [(path, label) for path, label in zip(found.paths, found.labels)] == expected.samples


# Pictures


def of_one(tmp_path: Path, save, **settings) -> tuple[torch.Tensor, list[str]]:
    "The one picture of class dog that `save` makes, and the notes."
    tree(tmp_path, "train", names=("cat",), n=1)
    for part in ("train", "test"):
        tree(tmp_path, part, names=("cat",), n=1)
        (tmp_path / part / "dog").mkdir(exist_ok=True)
    save(str(tmp_path / "train/dog/0"))
    GRAY.save(tmp_path / "test/dog/0.png")
    data = load_data(tmp_path, **settings)
    return data.train.images[1].cpu(), data.notes


STROKES = np.zeros((12, 12, 4), np.uint8)
STROKES[3:9, 3:9, 3] = 255  # an opaque black square on nothing


@pytest.mark.parametrize("mode, suffix", [("RGBA", "png"), ("LA", "png"), ("RGBA", "webp"), ("RGBA", "tif"), ("RGBA", "gif")])
def test_what_is_transparent_lets_white_through(tmp_path, mode, suffix):
    picture = Image.fromarray(STROKES).convert(mode)
    with pytest.warns(UserWarning, match="one transparent picture was put on white"):
        image, _ = of_one(tmp_path, lambda path: picture.save(f"{path}.{suffix}", **({"lossless": True} if suffix == "webp" else {})))
    assert image[:, 0, 0].min() == 255 and image[:, 5, 5].max() == 0


def test_palettes_may_be_transparent(tmp_path):
    picture = Image.new("P", (12, 12), 1)
    picture.putpalette([0, 0, 0, 200, 0, 0])
    picture.paste(0, (0, 0, 6, 12))
    with pytest.warns(UserWarning, match="put on white"):
        image, _ = of_one(tmp_path, lambda path: picture.save(path + ".png", transparency=0))
    assert image[:, 0, 0].tolist() == [255] * 3 and image[:, 0, 9].tolist() == [200, 0, 0]


@pytest.mark.parametrize("save", [
    lambda path: GRAY.convert("RGBA").save(path + ".png"), lambda path: GRAY.convert("RGB").save(path + ".bmp"),
    lambda path: GRAY.convert("CMYK").save(path + ".tif"), lambda path: GRAY.convert("P").save(path + ".png"),
])  # fmt: skip
def test_opaque_pictures_of_any_mode_are_themselves(tmp_path, quiet, save):
    image, notes = of_one(tmp_path, save)
    assert (image.float() - torch.tensor(np.asarray(GRAY)).float()).abs().max() <= 1 and len(notes) == 1


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("suffix", ["png", "webp", "tif"])
def test_pictures_are_turned_as_the_camera_noted(tmp_path, quiet, orientation, suffix):
    from PIL import ImageOps

    exif = Image.Exif()
    exif[0x0112] = orientation
    file = io.BytesIO()
    GRAY.save(file, "png", exif=exif)
    upright = np.asarray(ImageOps.exif_transpose(Image.open(file)))
    image, notes = of_one(tmp_path, lambda path: GRAY.save(f"{path}.{suffix}", exif=exif, **({"lossless": True} if suffix == "webp" else {})))
    assert np.array_equal(image[0], upright)


def test_broken_exif_stops_nothing(tmp_path):
    image, _ = of_one(tmp_path, lambda path: GRAY.save(path + ".jpg", exif=b"Exif\0\0MM\0*" + b"\xff" * 30, quality=100))
    assert image.shape == (1, 12, 12)


def test_the_first_frame_counts(tmp_path, quiet):
    image, notes = of_one(tmp_path, lambda path: GRAY.save(path + ".gif", save_all=True, append_images=[Image.new("L", (12, 12))]))
    assert image.float().mean() > 50 and "the first frame" in notes[0]


@pytest.mark.parametrize("pixels", [np.full((12, 12), 4095, np.uint16), np.full((12, 12), 0.5, np.float32),
                                    np.full((12, 12), 70000, np.int32)])
def test_deep_pictures_are_refused_with_their_range(tmp_path, pixels):
    with pytest.raises(ValueError) as info: of_one(tmp_path, lambda path: Image.fromarray(pixels).save(path + ".tif"))
    one_sentence(info.value, "0.tif has more than 8 bits per pixel", f"from {pixels.max():g} to", "save it with 8")


@pytest.mark.parametrize("suffix", ["jpg", "png", "gif", "webp", "bmp"])
def test_a_picture_cut_short_is_named(tmp_path, suffix):
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64), np.uint8))

    def cut(path: str) -> None:
        noise.save(f"{path}.{suffix}")
        whole = Path(f"{path}.{suffix}").read_bytes()
        Path(f"{path}.{suffix}").write_bytes(whole[: len(whole) // 2])

    with pytest.raises(ValueError) as info: of_one(tmp_path, cut)
    one_sentence(info.value, f"train/dog/0.{suffix} cannot be read as an image", "replace or remove it")


def test_programs_in_pictures_do_not_run(tmp_path):
    "PostScript is a program, and Pillow would let Ghostscript run it."
    tree(tmp_path)
    for suffix in (".eps", ".ps", ".png"): (tmp_path / f"cat/9{suffix}").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n")
    with pytest.raises(ValueError) as info: load_data(tmp_path)
    one_sentence(info.value, "cat/9.png cannot be read as an image")


def test_sizes_that_differ(tmp_path):
    tree(tmp_path)
    GRAY.resize((30, 20)).save(tmp_path / "dog/9.png")
    with pytest.raises(ValueError) as info: load_data(tmp_path)
    one_sentence(info.value, "dog/9.png is 20 x 30", "resize them first, or give size=(12, 12)")
    data = load_data(tmp_path, size=8)
    assert data.shape == (1, 8, 8) and "scaled and cropped to 8 x 8" in data.notes[-1]
    assert load_data(tmp_path, size=(6, np.int64(9))).shape == (1, 6, 9)
    for size in (0, 2.5, "8", (8,), (8, 8, 3)):
        with pytest.raises(ValueError, match="give a side"): load_data(tmp_path, size=size)


def test_scaling_keeps_the_middle_and_the_proportions(tmp_path):
    wide = Image.fromarray(np.repeat(np.linspace(0, 255, 48, dtype=np.uint8)[None], 12, 0))
    image, _ = of_one(tmp_path, lambda path: wide.save(path + ".png"), size=12)
    expected = torch.linspace(0, 255, 48)[18:30]
    assert (image[0].float() - expected).abs().max() < 4
