"The studio without a browser: what reaches the inverter, what comes back, and that nothing is left running."
import asyncio
import shlex
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
import yaml
from torch import nn

from netinv import cli, workbench
from netinv.classifier import train_classifier
from netinv.data import load_data
from netinv.explorer import OODExplorer, reach
from netinv.frozen import FrozenClassifier
from netinv.generator import Dropout, Generator
from netinv.inversion import Inverter
from netinv.objective import Inversion, Setting, Term
from netinv.parts import RUN_SETTINGS, Slider, control, nearest_images
from netinv.play import DIGITS, digit_reader
from netinv.reconstruction import Reconstruction
from netinv.samples import accuracy
from netinv.studio import InversionStudio, ReconstructionStudio, replace_in_cell

SMALL = Generator.sized(width=16, latent_dim=8)


@pytest.fixture
def classifier() -> FrozenClassifier:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 4))
    return FrozenClassifier(model, shape=(1, 8, 8), device="cpu")


@pytest.fixture
def studio(classifier: FrozenClassifier) -> Iterator[InversionStudio]:
    studio = InversionStudio(classifier, batch_size=16, generator=SMALL)
    yield studio
    studio.close()


def live(studio: InversionStudio, act: Callable[[], object] = lambda: None, seconds: float = 1.0) -> None:
    "Press Start, act, wait, close."
    async def session():
        studio.toggle()
        await asyncio.sleep(seconds / 2)
        act()
        await asyncio.sleep(seconds / 2)
        task = studio.loop.task
        studio.close()
        await task

    asyncio.run(session())


def workers() -> list[str]:
    return [thread.name for thread in threading.enumerate() if thread.name.startswith("netinv-live")]


def test_training_runs_and_leaves_no_thread(studio: InversionStudio) -> None:
    live(studio)
    assert studio.inverter.step > 3 and "inversion accuracy" in studio.status.value and not workers()


def test_a_moved_slider_reaches_the_next_step(studio: InversionStudio) -> None:
    live(studio, lambda: setattr(studio.controls.controls["delta"], "value", 0.0))
    assert studio.objective["delta"] == 0.0 and "· δ 0" in studio.status.value
    assert studio.inverter.history.delta.isna().iloc[-1]


def test_an_exception_is_shown_and_ends_training(studio: InversionStudio, monkeypatch: pytest.MonkeyPatch) -> None:
    def spoil(*_):
        raise RuntimeError("the <classifier> is out")

    live(studio, lambda: monkeypatch.setattr(studio.objective, "view", spoil, raising=False))
    assert "RuntimeError" in studio.alert.value and "&lt;classifier&gt;" in studio.alert.value
    assert not studio.loop.running and studio.start_button.description == "Start" and not workers()


def test_nan_is_named_and_the_last_good_state_stays(classifier: FrozenClassifier) -> None:
    torn = Term("torn", "torn", 0.0, "not a number", lambda view: view.images.mean() * float("nan"))
    studio = InversionStudio(classifier, objective=Inversion(torn), batch_size=16, generator=SMALL)
    live(studio, lambda: setattr(studio.controls.controls["torn"], "value", 1.0))
    assert "&#x27;torn&#x27; became nan" in studio.alert.value
    assert all(p.isfinite().all() for p in studio.inverter.generators.parameters())


def test_settings_as_yaml_repeat_the_run_headless(studio: InversionStudio, classifier: FrozenClassifier) -> None:
    studio.controls.controls["gamma"].value = 2.0
    studio.controls.controls["dropout"].value = 0.5
    studio.inverter.fit(7, progress=False)
    studio.refresh()
    settings = yaml.safe_load(studio.as_yaml())
    objective = Inversion(**{row.name: settings.pop(row.name) for row in Inversion().rows})
    steps, generator = settings.pop("steps"), Generator.sized(width=16, latent_dim=8, dropout=settings.pop("dropout"))
    headless = Inverter(classifier, objective=objective, generator=generator, batch_size=16, **settings)
    assert headless.fit(steps, progress=False).total.tolist() == studio.inverter.history.total.tolist()


