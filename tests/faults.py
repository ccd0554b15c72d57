"What tests of damaged files and of error messages share."
import re
from collections.abc import Iterator

import numpy as np


def one_sentence(error: BaseException, *parts: object) -> None:
    "Assert that a message is a single sentence that a person can use."
    text = str(error)
    assert text and "\n" not in text and len(text) < 700, text
    assert not re.search(r"\. [A-Z]", text) and not text.endswith("."), text
    for part in parts: assert str(part) in text, text


def damaged(blob: bytes, n: int, seed: int) -> Iterator[bytes]:
    "n damaged copies of some bytes: cut short, and with one bit flipped, in turn."
    rng = np.random.default_rng(seed)
    for i in range(n):
        place = int(rng.integers(len(blob)))
        if i % 2: yield blob[:place]
        else: yield blob[:place] + bytes([blob[place] ^ (1 << int(rng.integers(8)))]) + blob[place + 1 :]
