"Distillation from inverted images: what a student is taught, what is remembered, and when it ends."
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from netinv import FrozenClassifier
from netinv.classifier import CNN
from netinv.distil import Distiller, Memory, answer_loss, check_plan, distil, patchwork, small_student

SHAPE, FEW = (1, 8, 8), {"lessons": 1, "lesson_size": 8, "memory": 100}


@pytest.fixture(scope="module")
def teacher():
    "An untrained teacher of three classes, whose answers differ from image to image."
    torch.manual_seed(0)
    return FrozenClassifier(CNN(SHAPE, 3, widths=(4,), n_features=8).eval(), shape=SHAPE, device="cpu")


def student(seed=0, **sizes):
    torch.manual_seed(seed)
    return CNN(SHAPE, 3, widths=(3,), n_features=4, **sizes)


def test_the_loss_is_the_mean_absolute_difference_of_centred_logits():
    a, b = torch.randn(5, 4, dtype=torch.float64), torch.randn(5, 4, dtype=torch.float64)
    expected = sum(abs((a[i, k] - sum(a[i]) / 4) - (b[i, k] - sum(b[i]) / 4)) for i in range(5) for k in range(4)) / 20
    assert answer_loss(a, b).item() == pytest.approx(expected.item(), abs=1e-12)
    assert answer_loss(a + torch.randn(5, 1, dtype=torch.float64), a).item() == pytest.approx(0, abs=1e-12)


@given(size=st.integers(1, 9), parts=st.lists(st.integers(1, 12), max_size=6))
@settings(deadline=None, max_examples=60)
def test_the_memory_holds_the_latest_images(size, parts):
    memory, count = Memory(size, (1, 1, 1), torch.device("cpu")), 0
    for n in parts:
        memory.add(torch.arange(count, count + n).view(n, 1, 1, 1) / 255)
        count += n
    assert len(memory) == min(size, count) and memory.seen == count
    assert sorted(memory.images[: len(memory)].flatten().tolist()) == list(range(max(0, count - size), count))


@given(n=st.integers(1, 6), side=st.integers(1, 9), times=st.integers(0, 4), seed=st.integers(0, 9))
@settings(deadline=None, max_examples=60)
def test_every_pixel_of_a_patchwork_comes_from_its_own_place_in_some_image(n, side, times, seed):
    images = torch.arange(float(n)).view(n, 1, 1, 1) + torch.rand(n, 2, side, side)
    pieces = patchwork(images, torch.Generator().manual_seed(seed), times)
    from_whom = pieces.floor().long()
    assert pieces.shape == images.shape and torch.equal(pieces, images.gather(0, from_whom))
    assert torch.equal(from_whom[:, 0], from_whom[:, 1])  # all channels of a pixel together
    assert times or torch.equal(pieces, images)


def test_a_patchwork_leaves_some_images_whole_and_cuts_rectangles_into_most():
    images = torch.arange(400.0).view(400, 1, 1, 1).expand(-1, 1, 16, 16)
    once = patchwork(images, torch.Generator().manual_seed(0), 1) != images
    cut = once.flatten(1).any(1)
    assert 0.65 < cut.float().mean() < 0.85
    for mask in once[cut][:20, 0]:
        rows, columns = mask.any(1).nonzero(), mask.any(0).nonzero()
        assert mask[rows[0]: rows[-1] + 1, columns[0]: columns[-1] + 1].all() and mask.sum() >= 20


def test_lessons_bring_the_student_nearer_and_leave_the_teacher_alone(teacher):
    before = {name: weight.clone() for name, weight in teacher.model.state_dict().items()}
    distiller = Distiller(teacher, student(), steps=60, lessons=4, lesson_size=32, memory=200, amp="off")
    distiller.memory.add(torch.rand(200, *SHAPE, generator=torch.Generator().manual_seed(1)))
    for distiller.step in range(1, 61): distiller.study()
    assert torch.stack(distiller.losses[-10:]).mean() < 0.6 * distiller.losses[0]
    for name, weight in teacher.model.state_dict().items(): assert torch.equal(weight, before[name]), name


def test_a_student_sees_what_the_generators_drew_and_nothing_else(teacher, monkeypatch):
    drawn, draw = [], Distiller.draw
    monkeypatch.setattr(Distiller, "draw", lambda self: drawn.append(draw(self)) or drawn[-1])
    distiller = Distiller(teacher, student(), steps=4, **FEW | {"memory": 10_000}, amp="off")
    distiller.teach(progress=False)
    images = torch.cat([batch.flatten(0, 1) for batch, _ in drawn])
    assert torch.equal(distiller.memory.images[: len(distiller.memory)], (255 * images.detach()).round().byte())