@pytest.mark.parametrize("kind", [InversionStudio, ReconstructionStudio])
def test_yaml_fits_the_parameters_of_its_chapter(kind: type[InversionStudio], classifier: FrozenClassifier) -> None:
    from netinv.runner import find_notebook, notebook_parameters

    studio = kind(classifier, batch_size=16, generator=SMALL)
    studio.inverter.fit(1, progress=False)
    named = set(yaml.safe_load(studio.as_yaml()))
    studio.close()
    assert named <= set(notebook_parameters(find_notebook(studio.chapter)))


def test_undo_takes_back_setting_and_generator(studio: InversionStudio) -> None:
    studio.inverter.fit(3, progress=False)
    before = studio.inverter.snapshot()
    studio.controls.controls["alpha"].value = 0.5
    studio.controls.controls["alpha"].value = 0.25  # one drag, one change
    studio.inverter.fit(2, progress=False)
    studio.undo_button.click()
    assert studio.settings["alpha"] == studio.controls.controls["alpha"].value == studio.objective["alpha"] == 1.0
    assert studio.inverter.step == 3 and len(studio.inverter.history) == 3
    assert all(torch.equal(t, studio.inverter.state()[name]) for name, t in before[1].items())


def test_reset_and_conditioning_start_afresh_and_can_be_undone(studio: InversionStudio) -> None:
    studio.inverter.fit(2, progress=False)
    trained = studio.inverter
    studio.reset_button.click()
    assert studio.inverter is not trained and studio.inverter.step == 0
    studio.controls.controls["conditioning"].value = "label"
    assert studio.inverter.conditioning.name == "label"
    studio.undo_button.click()
    studio.undo_button.click()
    assert studio.inverter is trained and studio.inverter.step == 2
    assert studio.controls.controls["conditioning"].value == "vector-matrix"


def test_dropout_and_temperature_move_while_training(studio: InversionStudio) -> None:
    studio.controls.controls["dropout"].value = 0.5
    studio.controls.controls["temperature"].value = 2.0
    networks = studio.inverter.generators, studio.inverter.averaged
    shares = {m.p for network in networks for m in network.modules() if isinstance(m, Dropout)}
    assert shares == {0.5} and studio.inverter.conditioning.temperature == 2.0


@pytest.mark.parametrize("bad", [{"dropout": 1.0}, {"dropout": -0.1}, {"temperature": 0.0}, {"lr": -1.0}])
def test_adjust_refuses_what_makes_no_sense(studio: InversionStudio, bad: dict) -> None:
    with pytest.raises(ValueError, match=f"{next(iter(bad))} is .*: expected"): studio.inverter.adjust(**bad)


def test_one_class_only(studio: InversionStudio) -> None:
    studio.only.value = 2
    assert set(studio.frame.samples.labels.tolist()) == {2} and set(studio.grid.names) == {"2"}
    studio.grid.selected = 3
    assert "asked for 2" in studio.grid.details


def test_two_settings_side_by_side(studio: InversionStudio) -> None:
    studio.inverter.fit(2, progress=False)
    studio.refresh()
    studio.keep_buttons[0].click()
    studio.controls.controls["beta"].value = 1.0
    studio.keep_buttons[1].click()
    assert "B − A" in studio.difference.value and "β 8 → 1" in studio.difference.value
    assert "α" not in studio.difference.value
    for side in "AB":
        studio.view.value = side
        assert studio.grid.png == studio.kept[side][1].png and studio.grid.names == ["0", "1", "2", "3"]
        assert studio.grid.alt.startswith(f"kept as {side}")


def test_a_cell_that_is_run_again_closes_its_first_studio(classifier: FrozenClassifier) -> None:
    first, second = (InversionStudio(classifier, batch_size=16, generator=SMALL) for _ in range(2))
    replace_in_cell(first, "a cell")
    replace_in_cell(second, "a cell")
    assert first.comm is None and second.comm is not None and not first.loop.running
    second.close()


def test_start_without_an_event_loop_says_so(studio: InversionStudio) -> None:
    with pytest.raises(RuntimeError, match="event loop"): studio.loop.start()


