"Reconstruction: what the attacker may see, each term against a computation of its own, a classifier that is let alone."
import inspect
import threading
from dataclasses import fields

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from networks import worn_cnn
from torch import Tensor, nn
from victims import Attention, count_hooks, perceptron

from netinv.classifier import CNN
from netinv.conditioning import Condition
from netinv.data import ImageData
from netinv.frozen import ClassifierOutput, FrozenClassifier
from netinv.generator import Generator
from netinv.losses import ce_loss
from netinv.objective import Term
from netinv.reconstruction import Reconstruction, best_of, reconstruct, reconstruction_inverter
from netinv.samples import Samples
from netinv.traces import Perturbation

QUIET = {"progress": False, "amp": "off"}
SMALL = {"generator": Generator.sized(width=16, latent_dim=8), "batch_size": 24}
STILL = dict.fromkeys(["epsilon", "shift", "angle", "scale", "channels", "clean"], 0.0)  # nothing is disturbed


def test_no_training_image_can_reach_the_attacker() -> None:
    for function in (reconstruct, reconstruction_inverter):
        kinds = [str(p.annotation) for p in inspect.signature(function).parameters.values()]
        assert not any(kind in text for text in kinds for kind in ("ImageData", "Split", "Tensor"))
    for f in fields(Perturbation): assert f.type in (float, "float")
    assert all(isinstance(number, float) for number in Reconstruction().numbers.values())


def test_the_same_weights_give_the_same_images_whatever_data_is_around(
    frozen: FrozenClassifier, digits: ImageData,
) -> None:
    model = CNN(digits.shape, 10).eval()
    model.load_state_dict(frozen.model.state_dict())
    again = FrozenClassifier(model, shape=digits.shape, device="cpu")
    one, other = (reconstruct(c, steps=3, n=20, **QUIET, **SMALL) for c in (frozen, again))
    assert torch.equal(one.images, other.images)


@pytest.mark.parametrize("recipe", ["prior", "paper"])
def test_reconstruct_gives_all_classes_and_lets_the_classifier_alone(frozen: FrozenClassifier, recipe: str) -> None:
    before, weights = count_hooks(frozen), {name: t.clone() for name, t in frozen.model.state_dict().items()}
    found = reconstruct(frozen, recipe=recipe, steps=4, n=40, **QUIET, **SMALL)
    assert torch.bincount(found.labels).tolist() == [4] * 10 and 0 <= found.images.min() and found.images.max() <= 1
    assert count_hooks(frozen) == before
    assert all(torch.equal(t, weights[name]) for name, t in frozen.model.state_dict().items())
    assert all(p.grad is None and not p.requires_grad for p in frozen.model.parameters())


def test_unknown_recipe(frozen: FrozenClassifier) -> None:
    with pytest.raises(ValueError, match="'papper' is unknown: expected one of prior, paper"):
        reconstruct(frozen, recipe="papper")


