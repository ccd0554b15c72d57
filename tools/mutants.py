"""Would the tests notice? Break the method in one place at a time, and see whether a test fails.

    python tools/mutants.py                  # every mutant; a few minutes
    python tools/mutants.py --list           # what they break, and which tests should notice
    python tools/mutants.py --only gamma EMA   # those whose names contain a word
    python tools/mutants.py --fast           # the first and the last

A mutant is the package with one piece of text replaced, in a folder of its own. It is killed where one of the named
tests fails, and survives where all pass. All must be killed: a survivor is a part of the method that nobody tests.
Whoever changes the text of a mutant here finds out at once, since a text that is not there exactly once is an error."""
import argparse
import os
import shutil
import sys
import time
from importlib import import_module
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent


class Mutant(NamedTuple):
    "One thing done wrong."
    name: str    # what is wrong
    room: str    # the module
    old: str     # stands there exactly once
    new: str
    tests: str   # a file in tests/ -k a word in the names of tests


METHOD = "test_method.py"
MUTANTS = [
    # What is asked for
    Mutant("P without the temperature", "conditioning", "(vector / self.temperature + barred)", "(vector + barred)",
           f"{METHOD} -k shown"),
    Mutant("labels are not the argmax of v", "conditioning",
           "return v.scatter(1, top.indices, v.gather(1, asked)).scatter(1, asked, top.values)", "return v",
           "test_conditioning.py -k largest_entry"),
    Mutant("softmax shown instead of v", "conditioning", 'shown = v if self.shows == "vector" else target_probs',
           "shown = target_probs", f"{METHOD} -k shown"),
    Mutant("no matrix given", "conditioning", "patterns[labels] if self.has_matrix",
           "0 * patterns[labels] if self.has_matrix", f"{METHOD} -k shown"),
    # The generator
    Mutant("the matrix is ignored", "generator", "matrix.to(x.dtype) * x.shape[1]**0.5", "0 * matrix.to(x.dtype)",
           f"{METHOD} -k heard"),
    Mutant("the vector is ignored", "generator", "[condition.vector])], 1)", "[0 * condition.vector])], 1)",
           f"{METHOD} -k heard"),
    Mutant("the latent is ignored", "generator", "torch.cat([z, *told", "torch.cat([0 * z, *told",
           f"{METHOD} -k heard"),
    Mutant("dropout off in training", "loop", "self.at_once = len(made) > 1",
           "[one.use_dropout(False) for one in made]; self.at_once = len(made) > 1", f"{METHOD} -k dropout"),
    Mutant("batch norm in training mode while sampling", "loop", "use_buffers=True).eval()", "use_buffers=True)",
           f"{METHOD} -k at_rest"),
    Mutant("EMA not used for sampling", "loop", "generator, n = self.averaged.module[k], len(labels)",
           "generator, n = self.generators[k], len(labels)", f"{METHOD} -k mean"),
    Mutant("EMA runs backwards", "faster", "zip(*numbers)), 1 - keep)", "zip(*numbers)), keep)", f"{METHOD} -k mean"),
    # The classifier
    Mutant("the classifier is not frozen: batch norm goes on learning", "copies", "frozen.eval()", "frozen.train()",
           f"{METHOD} -k frozen"),
    Mutant("features without gradients", "frozen", "self.tap.take().float()", "self.tap.take().detach().float()",
           "test_frozen.py -k features_have_gradients"),
    Mutant("normalised twice", "frozen", "self.preprocess(images) if self.preprocess",
           "self.preprocess(self.preprocess(images)) if self.preprocess", "test_frozen.py -k test_preprocess"),
    Mutant("images are shown unmoved", "objective", "torch.cat([x[:n], perturb(x[n:], rng)])", "x",
           f"{METHOD} -k moved"),
    # Losses
    Mutant("P and Q swapped", "losses",
           "p, log_q = full_precision(target_probs), F.log_softmax(full_precision(logits), dim=-1)",
           "p, log_q = full_precision(logits).softmax(-1), full_precision(target_probs).clamp(min=1e-30).log()",
           "test_losses.py -k kl_of_two_classes"),
    Mutant("sign of KL", "losses", "return (p * log_ratio)", "return -(p * log_ratio)",
           "test_losses.py -k kl_of_two_classes"),
    Mutant("sign of CE", "losses", "return F.cross_entropy(", "return -F.cross_entropy(", "test_losses.py -k uniform"),
    Mutant("sign of the cosine", "losses", "return ((all_pairs - with_itself)", "return -((all_pairs - with_itself)",
           "test_losses.py -k at_an_angle"),
    Mutant("sign of orthogonality", "losses", "return off.square()", "return -off.square()",
           "test_losses.py -k at_an_angle"),
    Mutant("sign of the cosine within classes", "losses", "return ((gram(with_share(f, share)) * same)",
           "return -((gram(with_share(f, share)) * same)", "test_goal.py -k class_cosine_against"),
    Mutant("the cosine within classes is over all labels", "losses",
           "same = labels[:, :, None] == labels[:, None, :]",
           "same = torch.ones_like(labels[:, :, None] == labels[:, None, :])",
           "test_goal.py -k class_cosine_against"),
    Mutant("sign of variation", "losses", "return x.diff(dim=-2)", "return -x.diff(dim=-2)",
           "test_losses.py -k variation"),
    Mutant("sign of pixels", "losses", "return (x - x.clamp(0, 1))", "return -(x - x.clamp(0, 1))",
           "test_losses.py -k pixel_loss"),
    Mutant("sign of the gradient norm", "losses", "return sum(full_precision(g)", "return -sum(full_precision(g)",
           "test_losses.py -k gradient_norm"),
    # The objective
    Mutant("gamma counts nothing", "objective", "lambda v: cosine_loss(v.out.features, v.share)",
           "lambda v: 0 * cosine_loss(v.out.features, v.share)", f"{METHOD} -k terms"),
    Mutant("delta of the images instead of the features", "objective", "lambda v: ortho_loss(v.out.features, v.share)",
           "lambda v: ortho_loss(v.images.flatten(2), v.share)", f"{METHOD} -k terms"),
    Mutant("weights are ignored", "objective", "sum(self._numbers[name] * term for", "sum(term for",
           f"{METHOD} -k weigh"),
    Mutant("logits in no unit", "objective", "logits=out.logits / (self[\"unit\"] or self.found)", "logits=out.logits",
           f"{METHOD} -k terms"),
    Mutant("classes that are not met take full part", "loop",
           "None if share is None else share.gather(1, condition.labels)",
           "None", f"{METHOD} -k part"),
    Mutant("classes that lag are asked for less", "objective", "return 1 + lag * (1 - met) if lag",
           "return 1 / (1 + lag * (1 - met)) if lag", f"{METHOD} -k lag"),
    Mutant("steps go uphill", "loop", "(len(self.generators) * total).backward",
           "(-len(self.generators) * total).backward",
           f"{METHOD} -k downhill"),
    # The garbage class
    Mutant("inverted garbage is skipped", "ood", "source.found = torch.cat([source.found, new])", "new",
           f"{METHOD} -k garbage"),
    Mutant("garbage has the label of a class", "ood", "torch.full_like(labels, self.n_classes)",
           "torch.full_like(labels, self.n_classes - 1)", f"{METHOD} -k garbage"),
    Mutant("garbage weighs as much as real images", "ood", "weight * F.cross_entropy(fake", "F.cross_entropy(fake",
           f"{METHOD} -k garbage"),
    Mutant("inversion may ask for garbage", "ood", "classes=list(range(classifier.n_classes - 1))",
           "classes=list(range(classifier.n_classes))", f"{METHOD} -k garbage"),
    # Reconstruction
    Mutant("statistics of perturbed images count", "reconstruction", "[:, : n or None]", "[:, :]",
           "test_reconstruction.py -k clean_share_is_seen"),
    Mutant("the worst candidates are kept", "reconstruction", "scores.argsort(descending=True",
           "scores.argsort(descending=False",
           "test_reconstruction.py -k best_of"),
    Mutant("sign of the span", "reconstruction", "losses = [-span_share(x, directions)",
           "losses = [span_share(x, directions)",
           f"{METHOD} -k span"),
]


