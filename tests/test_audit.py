"An audit: planted faults are found and named, a healthy classifier has none, and nothing is lost on the way."
import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import jsonschema
import pytest
import torch
from torch import nn

from netinv import FrozenClassifier, ImageData, load_data, train_classifier, train_with_garbage
from netinv.audit import Audit, audit, find_out
from netinv.cli import main
from netinv.deeper import accepts, explains, leaks
from netinv.play import digit_reader, small_cnn
from netinv.questions import knows, performs
from netinv.report import Finding, Picture, take_back, write_report
from netinv.splits import Split
from netinv.subject import AnswersOnly, Subject, fitted, inverted, keep_samples, subject_of
from netinv.verdicts import PARTS, auroc, read_rules

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

from audit_page import TARGET, page  # noqa: E402


@pytest.fixture(scope="module")
def digits():
    return load_data("digits", train_size=700, device="cpu")


def subject(model, data, folder, **more):
    "A network and its data as what is audited."
    classifier = FrozenClassifier(model.eval(), shape=data.shape, device="cpu")
    return Subject(classifier, "a test", fitted(data, classifier)[0], folder=folder, **more)


def taught(data, epochs=12, seed=0, **how):
    torch.manual_seed(seed)
    return train_classifier(data, model=small_cnn(), epochs=epochs, seed=seed, device="cpu", progress=False, **how)


class After(nn.Module):
    "A network whose images, features or logits are changed on the way."
    def __init__(self, network, images=lambda x: x, logits=lambda y: y):
        super().__init__()
        self.network, self.images, self.logits = network, images, logits

    def forward(self, x): return self.logits(self.network(self.images(x)))


def faults(finding): return " ".join(finding.faults)


# Planted faults

def test_a_class_that_cannot_be_reached_is_named(digits, tmp_path):
    gone = torch.zeros(10).index_fill(0, torch.tensor(4), -torch.inf)
    found = accepts(subject(After(digit_reader(), logits=lambda y: y + gone), digits, tmp_path), 6)
    assert "Class 4 cannot be answered, whatever the image" in faults(found)
    assert found.numbers["classes_reached"].high <= 0.9


def test_a_dead_layer_is_named(digits, tmp_path):
    network = digit_reader()
    alive = torch.zeros(32).index_fill(0, torch.arange(8), 1.0)
    head = next(m for m in reversed(list(network.modules())) if isinstance(m, nn.Linear))
    head.register_forward_pre_hook(lambda _, inputs: (inputs[0] * alive,))
    with torch.no_grad():
        before = [m for m in network.modules() if isinstance(m, nn.Linear) and m is not head]
        for m in before[-1:]: m.weight[8:], m.bias[8:] = 0, -1
    it = subject(network, digits, tmp_path)
    accepts(it, 3)
    assert "features never change" in faults(explains(it, 1))


def test_a_shortcut_is_named(digits, tmp_path):
    def marked(split):
        images, labels = split.images.clone(), split.labels.clone()
        labels[::5] = 3
        images[labels == 3, :, -7:, -7:] = 255
        return Split(images, labels)

    spoilt = replace(digits, train=marked(digits.train), valid=marked(digits.valid))
    it = subject(taught(spoilt), digits, tmp_path)
    accepts(it, 60)
    found = explains(it, 600)
    assert "Class 3 has a shortcut" in faults(found), found.says
    assert any("patch" in picture.title for picture in found.pictures)


def test_swapped_classes_are_named(digits, tmp_path):
    order = torch.tensor([0, 1, 2, 5, 4, 3, 6, 8, 7, 9])
    found = performs(subject(After(digit_reader(), logits=lambda y: y[:, order]), digits, tmp_path), 5)
    assert "the classes are in another order" in faults(found) and found.numbers["accuracy"].mean < 0.7


def test_a_missing_normalisation_is_named(digits, tmp_path):
    found = performs(subject(After(digit_reader(), images=lambda x: 0.08 * x + 0.5), digits, tmp_path), 5)
    assert found.numbers["accuracy"].mean < 0.8
    assert "accuracy is" in faults(found) and "instead of" in faults(found), found.faults