@pytest.mark.parametrize("model", [
    perceptron(),
    nn.Sequential(nn.Conv2d(1, 6, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(384, 10)),
    nn.Sequential(nn.Conv2d(1, 10, 5, 3), nn.BatchNorm2d(10), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
])
def test_any_architecture(model: nn.Module) -> None:
    frozen = FrozenClassifier(model.eval(), shape=(1, 28, 28), device="cpu")
    found = reconstruct(frozen, steps=3, n=10, objective=Reconstruction(eta_grad=0.1), **QUIET, **SMALL)
    assert found.images.isfinite().all()


def test_a_killed_run_goes_on_to_the_same_end(frozen: FrozenClassifier, tmp_path) -> None:
    wanted = {"n": 20, **QUIET, **SMALL}
    whole = reconstruct(frozen, steps=30, **wanted)
    reconstruct(frozen, steps=20, checkpoint_dir=tmp_path, **wanted)
    resumed = reconstruct(frozen, steps=30, checkpoint_dir=tmp_path, resume=True, **wanted)
    assert torch.equal(whole.images, resumed.images)


def test_channels_are_left_out_of_the_training_pass_alone() -> None:
    # nothing to fold: every pass goes through the layers that are watched
    frozen = FrozenClassifier(perceptron().eval(), shape=(1, 28, 28), device="cpu")
    objective = Reconstruction(alpha=1.0, eta_grad=0.1, clean=0.0)
    inverter = reconstruction_inverter(frozen, objective=objective, amp="off", **SMALL)
    zeros, objective.at_once = [], False  # image by image, so that each pass can be looked at
    frozen.model[4].register_forward_pre_hook(lambda _, given: zeros.append((given[0] == 0).any().item()))
    inverter.fit(1, progress=False)
    assert zeros[0] and not any(zeros[1:]) and len(zeros) > 2


def test_a_clean_share_is_seen_as_it_is_and_gives_the_statistics(frozen: FrozenClassifier) -> None:
    weights = dict.fromkeys(["alpha", "alpha_pert", "beta", "beta_pert", "gamma", "delta", "eta_bn", "eta_span"], 1)
    objective = Reconstruction(channels=0.3, clean=0.5, **weights)
    objective.prepare(frozen, None)
    images, rngs = torch.rand(2, 12, *frozen.shape), [torch.Generator().manual_seed(k) for k in range(2)]
    condition = Condition(torch.randint(10, (2, 12)), torch.rand(2, 12, 10).softmax(2), None, None)
    seen = objective.show(images, rngs)
    assert torch.equal(seen[:, :6], images[:, :6]) and (seen[:, 6:] != images[:, 6:]).flatten(2).any(2).all()
    with torch.no_grad(), objective.watching(rngs): flat = frozen(seen.flatten(0, 1))
    got = objective(images, condition, ClassifierOutput(*(part.unflatten(0, (2, 12)) for part in flat)))
    logits = flat.logits.unflatten(0, (2, 12))
    with torch.no_grad(): plain = frozen(images[:, :6].flatten(0, 1))
    torch.testing.assert_close(logits[:, :6].flatten(0, 1), plain.logits)
    nll = -logits.log_softmax(2).gather(2, condition.labels[..., None])[..., 0]
    torch.testing.assert_close(got["beta"], nll[:, :6].mean())
    torch.testing.assert_close(got["beta_pert"], nll[:, 6:].mean())
    alone = Reconstruction(**STILL, **weights)  # nothing is disturbed
    alone.prepare(frozen, None)
    with torch.no_grad(), alone.watching(rngs): whole = frozen(alone.show(images[:, :6], rngs).flatten(0, 1))
    few = Condition(condition.labels[:, :6], condition.target_probs[:, :6], None, None)
    wanted = alone(images[:, :6], few, ClassifierOutput(*(part.unflatten(0, (2, 6)) for part in whole)))
    for term in ("alpha", "beta", "gamma", "delta", "eta_bn", "eta_span"):
        torch.testing.assert_close(got[term], wanted[term], atol=1e-5, rtol=1e-4)


def test_without_batch_norm_every_image_is_perturbed(frozen: FrozenClassifier) -> None:
    without = FrozenClassifier(perceptron().eval(), shape=(1, 28, 28), device="cpu")
    for classifier, clean in ((frozen, 0.5), (without, 0.0)):
        objective = reconstruction_inverter(classifier, amp="off", **SMALL).objective
        assert (objective["clean"], objective["beta"] + objective["beta_pert"]) == (clean, 16.0)
        assert (objective["beta"] > 0) == (clean > 0)


def test_a_clean_share_saves_the_second_pass(frozen: FrozenClassifier) -> None:
    passes, watched = [], FrozenClassifier(perceptron().eval(), shape=(1, 28, 28), device="cpu")
    for clean, wanted in ((0.5, 1), (0.0, 2)):
        objective = Reconstruction(gamma=1.0, clean=clean)
        inverter = reconstruction_inverter(watched, objective=objective, amp="off", **SMALL)
        handle = inverter.target.model.register_forward_hook(lambda *_: passes.append(1))
        inverter.train_step()
        handle.remove()
        assert len(passes) == wanted
        passes.clear()


def test_generators_trained_at_once_learn_what_each_learns_alone(frozen: FrozenClassifier) -> None:
    first = []
    for k in (1, 3):
        objective = Reconstruction(eta_grad=0.01, alpha=1.0, gamma=1.0)
        inverter = reconstruction_inverter(frozen, n_generators=k, amp="off", objective=objective, **SMALL)
        inverter.fit(4, progress=False)
        weights = inverter.generators[0].named_parameters()  # a batch norm undoes biases, whose gradient is rounding
        first.append(torch.cat([p.detach().flatten() for name, p in weights if not name.endswith("layer.bias")
                                and not name.endswith("conv.bias")]))
    torch.testing.assert_close(*first, atol=1e-3, rtol=0)


def test_a_failed_construction_leaves_no_hook(frozen: FrozenClassifier) -> None:
    before = count_hooks(frozen)
    with pytest.raises(ValueError, match="at least 2 images"): reconstruct(frozen, batch_size=1)
    with pytest.raises(TypeError): reconstruct(frozen, widht=3)
    with pytest.raises(ValueError, match="both must be at least 1"): reconstruct(frozen, n=0)
    assert count_hooks(frozen) == before


def test_a_checkpoint_of_other_weights_is_refused(frozen: FrozenClassifier, tmp_path) -> None:
    wanted = {"steps": 10, "n": 10, "checkpoint_dir": tmp_path, **QUIET, **SMALL}
    reconstruct(frozen, **wanted)
    with pytest.raises(ValueError, match="was written with"):
        reconstruct(frozen, resume=True, objective=Reconstruction(eta_bn=0.0), **wanted)


def test_terms_without_weight_are_left_out_and_the_others_are_what_they_say(frozen: FrozenClassifier) -> None:
    objective = Reconstruction.recipe(frozen, "paper", **STILL)
    inverter = reconstruction_inverter(frozen, objective=objective, amp="off", **SMALL)
    inverter.fit(1, progress=False)
    first = inverter.history.iloc[0]
    for name in ("alpha", "beta"):  # nothing was perturbed
        assert first[name] == pytest.approx(first[f"{name}_pert"], rel=1e-4)
    assert first[["eta_bn", "eta_span", "gamma_class"]].isna().all() and first.eta_pix == 0
    assert min(first.eta_grad, first.eta_var, first.gamma, first.delta) > 0


def test_a_term_that_is_off_costs_nothing(frozen: FrozenClassifier) -> None:
    "Its loss is never called."
    called, names = [], set(Reconstruction().weights)
    def counted(term: Term) -> Term:
        return term._replace(loss=lambda view: called.append(term.name) or term.loss(view))
    class Counting(Reconstruction):
        terms = tuple(map(counted, Reconstruction.terms))
    for name in names:
        objective = Counting(**dict.fromkeys(names, 1.0) | {"eta_grad": 0.01, name: 0.0})
        reconstruction_inverter(frozen, objective=objective, amp="off", **SMALL).train_step()
        assert sorted(called) == sorted(names - {name})
        called.clear()


def test_no_layer_is_watched_outside_of_the_training_pass(frozen: FrozenClassifier) -> None:
    before, inverter = count_hooks(frozen), reconstruction_inverter(frozen, amp="off", **SMALL)
    assert count_hooks(frozen) == before
    inside, seen = [], frozen.model.register_forward_hook(lambda *_: inside.append(count_hooks(frozen)))
    inverter.fit(2, progress=False)
    seen.remove()
    assert len(inside) == 2 and min(inside) > before + 1 and count_hooks(frozen) == before
    with pytest.raises(ZeroDivisionError):
        with inverter.objective.watching(inverter.rngs): 1 / 0
    assert count_hooks(frozen) == before


def test_two_inverters_in_two_threads_learn_what_each_learns_alone(frozen: FrozenClassifier) -> None:
    make = lambda: [reconstruction_inverter(frozen, seed=seed, amp="off", **SMALL) for seed in (0, 1)]
    alone, both = make(), make()
    for inverter in alone: inverter.fit(6, progress=False)
    threads = [threading.Thread(target=inverter.fit, args=(6,), kwargs={"progress": False}) for inverter in both]
    for thread in threads: thread.start()
    for thread in threads: thread.join()
    for one, other in zip(alone, both):
        assert other.history.total.tolist() == pytest.approx(one.history.total.tolist(), rel=1e-3)


def test_the_gradient_norm_is_that_of_the_weights(frozen: FrozenClassifier) -> None:
    objective = Reconstruction()
    objective.prepare(frozen, None)
    images, labels = torch.rand(2, 4, *frozen.shape, requires_grad=True), torch.randint(10, (2, 4))
    found = objective.gradient_norm(images, labels)
    model = CNN(frozen.shape, 10).eval()
    model.load_state_dict(frozen.model.state_dict())
    def squared(image: Tensor, label: Tensor) -> float:
        model.zero_grad()
        ce_loss(model(image.detach()[None]), label[None]).backward()
        return sum(p.grad.square().sum().item() for p in model.parameters())
    each = [squared(*pair) for pair in zip(images.flatten(0, 1), labels.flatten())]
    assert objective.at_once and found.item() == pytest.approx(sum(each) / 8, rel=1e-4)
    assert objective.gradient_norm(images, labels, at_once=False).item() == pytest.approx(found.item(), rel=1e-4)
    assert torch.autograd.grad(found, images)[0].abs().sum() > 0
    assert not any(p.requires_grad for p in frozen.model.parameters())


def test_the_gradient_norm_in_half_precision_points_the_same_way(frozen: FrozenClassifier) -> None:
    torch.manual_seed(0)
    images, labels = torch.rand(2, 32, *frozen.shape, requires_grad=True), torch.randint(10, (2, 32))
    def found(amp: torch.dtype | None) -> tuple[float, Tensor]:
        objective = Reconstruction()
        objective.prepare(frozen, amp)
        loss = objective.gradient_norm(images, labels)
        return loss.item(), torch.autograd.grad(loss, images)[0].flatten()
    (full, along), (half, across) = found(None), found(torch.bfloat16)
    assert half != full and half == pytest.approx(full, rel=0.05)
    assert torch.cosine_similarity(along, across, dim=0) > 0.97


@given(st.lists(st.tuples(st.integers(0, 3), st.floats(-9, 9)), min_size=4, max_size=40), st.integers(1, 40))
@settings(max_examples=60, deadline=None)
def test_best_of_takes_the_best_of_each_class_in_turn(pairs: list[tuple[int, float]], n: int) -> None:
    labels, scores = torch.tensor([k for k, _ in pairs]), torch.tensor([s for _, s in pairs], dtype=torch.float64)
    rows = torch.arange(len(pairs))
    kept = best_of(Samples(rows[:, None, None, None].float(), labels, rows[:, None], rows[:, None], rows), scores, n)
    assert len(kept) == min(n, len(pairs)) == len(set(kept.generator.tolist()))
    counts, there = torch.bincount(kept.labels, minlength=4), torch.bincount(labels, minlength=4)
    assert all(c == t or c >= counts.max() - 1 for c, t in zip(counts, there))
    for k in range(4):
        chosen = scores[kept.generator[kept.labels == k]]
        all_of_class = scores[labels == k].sort(descending=True).values
        assert torch.equal(chosen.sort(descending=True).values, all_of_class[: len(chosen)])


def test_the_gradient_norm_of_a_folded_classifier_is_with_respect_to_the_weights_it_came_with() -> None:
    model = worn_cnn((1, 16, 16), 3)
    frozen = FrozenClassifier(model, shape=(1, 16, 16), device="cpu")
    objective = Reconstruction.recipe(frozen, "paper")
    objective.prepare(frozen, None)
    assert objective.folded is not frozen
    images, labels = torch.rand(2, 6, 1, 16, 16, requires_grad=True), torch.randint(3, (2, 6))
    found = objective.gradient_norm(images, labels)
    plain = model.eval().requires_grad_(True)
    norms = []
    for x, y in zip(images.flatten(0, 1), labels.flatten()):
        gradients = torch.autograd.grad(ce_loss(plain(x[None]), y[None]), list(plain.parameters()), create_graph=True)
        norms.append(sum(g.square().sum() for g in gradients))
    expected = torch.stack(norms).mean()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    ours, theirs = (torch.autograd.grad(t, images)[0] for t in (found, expected))
    # rounding moves a few pixels over the bends of the activations
    assert (ours - theirs).norm() < 1e-2 * theirs.norm()


def test_attention_has_a_gradient_norm() -> None:
    torch.manual_seed(0)
    frozen = FrozenClassifier(Attention().eval(), shape=(1, 28, 28), device="cpu")
    assert reconstruct(frozen, recipe="paper", steps=2, n=10, **QUIET, **SMALL).images.isfinite().all()


def test_maps_are_smoothed_where_batch_norm_would_be_content_with_stripes() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3))
    small = {"batch_size": 24, "amp": "off"}
    normed = CNN((1, 8, 8), 3)
    for model, expected in ((normed, 4), (plain, 1)):
        frozen = FrozenClassifier(model.eval(), shape=(1, 8, 8), device="cpu")
        inverter = reconstruction_inverter(frozen, **small)
        assert inverter.generators[0].smooth == expected and inverter.generators[0].stretch > 0
        objective = Reconstruction.recipe(frozen)  # before an inverter has prepared it
        assert objective.generator()(frozen.shape, inverter.conditioning).smooth == expected
    frozen = FrozenClassifier(plain, shape=(1, 8, 8), device="cpu")
    given = reconstruction_inverter(frozen, generator=Generator.sized(smooth=2), **small)
    assert given.generators[0].smooth == 2


