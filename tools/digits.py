"""Make netinv/static/digits.safetensors, the small classifier of handwritten digits that comes with netinv.

    python tools/digits.py

scikit-learn's digits are all it learns from, so nothing is downloaded. It takes about half a minute."""
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from netinv import FrozenClassifier, accuracy, load_data, save_weights, train_classifier  # noqa: E402
from netinv.play import DIGITS, small_cnn  # noqa: E402


def main() -> None:
    data = load_data("digits", device="cpu")
    model = train_classifier(data, model=small_cnn(), epochs=30, augment="shift", device="cpu", amp="off")
    classifier = FrozenClassifier(model, shape=data.shape, device="cpu")
    save_weights(model, DIGITS)
    print(f"{DIGITS.relative_to(ROOT)}: {DIGITS.stat().st_size / 1000:.0f} kB, test accuracy "
          f"{accuracy(classifier, data.test):.1%}")


if __name__ == "__main__":
    main()