def test_thirty_images_learnt_by_heart_leak(digits, tmp_path):
    few = ImageData(Split(digits.train.images[:30], digits.train.labels[:30]), digits.valid, digits.test, digits.classes,
                    digits.shape, "thirty digits")
    found = leaks(subject(taught(few, epochs=150, augment="none"), few, tmp_path, blind="to save time"), 1)
    assert "learnt its training images by heart" in faults(found)
    assert found.numbers["training_gap"].low > 0.1


def test_a_garbage_class_that_knows_one_family_is_named(digits, tmp_path):
    model = train_with_garbage(digits, model=digit_reader(), families=["strokes"], epochs=10, garbage_weight=1.0,
                               device="cpu", progress=False)
    found = knows(subject(model, digits, tmp_path), 30)
    assert "The garbage class catches" in faults(found) and ", and not" in faults(found), found.tables[0].rows


@pytest.mark.parametrize("seed", range(5))
def test_a_healthy_classifier_has_no_fault(seed, digits, tmp_path):
    it = subject(taught(digits, epochs=20, seed=seed), digits, tmp_path, seed=seed)
    found = audit(it, budget=14, only=["performs", "accepts", "explains", "knows"], progress=False)
    assert found["faults"] == [], found["faults"]
    assert not any(line["state"] == "missed" for line in found["verdicts"]), found["summary"]


# What cannot be done is said

def test_a_model_behind_a_function_is_asked_what_answers_alone_can_tell(tmp_path):
    class Rounded(nn.Module):
        def __init__(self):
            super().__init__()
            self.network = digit_reader()
        def forward(self, x): return self.network((255 * x).round().byte().float() / 255)

    it = subject_of(Rounded(), "digits", folder=tmp_path)
    states = {part: find_out(part, it, 2).state for part in ("performs", "accepts", "explains", "knows", "leaks")}
    assert states == {"performs": "done", "accepts": "not tested", "explains": "not tested", "knows": "done",
                      "leaks": "done"}
    assert "gradient" in it.blind and isinstance(it.classifier.model, AnswersOnly)


def test_a_part_that_fails_does_not_take_the_others_along(digits, tmp_path, monkeypatch):
    def broken(*_): raise RuntimeError("out of memory")
    monkeypatch.setitem(sys.modules["netinv.audit"].MAKERS, "accepts", broken)
    found = audit(subject(digit_reader(), digits, tmp_path), budget=5, only=["performs", "accepts"], progress=False)
    assert found["parts"]["accepts"]["state"] == "failed" and found["parts"]["performs"]["state"] == "done"
    assert found["exit_code"] == 1, "a gate that nothing was measured for must not open"
    line = next(line for line in found["verdicts"] if line["name"] == "classes_reached")
    assert line["state"] == "not tested" and "out of memory" in line["sentence"].lower()


def test_what_is_kept_is_taken_back_and_nothing_else(digits, tmp_path, monkeypatch):
    it = subject(digit_reader(), digits, tmp_path)
    Audit(it, budget=5).part("performs")
    def never(*_): raise AssertionError("done twice")
    monkeypatch.setitem(sys.modules["netinv.audit"].MAKERS, "performs", never)
    assert Audit(it, budget=5, resume=True).part("performs").numbers["accuracy"].mean > 0.9
    assert Audit(it, budget=6, resume=True).part("performs").state == "failed"  # done again
    other = subject(digit_reader(), digits, tmp_path, seed=1)
    assert Audit(other, budget=5, resume=True).part("performs").state == "failed"


def test_a_part_that_failed_is_tried_again(digits, tmp_path, monkeypatch):
    it = subject(digit_reader(), digits, tmp_path)
    def broken(*_): raise RuntimeError("out of memory")
    with monkeypatch.context() as patched:
        patched.setitem(sys.modules["netinv.audit"].MAKERS, "performs", broken)
        assert Audit(it, budget=5).part("performs").state == "failed"
    assert Audit(it, budget=5, resume=True).part("performs").state == "done"