def test_nearest_image_is_the_nearest() -> None:
    images = torch.randint(0, 256, (50, 3, 5, 4), dtype=torch.uint8)
    index, correlation = nearest_images(images[[17, 3]].float() / 255, images)
    assert index.tolist() == [17, 3] and correlation.min() > 0.999


def test_the_explorer_counts_what_its_threshold_does() -> None:
    data = load_data("digits", device="cpu")
    torch.manual_seed(0)
    model = nn.Sequential(nn.Flatten(), nn.Linear(28 * 28, 10))
    classifier = FrozenClassifier(model, shape=data.shape, device="cpu")
    noise = torch.randint(0, 256, (40, 1, 28, 28), dtype=torch.uint8)
    explorer = OODExplorer(classifier, data, noise, names=("digits", "noise"))
    inside, outside = explorer.scores["classifier"]
    for threshold in (-20.0, 0.0, 1.3, 20.0):
        explorer.threshold.value = threshold
        assert explorer.grids[0].names == [f"digits: {int((inside < threshold).sum()):,} wrong"]
        assert explorer.grids[1].names == [f"noise: {int((outside >= threshold).sum()):,} wrong"]
    explorer.close()


def test_a_term_of_the_readers_own_has_its_slider(classifier: FrozenClassifier) -> None:
    dark = Term("darkness", "dark", 3.0, "mean pixel: darker images", lambda view: view.images.mean())
    studio = InversionStudio(classifier, objective=Inversion(dark), batch_size=16, generator=SMALL)
    slider = studio.controls.controls["darkness"]
    assert (slider.description, slider.value, slider.tooltip) == ("dark", 3.0, "darkness: mean pixel: darker images")
    live(studio, lambda: setattr(slider, "value", 0.25))
    assert studio.objective["darkness"] == 0.25 and "dark 0.25" in studio.status.value
    assert studio.inverter.history.darkness.notna().all() and yaml.safe_load(studio.as_yaml())["darkness"] == 0.25
    assert "dark" in studio.plot.lines


def test_a_term_that_was_never_on_has_no_curve(studio: InversionStudio) -> None:
    studio.controls.controls["gamma_pix"].value = 0.0
    studio.inverter.fit(2, progress=False)
    studio.refresh()
    assert set(studio.plot.lines) == {"α", "β", "γ", "δ", "γ_class", "γ_feat", "accuracy"}


def test_a_setting_with_a_limit_stays_below_it() -> None:
    slider = control(Setting("share", "share", 0.1, "a share", below=0.2), 0.1)
    assert slider.steps == [0.0, 0.01, 0.02, 0.05, 0.1, 0.15]


def test_a_row_with_the_name_of_a_run_s_setting_is_refused(classifier: FrozenClassifier) -> None:
    seed = Term("seed", "s", 1.0, "anything", lambda view: view.images.mean())
    with pytest.raises(ValueError, match="the objective has a row 'seed', which is a setting of every run"):
        InversionStudio(classifier, objective=Inversion(seed))


def test_a_plain_module_must_be_frozen_first() -> None:
    with pytest.raises(ValueError, match="FrozenClassifier"): InversionStudio(nn.Flatten())


class Undropped(nn.Module):
    "The smallest generator there is, which drops nothing."
    def __init__(self, shape: tuple[int, int, int], conditioning):
        super().__init__()
        self.shape, self.layer = shape, nn.Linear(64, shape[0] * shape[1] * shape[2])

    def forward(self, z, condition, *_, **__):
        return self.layer(z).sigmoid().unflatten(1, self.shape)


def test_a_generator_without_dropout_has_no_slider_for_it(classifier: FrozenClassifier) -> None:
    studio = InversionStudio(classifier, batch_size=16, generator=Undropped)
    assert set(studio.controls.controls) == {row.name for row in (*Inversion().rows, *RUN_SETTINGS)} - {"dropout"}
    studio.controls.controls["temperature"].value = 1.0
    studio.inverter.fit(2, progress=False)
    studio.undo_button.click()
    assert "dropout" not in studio.as_yaml() and studio.inverter.conditioning.temperature == 0.15
    studio.close()
    with pytest.raises(ValueError, match="dropout is 0.5, and the generator has no netinv.generator.Dropout"):
        InversionStudio(classifier, generator=Undropped, dropout=0.5)