def test_a_perturbation_may_be_any_function_and_no_hook_is_left(frozen: FrozenClassifier) -> None:
    before, asked = count_hooks(frozen), []
    def paler(x: Tensor, rng: torch.Generator) -> Tensor:
        asked.append(len(x))
        return 0.9 * x
    objective = Reconstruction.recipe(frozen, perturb=paler)
    found = reconstruct(frozen, objective=objective, steps=1, n=10, progress=False, **SMALL | {"batch_size": 4})
    assert len(found) == 10
    assert asked[0] == 2 and count_hooks(frozen) == before  # half of the batch stays clean


def test_a_run_says_by_which_function_images_were_perturbed(frozen: FrozenClassifier, tmp_path) -> None:
    def paler(x: Tensor, rng: torch.Generator) -> Tensor: return 0.9 * x
    inverter = reconstruction_inverter(frozen, objective=Reconstruction(perturb=paler), **SMALL)
    inverter.save(tmp_path)
    assert "perturb: paler" in (tmp_path / "config.yaml").read_text()
    again = type(inverter).load(tmp_path, frozen)
    assert torch.equal(again.sample(10, seed=0).images, inverter.sample(10, seed=0).images)
    with pytest.raises(ValueError, match="perturbed by 'paler'.*load the run with objective="):
        again.fit(1, progress=False)
    again = type(inverter).load(tmp_path, frozen, objective=Reconstruction(perturb=paler))
    assert again.objective.perturbation is paler and again.fit(1, progress=False).total.notna().all()