def test_a_part_is_done_again_where_what_it_looks_at_was_made_since(digits, tmp_path):
    it = subject(digit_reader(), digits, tmp_path)
    assert Audit(it, budget=10, only=["explains"]).part("explains").state == "not tested"
    Audit(it, budget=10, only=["knows"]).part("knows")
    whole = Audit(subject(digit_reader(), digits, tmp_path), budget=10, only=["accepts", "explains", "knows"], resume=True)
    found = {part: whole.part(part) for part in whole.wanted}
    assert found["explains"].state == "done" and "inverted" in [row[0] for row in found["knows"].tables[0].rows]


def test_what_a_failed_part_says_can_be_written_as_xml(digits, tmp_path, monkeypatch):
    from xml.etree import ElementTree

    def broken(*_): raise RuntimeError("\x1b[31mred\x00")
    monkeypatch.setitem(sys.modules["netinv.audit"].MAKERS, "performs", broken)
    audit(subject(digit_reader(), digits, tmp_path), budget=5, only=["performs"], progress=False)
    root = ElementTree.parse(tmp_path / "junit.xml").getroot()
    assert root.get("errors") == "1" and "red" in root.find("testcase/error").get("message")


def test_inverted_images_of_another_classifier_are_not_taken(digits, tmp_path):
    first = subject(digit_reader(), digits, tmp_path)
    keep_samples(first, first.images("test", 20))
    assert len(inverted(subject(digit_reader(), digits, tmp_path))) == 20
    assert inverted(subject(small_cnn(), digits, tmp_path)) is None


def test_a_finding_that_was_cut_off_is_not_taken_back(tmp_path):
    Finding("knows", pictures=[Picture("a", "b", b"png")]).keep(tmp_path)
    (tmp_path / "knows.json").write_text('{"key": "')
    assert take_back(tmp_path, "knows") is None


def test_data_that_do_not_fit_are_refused(tmp_path):
    wide = torch.zeros(4, 3, 9, 9, dtype=torch.uint8)
    data = ImageData(*[Split(wide, torch.arange(4) % 2)] * 3, ["a", "b"], (3, 9, 9), "wide")
    classifier = FrozenClassifier(digit_reader(), shape=(1, 28, 28), device="cpu")
    with pytest.raises(ValueError, match="3x9x9 and the classifier takes 1x28x28: resize=True scales them"):
        fitted(data, classifier)
    assert fitted(data, classifier, resize=True)[0].test.images.shape == (4, 1, 28, 28)
    alone = ImageData(*[Split(wide, torch.zeros(4, dtype=torch.int64))] * 3, ["a"], (3, 9, 9), "one")
    with pytest.raises(ValueError, match="a single class"): fitted(alone, classifier, resize=True)


# Numbers