def test_a_studio_begins_with_the_dropout_of_its_generator(classifier: FrozenClassifier) -> None:
    for given, generator, value in ((None, 0.4, 0.4), (0.1, 0.4, 0.1)):
        sized = Generator.sized(width=16, latent_dim=8, dropout=generator)
        studio = InversionStudio(classifier, generator=sized, dropout=given)
        assert studio.settings["dropout"] == studio.controls.controls["dropout"].value == value
        studio.close()


@pytest.fixture
def rebuilt(classifier: FrozenClassifier) -> Iterator[ReconstructionStudio]:
    studio = ReconstructionStudio(classifier, batch_size=16, generator=SMALL)
    yield studio
    studio.close()


def test_every_term_of_a_reconstruction_has_a_slider(rebuilt: ReconstructionStudio) -> None:
    names = set(rebuilt.controls.controls)
    assert {row.name for row in Reconstruction().rows} <= names
    live(rebuilt, lambda: setattr(rebuilt.controls.controls["eta_grad"], "value", 0.5))
    history = rebuilt.inverter.history
    assert history.eta_grad.isna().iloc[0] and history.eta_grad.iloc[-1] > 0 and not workers()


def test_a_reset_reconstruction_still_has_its_traces(rebuilt: ReconstructionStudio) -> None:
    rebuilt.inverter.fit(2, progress=False)
    rebuilt.reset_button.click()
    rebuilt.inverter.fit(2, progress=False)
    assert (rebuilt.inverter.history.eta_span > 0).all()
    rebuilt.undo_button.click()
    assert rebuilt.inverter.step == 2 and (rebuilt.inverter.fit(1, progress=False).eta_span > 0).all()


def test_the_studio_builds_its_generators_as_the_recipe_does(classifier: FrozenClassifier) -> None:
    inverter = Inverter(classifier, objective=Reconstruction.recipe(classifier))
    studio = ReconstructionStudio(classifier)
    assert studio.inverter.generators[0].smooth == inverter.generators[0].smooth
    assert studio.inverter.generators[0].stretch == inverter.generators[0].stretch
    studio.close()


def test_a_change_after_a_pause_waits_for_the_last_piece_of_work(studio: InversionStudio) -> None:
    at_work, hand = threading.Event(), threading.Event()
    wanted = studio.settings["beta"] + 1

    async def act() -> None:
        fit = studio.inverter.fit
        def slowly(*args, **kwargs):
            at_work.set()
            hand.wait(5)
            return fit(*args, **kwargs)
        studio.inverter.fit = slowly
        studio.loop.start()
        while not at_work.is_set(): await asyncio.sleep(0.01)
        studio.loop.stop()
        studio.do(lambda: studio.set("beta", wanted))
        early, told = studio.settings["beta"], studio.state.value
        assert "pausing after this step · waits for the end of the step: a change" in told
        studio.controls.controls["gamma"].value = 2.0
        assert "a change, γ 2" in studio.state.value
        hand.set()
        await studio.loop.task
        assert early != wanted and studio.settings["beta"] == wanted and not studio.loop.busy
        assert "waits" not in studio.state.value and "paused" in studio.state.value

    asyncio.run(act())


def test_the_classifier_that_comes_along_is_small_and_good() -> None:
    data = load_data("digits", device="cpu")
    assert DIGITS.stat().st_size < 300_000
    assert accuracy(FrozenClassifier(digit_reader(), shape=data.shape, device="cpu"), data.test) > 0.98