def broken(mutant: Mutant) -> str:
    "The text of the broken module; a `ValueError` where the text to replace is not there exactly once."
    text = (ROOT / "netinv" / f"{mutant.room}.py").read_text(encoding="utf-8")
    if (n := text.count(mutant.old)) == 1: return text.replace(mutant.old, mutant.new)
    raise ValueError(f"mutant {mutant.name!r}: its text is {n} times in netinv/{mutant.room}.py, expected once: say in "
                     f"tools/mutants.py what stands there now instead of {mutant.old!r}")


def preload() -> None:
    "Import what tests need and no mutant touches, once for all of them."
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    os.environ["TORCH_DEVICE_BACKEND_AUTOLOAD"] = "0"  # PyTorch would import netinv itself
    for module in ("torch", "pandas", "sklearn.metrics", "scipy.stats", "hypothesis", "matplotlib.pyplot", "pytest"):
        import_module(module)
    if "netinv" in sys.modules: raise RuntimeError("netinv is loaded already: no mutant would be")


def fails(folder: Path, *tests: str) -> bool:
    "Whether a test fails with the package in `folder`; a `RuntimeError` where the tests cannot be run."
    import pytest

    files = dict.fromkeys(str(ROOT / "tests" / test.split()[0]) for test in tests)
    words = dict.fromkeys(test.split()[-1] for test in tests)
    child = os.fork()  # with all that is loaded, and none of what follows is seen by the others
    if not child:
        with open(folder / "output", "w") as output:
            os.dup2(output.fileno(), 1)
            os.dup2(output.fileno(), 2)
        sys.path.insert(0, str(folder))
        try: os._exit(pytest.main(["-q", "-x", "-p", "no:cacheprovider", "-k", " or ".join(words), *files]))
        finally: os._exit(70)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code not in (0, 1): raise RuntimeError(f"{', '.join(tests)} cannot be run (exit code {code})")
    return code == 1