def test_the_interval_of_an_auroc_agrees_with_the_bootstrap():
    rng = torch.Generator().manual_seed(0)
    x, y = torch.randn(150, generator=rng) + 1, torch.randn(120, generator=rng)
    mean, low, high = auroc(x, y)
    wins = (x[:, None] > y).double()
    assert mean == pytest.approx(wins.mean().item(), abs=1e-12)
    draw = lambda n: torch.randint(n, (n,), generator=rng)
    drawn = torch.stack([wins[draw(150)][:, draw(120)].mean() for _ in range(2_000)])
    bounds = drawn.quantile(torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    assert [low, high] == pytest.approx(bounds, abs=0.015)


def test_every_threshold_belongs_to_a_number_that_some_part_measures(digits, tmp_path):
    it, seconds = subject(digit_reader(), digits, tmp_path), {"accepts": 60, "explains": 600, "leaks": 3}  # none waits
    found = [find_out(part, it, seconds.get(part, 20)) for part in PARTS]
    assert {rule.name for rule in read_rules()} == {name for finding in found for name in finding.numbers}
    write_report(tmp_path, found, read_rules(), "digits")
    schema = json.loads((ROOT / "netinv/static/audit.schema.json").read_text())
    jsonschema.validate(json.loads((tmp_path / "audit.json").read_text()), schema)


# The command

def test_the_notebook_that_comes_along_is_the_chapter():
    assert TARGET.read_text(encoding="utf-8") == page(), "run python tools/audit_page.py"


def test_the_command_ends_with_a_code_that_ci_can_gate_on(tmp_path, capsys):
    strict = tmp_path / "strict.yaml"
    strict.write_text("accuracy: {at_least: 0.9999}\n")
    words = ["audit", "--demo", "--only", "performs", "--budget", "10s", "--thresholds", str(strict)]
    assert main([*words, "--out", str(tmp_path / "a")]) in (0, 1)
    assert "report.html" in capsys.readouterr().out
    assert main(["audit", "--demo", "--only", "performs", "--budget", "10s", "--out", str(tmp_path / "b")]) == 0
    assert main(["audit", "--compare", str(tmp_path / "a"), str(tmp_path / "b")]) == 0
    capsys.readouterr()
    for words in (["audit"], ["audit", "no.onnx"], ["audit", "--demo", "--budget", "soon"],
                  ["audit", "--compare", "x", "y"]):
        assert main(words) == 2
        assert capsys.readouterr().err.count("\n") == 1


def test_the_report_prints_to_pdf_and_loads_nothing(digits, tmp_path):
    from browser import chromium_path

    path = chromium_path()
    if path is None: pytest.skip("there is no Chromium to print with")
    audit(subject(digit_reader(), digits, tmp_path), budget=10, only=["identity", "performs"], progress=False)
    pdf = tmp_path / "report.pdf"
    subprocess.run([path, "--headless", "--no-sandbox", "--disable-gpu", f"--print-to-pdf={pdf}",
                    (tmp_path / "report.html").as_uri()], check=True, capture_output=True, timeout=120)
    assert pdf.read_bytes()[:5] == b"%PDF-" and pdf.stat().st_size > 20_000
    assert "http" not in (tmp_path / "report.html").read_text().replace("http://www.w3.org", "").split("<body>")[0]


def test_a_full_disk_is_told_and_what_was_done_is_kept(tmp_path):
    "No file may be larger than 100 kB, as on a disk that is nearly full: the report is."
    words = ["audit", "--demo", "--only", "performs,knows", "--budget", "10s", "--out", str(tmp_path)]
    def small(): resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, 100_000))
    code = "import sys; from netinv.cli import main; sys.exit(main(sys.argv[1:]))"
    done = subprocess.run([sys.executable, "-c", code, *words], preexec_fn=small, capture_output=True, text=True)
    assert done.returncode == 2 and "report.html could not be written (File too large)" in done.stderr
    assert "go on with --resume --out" in done.stderr and not (tmp_path / "report.html").exists()
    assert main([*words, "--resume"]) in (0, 1) and (tmp_path / "report.html").exists()


# Large folders

def pictures(folder, n=120, side=12, colour=10**9):
    "Pictures of two classes in folders, dark and bright ones; from one on, every twentieth is in colour."
    from PIL import Image

    rng = torch.Generator().manual_seed(0)
    for k in range(n):
        x = torch.randint(0, 120, (side, side), generator=rng) + 120 * (k % 2)
        path = folder / ("train", "test")[k % 3 == 0] / ("dark", "bright")[k % 2] / f"{k}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(x.byte().numpy()).convert("RGB" if k >= colour and k % 20 == 0 else "L").save(path)
    return folder


def brightness():
    "Whether an image is bright."
    layer = nn.Linear(144, 2)
    with torch.no_grad():
        layer.weight[0], layer.weight[1], layer.bias[:] = 0.1, -0.1, torch.tensor([-7.2, 7.2])
    return nn.Sequential(nn.Flatten(), layer)


def large(monkeypatch):
    "Make every folder a large one, and a block a hundred images."
    import netinv.streams
    import netinv.subject

    monkeypatch.setattr(netinv.subject, "load_images", lambda *how: netinv.streams.load_images(*how, large=0))
    monkeypatch.setattr(netinv.subject, "BLOCK", 0)