def test_a_studio_starts_when_it_is_seen_and_rests_when_nobody_watches(classifier: FrozenClassifier) -> None:
    studio = InversionStudio(classifier, batch_size=16, generator=SMALL, start=True)

    async def session() -> None:
        assert not studio.loop.running
        studio.presence.hear("a tab", "seen")
        assert studio.loop.running and studio.start_button.description == "Pause"
        studio.presence.hear("another tab", "hidden")
        studio.presence.hear("a tab", "gone")
        for _ in range(149): studio.tick()  # a tab in the background speaks once a minute
        assert studio.loop.running
        studio.tick()
        assert not studio.loop.running and "nobody was watching" in studio.state.value
        await studio.loop.task
        studio.presence.hear("a tab opened again", "seen")
        assert studio.loop.running and "nobody" not in studio.state.value
        studio.start_button.click()
        studio.presence.hear("a tab opened again", "gone")
        studio.presence.hear("yet another", "seen")
        assert not studio.loop.running, "what somebody paused stays so"
        await studio.loop.task

    asyncio.run(session())
    studio.close()


def test_a_run_that_nobody_ever_watched_goes_on(studio: InversionStudio) -> None:
    live(studio, lambda: [studio.tick() for _ in range(500)])
    assert studio.inverter.step > 3


def test_choosing_a_class_cuts_training_short_and_costs_no_step(studio: InversionStudio) -> None:
    studio.inverter.fit(3, progress=False)
    studio.loop.stopping = False  # as while it trains
    studio.only.value = 2
    assert "waits for the end of the step: class 2" in studio.state.value
    frame = studio.work()
    assert frame.step == 3 and set(frame.names) == {"2"}
    studio.controls.controls["beta"].value = 1.0
    assert studio.work().step == 4, "a setting is seen after one step"
    studio.loop.stopping = True


@pytest.mark.parametrize("cost", [0.001, 0.05, 0.2, 0.6, 3.0])
def test_a_picture_comes_every_second(studio: InversionStudio, monkeypatch: pytest.MonkeyPatch, cost: float) -> None:
    times = iter(cost * k for k in range(100))
    monkeypatch.setattr(workbench, "time", SimpleNamespace(perf_counter=lambda: next(times)))
    studio.look()
    assert studio.interval >= 0.25 and (studio.interval + cost <= 1.0001 or studio.interval == 0.25)
    assert studio.interval <= max(0.25, 8.001 * cost)


def test_a_slow_step_is_counted(studio: InversionStudio) -> None:
    studio.loop.stopping, studio.shown_at = False, studio.shown_at - 7
    studio.tick()
    assert "step 1, 7 s" in studio.state.value
    studio.loop.stopping = True


def at(studio: InversionStudio, steps: int, **settings: float) -> torch.Tensor:
    "The images of a studio after some steps with these settings."
    for name, value in settings.items(): studio.controls.controls[name].value = value
    studio.inverter.fit(steps, progress=False)
    studio.refresh()
    return studio.frame.samples.images


@pytest.mark.parametrize("kind", [InversionStudio, ReconstructionStudio])
def test_copied_code_gives_the_same_images(kind: type[InversionStudio], classifier: FrozenClassifier) -> None:
    studio = kind(classifier, batch_size=16, generator=SMALL, columns=4)
    images = at(studio, 3, beta=2.0, gamma_class=0.0, dropout=0.5, temperature=0.5, conditioning="vector", seed=5)
    studio.copying.form.value = "Python"
    names = {"classifier": classifier}
    exec(studio.copying.copy.text, names)
    assert torch.equal(names["samples"].images, images)
    studio.close()


def test_a_copied_command_gives_the_same_images(tmp_path: Path) -> None:
    classifier = FrozenClassifier(digit_reader(), shape=(1, 28, 28), device="cpu")
    studio = InversionStudio(classifier, model="netinv.play:digit_reader", batch_size=16, columns=2)
    images = at(studio, 3, beta=2.0, gamma_class=0.0, angle=0.0, temperature=0.5, conditioning="vector", seed=5)
    program, *arguments = shlex.split(studio.copying.copy.text.replace("\\\n", ""), comments=True)
    assert program == "netinv" and cli.main([*arguments, "--device", "cpu", "--out", str(tmp_path)]) == 0
    run = Inverter.load(tmp_path, classifier)
    assert torch.equal(run.sample(20, labels=studio.frame.samples.labels, seed=5).images, images)
    studio.close()