def copy_of_package(folder: Path) -> Path:
    return shutil.copytree(ROOT / "netinv", folder / "netinv", ignore=shutil.ignore_patterns("__pycache__"))


def killed(mutant: Mutant) -> bool:
    "Whether the tests notice; a `ValueError` for a text that is not there."
    with TemporaryDirectory() as folder:
        (copy_of_package(Path(folder)) / f"{mutant.room}.py").write_text(broken(mutant), encoding="utf-8")
        return fails(Path(folder), mutant.tests)


def chosen(only: list[str] | None, fast: bool) -> list[Mutant]:
    "The mutants that were asked for; a `ValueError` for a word that no name contains."
    if fast: return [MUTANTS[0], MUTANTS[-1]]
    for word in only or []:
        if not any(word in mutant.name for mutant in MUTANTS):
            raise ValueError(f"no mutant is called {word!r}: python tools/mutants.py --list shows all")
    return [mutant for mutant in MUTANTS if not only or any(word in mutant.name for word in only)]


def healthy(mutants: list[Mutant]) -> bool:
    "Whether all tests pass with the package as it is."
    with TemporaryDirectory() as folder:
        copy_of_package(Path(folder))
        return not fails(Path(folder), *(mutant.tests for mutant in mutants))


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--list", action="store_true", help="show the mutants, run nothing")
    parser.add_argument("--only", nargs="+", metavar="WORD", help="mutants whose names contain a word")
    parser.add_argument("--fast", action="store_true", help="the first and the last")
    args = parser.parse_args(argv)
    try:
        mutants = chosen(args.only, args.fast)
        for mutant in mutants: broken(mutant)
    except ValueError as e: parser.error(str(e))
    if args.list:
        for mutant in mutants: print(f"{mutant.name:62} {mutant.room:14} {mutant.tests}")
        return 0
    preload()
    if not healthy(mutants):
        print("the tests fail without any mutant: mend them first", file=sys.stderr)
        return 2
    began, survivors = time.perf_counter(), 0
    for mutant in mutants:
        dead = killed(mutant)
        survivors += not dead
        print(f"{mutant.name:62} {mutant.room:14} {'killed' if dead else 'SURVIVED'}", flush=True)
    seconds = time.perf_counter() - began
    print(f"{len(mutants) - survivors} of {len(mutants)} killed, in {seconds:.0f} s")
    return bool(survivors)


if __name__ == "__main__":
    sys.exit(main())