def test_a_large_folder_is_looked_at_in_blocks_and_gives_the_same_answers(tmp_path, monkeypatch):
    "It stays in its files; no more than a block of it is ever in memory."
    import netinv.streams

    folder, at_once, read = pictures(tmp_path / "pictures", n=900), [], netinv.streams.read_images
    whole = subject_of(brightness(), str(folder), folder=tmp_path / "whole")
    large(monkeypatch)
    counted = lambda paths, *how: at_once.append(len(paths)) or read(paths, *how)
    monkeypatch.setattr(netinv.streams, "read_images", counted)
    files = subject_of(brightness(), str(folder), folder=tmp_path / "files")
    assert type(files.data).__name__ == "FileData" and len(files.data.test) == 300
    first, second = (performs(about, 60) for about in (whole, files))
    assert second.numbers == first.numbers and second.numbers["accuracy"].mean > 0.9 and not second.cut
    assert audit(files, budget=5, progress=False)["parts"]["knows"]["state"] == "done" and max(at_once) == 100


@pytest.mark.parametrize("channels", [1, 3])
def test_gray_pictures_among_those_in_colour_do_not_depend_on_the_block(tmp_path, monkeypatch, channels):
    "Colour pictures that are rare, so that most blocks are gray, for a classifier of either kind."
    folder = pictures(tmp_path / "pictures", n=300, colour=200)
    model = nn.Sequential(nn.AvgPool3d((channels, 1, 1)), brightness())
    settings = {"shape": (channels, 12, 12)}
    whole = subject_of(model, str(folder), settings=settings, resize=True)
    large(monkeypatch)
    files = subject_of(model, str(folder), settings=settings, resize=True)
    assert files.data.test.images.channels == 3
    rows = torch.arange(len(files.data.test))
    for some in (rows, rows[:5]): assert torch.equal(files.data.test.images[some], whole.data.test.images[some])


def test_a_damaged_picture_in_a_large_folder_is_told_at_the_start(tmp_path, monkeypatch):
    folder = pictures(tmp_path / "pictures")
    (folder / "train" / "dark" / "2.png").write_bytes(b"no picture")
    large(monkeypatch)
    with pytest.raises(ValueError, match="2.png cannot be read as an image"): subject_of(brightness(), str(folder))


def test_foreign_images_are_of_all_kinds(tmp_path):
    "The first hundred pictures of a folder in the order of its classes are of one class."
    foreign = subject_of("demo", None, ood=[str(pictures(tmp_path / "foreign", n=900))]).foreign["foreign"]
    assert 0.3 < (foreign[:100].float().mean((1, 2, 3)) > 128).float().mean() < 0.7


def test_folders_with_pictures_of_all_sizes_are_scaled_to_a_classifier_that_knows_its_own(tmp_path):
    folder = pictures(pictures(tmp_path / "pictures", n=24), n=12, side=15)
    with pytest.raises(ValueError, match="images must have one size"): subject_of(brightness(), str(folder))
    settings = {"shape": (1, 12, 12)}
    about = subject_of(brightness(), str(folder), settings=settings, resize=True)
    assert about.data.test.images.shape[1:] == (1, 12, 12)


def test_near_copies_are_one_piece_of_evidence(tmp_path):
    "An untrained classifier gave 200 reconstructions that are alike, all nearest to one training image: no leak."
    from netinv.deeper import resemblance
    from netinv.samples import look

    about = subject_of(brightness(), str(pictures(tmp_path / "pictures")), folder=tmp_path)
    train, test = about.images("train", 40), about.images("test", 40)
    made = look(about.classifier, train.images[:1].expand(200, -1, -1, -1), train.labels[:1].expand(200))
    found = Finding("leaks")
    resemblance(about, made, train, test, found)
    assert found.numbers["resemblance"].mean == 1 and found.numbers["resemblance"].low < 0.6 and not found.faults