def test_copied_parameters_give_the_same_images(tmp_path: Path) -> None:
    "The cells of the chapter that lead to its first run, with what was copied."
    from netinv.runner import find_notebook, load_profile
    from papermill.iorw import load_notebook_node
    from papermill.parameterize import parameterize_notebook

    chapter = find_notebook("inversion", Path(__file__).parent.parent)
    data = load_data("digits", train_size=200, seed=3)
    model = train_classifier(data, epochs=3, seed=3, progress=False)
    studio = InversionStudio(FrozenClassifier(model, shape=data.shape), data=data, seed=3, columns=2)
    images = at(studio, 2, beta=2.0, angle=0.0, dropout=0.5)
    studio.copying.form.value = "parameters"
    (profile := tmp_path / "copied.yaml").write_text(studio.copying.copy.text, encoding="utf-8")
    notebook = parameterize_notebook(load_notebook_node(str(chapter)), load_profile(profile, chapter))
    names: dict = {}
    exec("from netinv import *", names)
    starts = "dataset = ", "# Parameters", "source = ", "objective = ", "#| hide\nimport", "history = inverter.fit"
    wanted = [cell for cell in notebook.cells if cell.cell_type == "code" and "#| export" not in cell.source
              and any(line in cell.source for line in starts)]
    for cell in wanted:
        exec(cell.source, names)
        if "inverter" in names and names["inverter"].step: break
    assert torch.equal(names["inverter"].sample(20, labels=studio.frame.samples.labels, seed=3).images, images)
    studio.close()


def test_a_copy_says_what_it_cannot_repeat(studio: InversionStudio, classifier: FrozenClassifier) -> None:
    assert "has no name" in studio.as_command()
    scaled = FrozenClassifier(classifier.model, shape=(1, 8, 8), preprocess=lambda x: 2 * x - 1, device="cpu")
    named = InversionStudio(scaled, model="mine:cnn", batch_size=16, generator=SMALL)
    assert "preprocess is not in this line" in named.as_command()
    named.close()
    at(studio, 2)
    at(studio, 1, beta=2.0)
    assert studio.as_python().startswith("# settings were moved until step 2")
    studio.undo_button.click()
    assert studio.as_python().startswith("from netinv")
    rebuilt = ReconstructionStudio(classifier, model="mine:cnn", batch_size=16, generator=SMALL)
    assert rebuilt.as_command().startswith("# netinv invert has the terms of Inversion alone")
    rebuilt.close()


def test_pairs_of_a_reconstruction_and_its_nearest_real_image() -> None:
    data = load_data("digits", train_size=50, device="cpu")
    classifier = FrozenClassifier(digit_reader(), shape=data.shape, device="cpu")
    studio = ReconstructionStudio(classifier, data=data, batch_size=16, columns=4)
    images, pairs = studio.frame.samples.images, studio.tiles(studio.frame.samples.images)
    index, _ = nearest_images(images, data.train.images)
    assert studio.grid.columns == 2 and len(images) == 20
    assert torch.equal(pairs[..., :28], images) and torch.equal(pairs[..., 29:] * 255, data.train.images[index].float())
    studio.close()


def test_a_value_between_two_steps_becomes_a_step() -> None:
    slider = Slider(value=1.0, steps=[0.0, 1.0, 2.0], description="α")
    slider.value = 1.5
    assert slider.steps == [0.0, 1.0, 1.5, 2.0] and repr(slider) == "Slider(α = 1.5)"


def test_sliders_are_named_as_curves_and_grouped(rebuilt: ReconstructionStudio) -> None:
    at(rebuilt, 2)
    named = {control.description for control in rebuilt.controls.controls.values()}
    assert set(rebuilt.plot.lines) - {"accuracy"} <= named
    folds = rebuilt.controls.children
    assert [fold.opened for fold in folds] == [True, *[False] * (len(folds) - 1)]
    assert sum(len(fold.inside.children) for fold in folds) == len(rebuilt.controls.controls)


@pytest.mark.parametrize("size", [0.01, 1.0, 300.0])
def test_the_axis_of_the_explorer_fits_the_scores(size: float) -> None:
    low, high = reach([size * torch.linspace(1, 2, 1000), torch.tensor([-size, float("-inf")])])
    assert -1.3 * size < low < -size and 2 * size < high < 2.3 * size