@pytest.mark.parametrize("recipe", ["prior", "paper"])
def test_a_saved_reconstruction_can_be_loaded(frozen: FrozenClassifier, recipe: str, tmp_path) -> None:
    objective = Reconstruction.recipe(frozen, recipe, gamma=0.5, angle=0.2)
    inverter = reconstruction_inverter(frozen, objective=objective, n_generators=2, batch_size=4)
    inverter.fit(1, progress=False)
    inverter.save(tmp_path)
    again = type(inverter).load(tmp_path, frozen)
    assert type(again.objective) is Reconstruction and again.objective.numbers == inverter.objective.numbers
    assert torch.equal(again.sample(20, seed=0).images, inverter.sample(20, seed=0).images)
    assert again.fit(1, progress=False).total.notna().all()


def test_a_layer_without_a_second_derivative_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3, 2), nn.Hardsigmoid(), nn.Flatten(), nn.Linear(4 * 169, 3))
    frozen = FrozenClassifier(model, shape=(1, 28, 28), device="cpu")
    with pytest.raises(ValueError, match="needs second derivatives.*set eta_grad=0"):
        reconstruction_inverter(frozen, recipe="paper")


def test_misspelt_and_unfit_numbers_get_a_sentence() -> None:
    cases = {"eta_grad": {"eta_gard": 1}, "channels is 1.0": {"channels": 1.0}, "clean is -0.1": {"clean": -0.1},
             "eta_bn is 'much'": {"eta_bn": "much"}}
    for says, wrong in cases.items():
        with pytest.raises(ValueError, match=says): Reconstruction(**wrong)
    objective = Reconstruction()
    with pytest.raises(ValueError, match="clean is 1"): objective["clean"] = 1
    objective.update(gamma=4, delta=0)
    assert (objective["gamma"], objective["delta"]) == (4, 0)


def test_a_plain_module_gets_the_line_to_write() -> None:
    for call in (reconstruct, reconstruction_inverter, Reconstruction.recipe):
        with pytest.raises(ValueError, match="FrozenClassifier"): call(perceptron())


def test_a_term_of_ones_own_sees_both_parts_and_the_layers(frozen: FrozenClassifier) -> None:
    seen = []
    def loss(view) -> Tensor:
        seen.append([x.shape[:2] for x in (view.clean.logits, view.moved.logits, *view.norms, *view.linear)])
        return view.images.mean()
    objective = Reconstruction(Term("dark", "d", 1.0, "darker images", loss), clean=0.25)
    inverter = reconstruction_inverter(frozen, objective=objective, n_generators=2, amp="off", **SMALL)
    assert inverter.fit(1, progress=False).dark.iloc[0] > 0
    assert seen == [[(2, 6), (2, 18), *[(2, 6)] * 4]]