def test_the_same_seed_makes_the_same_student_with_dropout_and_all(teacher):
    def taught():
        return distil(teacher, student(dropout=.3), steps=3, seed=4, progress=False, **FEW).state_dict()
    before = torch.get_rng_state()
    first, second = taught(), taught()
    assert all(torch.equal(first[name], second[name]) for name in first)
    torch.set_rng_state(before)


def test_the_random_numbers_of_the_program_are_left_alone(teacher):
    pupil = student()
    before = torch.get_rng_state()
    distil(teacher, pupil, steps=2, progress=False, **FEW)
    assert torch.equal(torch.get_rng_state(), before)


def test_seconds_end_a_run_and_steps_are_then_not_needed(teacher):
    assert len(distil(teacher, student(), seconds=1e-6, progress=False, **FEW).history) == 1
    assert len(distil(teacher, student(), steps=3, seconds=1e6, progress=False, **FEW).history) == 3


def test_the_step_size_falls_to_next_to_nothing(teacher):
    distiller, sizes = Distiller(teacher, student(), steps=30, student_lr=.01, **FEW), []
    distiller.teach(on_step=lambda d: sizes.append(d.optimizers[1].param_groups[0]["lr"]), progress=False)
    assert max(sizes) <= .01 and max(sizes) > .003 and sizes[-1] < 1e-4 and sizes[0] < .001


def test_a_student_that_comes_apart_is_named(teacher):
    class Bad(nn.Module):
        def __init__(self):
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))
        def forward(self, x): return x.flatten(1)[:, :3] * self.scale * (torch.nan if self.training else 1)

    sentence = "the student's loss became nan at step 1: student and generators are back at step 0; lower student_lr"
    for steps in (3, 60):
        with pytest.raises(FloatingPointError, match=sentence): distil(teacher, Bad(), steps=steps, progress=False, **FEW)


def test_the_history_can_be_read_on_the_way(teacher):
    rows = []
    distiller = Distiller(teacher, student(), steps=12, **FEW)
    distiller.teach(on_step=lambda d: rows.append(len(d.history)), progress=False)
    assert rows[-1] <= 12 == len(distiller.history) and distiller.history.student.notna().all()


def test_the_memory_is_bounded_and_no_choice_is_no_choice(teacher):
    distiller = Distiller(teacher, student(), steps=1, recipe=None, objective=None, memory=10**9)
    assert distiller.memory.images.nbytes <= 2**28 and type(distiller.objective).__name__ == "Reconstruction"


def test_what_cannot_be_is_said(teacher):
    cases = {"student has 5 classes and the teacher 3": {"student": CNN(SHAPE, 5, widths=(3,), n_features=4)},
             "the student has no weights that can be trained": {"student": nn.Flatten()},
             "student is a str: give an nn.Module": {"student": "resnet18"},
             "the student cannot take the teacher's images": {"student": CNN((3, 8, 8), 3, widths=(3,))},
             "steps is 0: expected 1 or more": {"steps": 0},
             "seconds is 0: expected a number above 0": {"seconds": 0},
             "lessons is 0: expected 1 or more": {"lessons": 0},
             "lesson_size is 1: expected 2 or more": {"lesson_size": 1},
             "lessons is 2.5: expected a whole number": {"lessons": 2.5},
             "student_lr is 'fast': expected a number above 0": {"student_lr": "fast"}}
    for sentence, given in cases.items():
        with pytest.raises(ValueError, match=sentence): distil(teacher, progress=False, **given)
    assert check_plan(None, None)[0] > 0


def test_a_run_with_other_lessons_is_not_gone_on_with(teacher, tmp_path):
    distil(teacher, student(), steps=2, checkpoint_dir=tmp_path, progress=False, **FEW)
    with pytest.raises(ValueError, match="was written with"):
        distil(teacher, student(), steps=2, checkpoint_dir=tmp_path, resume=True, progress=False,
               **FEW | {"lesson_size": 4})


def test_the_small_student_is_small(teacher):
    count = lambda network: sum(p.numel() for p in network.parameters())
    whole = CNN((1, 28, 28), 10)
    frozen = FrozenClassifier(whole.eval(), shape=(1, 28, 28), device="cpu")
    assert count(small_student(frozen)) < 0.3 * count(whole)
