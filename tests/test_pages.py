"What tools/ makes of notebooks before they are rendered."
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "tools"))

import entries  # noqa: E402: from tools
import pages  # noqa: E402

TABLE = """<div><style scoped>.dataframe {{}}</style><table border="1" class="dataframe"><thead>
<tr style="text-align: right;"><th></th><th></th><th>AUROC</th><th>FPR95</th></tr>
<tr><th>source</th><th>method</th><th></th><th></th></tr></thead><tbody>
<tr><th rowspan="3">mnist</th><th>energy</th><td>0.929 ± 0.002</td><td>0.264</td></tr>
<tr><th>ours</th><td>0.998 ± 0.000</td><td>{ours}</td></tr><tr><th>real images</th><td>0.999</td><td>0.001</td></tr>
<tr><th rowspan="2">svhn</th><th>energy</th><td>0.800</td><td>1,000</td></tr>
<tr><th>ours</th><td>0.700</td><td>-</td></tr></tbody></table></div>"""


def code(source: str, *outputs: dict, tags: tuple = ()) -> dict:
    return {"cell_type": "code", "metadata": {"tags": list(tags)}, "source": source, "outputs": list(outputs)}


def best(html: str, **arrows: str) -> list[str]:
    from bs4 import BeautifulSoup

    return [cell.get_text() for cell in BeautifulSoup(pages.dress(html, arrows), "html.parser").select(".best")]


def test_the_best_is_found_in_each_block_and_yardsticks_do_not_compete() -> None:
    table = TABLE.format(ours="0.100")
    assert best(table, AUROC="↑") == ["0.998 ± 0.000", "0.800"]
    assert best(table, FPR95="↓") == ["0.100"]  # a single number beats nobody
    assert best(TABLE.format(ours="0.264"), FPR95="↓") == ["0.264", "0.264"]
    assert best(table) == [] and best(table, accuracy="↑") == []


def test_tables_get_one_head_and_numbers_that_hold_together() -> None:
    from bs4 import BeautifulSoup

    page = BeautifulSoup(pages.dress(TABLE.format(ours="0.1"), {"AUROC": "↑"}), "html.parser")
    heads = [cell.get_text() for cell in page.select("thead tr")[0].find_all(["th", "td"])]
    assert len(page.select("thead tr")) == 1 and heads == ["source", "method", "AUROC ↑", "FPR95"]
    assert all("num" in cell["class"] for cell in page.select("tbody td")) and not page.select("style")
    assert page.select_one("thead th:last-child")["class"] == ["num"] and page.select_one(".table-box > table")
    for text in ("0.998 ± 0.000", "-", "1,024", "15 %", "1.2e+04", "7 s", "99.5%", "0.993 [0.991, 0.995]", "-0.2 [-0.3, 0.1]",
                 "99.3% [99.1%, 99.5%]"):
        assert pages.NUMBER.fullmatch(text)
    for text in ("energy", "7 (6 to 8)", "2.0.0 rc"): assert not pages.NUMBER.fullmatch(text)


def test_what_the_tag_says() -> None:
    cell = code("", tags=["finding", "best: AUROC ↑, margin 1% ↑, FPR95 ↓"])
    assert pages.best_of(cell) == {"AUROC": "↑", "margin 1%": "↑", "FPR95": "↓"}
    assert pages.best_of(code("", tags=["best: ↑"])) == {"": "↑"} and pages.best_of(code("")) == {}


def test_the_finding_comes_first_and_nothing_is_lost() -> None:
    picture = {"output_type": "display_data", "data": {"image/png": "iVBO"}}
    printed = {"output_type": "stream", "text": "0.998"}
    drawn = code('#| fig-alt: "Bars: taller is \\"better\\""\nplt.bar(x, y)', printed, picture, tags=["finding"])
    found = pages.markdown("**It works.**") | {"metadata": {"tags": ["finding"]}}
    cells = [{"cell_type": "raw", "metadata": {}, "source": "---\ntitle: T\n---"}, found, code("import x"), drawn]
    shown = pages.fold_code(pages.finding_first(cells))
    sources = [pages.source(cell) for cell in shown]
    assert sources[0].startswith("---") and sources[1:3] == ["::: {#finding}", "**It works.**"]
    assert shown[3]["outputs"] == [picture] and "echo: false" in sources[3] and sources[4] == ":::"
    assert sources[5].startswith("#| code-fold: true") and shown[6]["outputs"] == [printed]
    assert "plt.bar" in sources[6] and drawn["outputs"] == [printed, picture]  # the notebook's own cells are untouched


@pytest.mark.parametrize("line", ["see [`kl_loss`](losses.ipynb)", "[`kl_loss` and others](losses.html#kl_loss)",
                                  "![`kl_loss` over P](kl.png)"])
def test_what_is_a_link_is_not_linked_again(line: str) -> None:
    assert entries.link_names(entries.NbdevLookup(), line) == line
    assert entries.link_names(entries.NbdevLookup(), f"`ce_loss`, {line}").count("](") == line.count("](") + 1


def entry(name: str) -> str:
    symbol = type("Symbol", (), {"__qualname__": name, "__doc__": "What it is."})
    symbol.__qualname__ = name
    return entries.Entry(symbol)._repr_markdown_()


def test_entries_say_what_the_source_says() -> None:
    inverter = entry("Inverter")
    assert "class Inverter(classifier, *, recipe=None, objective=None" in inverter and "<details" not in inverter
    assert "<code>Objective</code>" not in inverter and "Objective</a> | None</code>" in inverter  # a link in a type
    assert "step size of Adam" in inverter and "__main__" not in inverter
    assert "def kl_loss(target_probs, logits)" in entry("kl_loss") and "<details" in entry("kl_loss")  # not of the face
    assert "KL(P" not in entry("kl_loss") and "rows sum to one" in entry("kl_loss")
    assert "[B] int64, the class" in entry("Condition")  # a named tuple
    assert "[D] float64" in entry("Plane")  # a dataclass
    assert "self" not in entries.call("Inverter.save", entries.definitions()["Inverter.save"])
    assert "torch.Generator | None" in entry("label_vector") and "_C" not in entry("label_vector")


def test_every_public_name_has_an_entry() -> None:
    import house

    named = {name for text in house.modules(ROOT).values() for name in house.public_names(text)}
    known = entries.definitions()
    assert named and not {name for name in named if name not in known and not name.isupper()}


def test_reading_takes_time() -> None:
    words = pages.markdown("word " * 660 + "[link](https://a.long/address/with/many/words)")
    assert pages.minutes([words]) == 3
    assert pages.minutes([words, code("x = 1\n" * 40)]) == 5
    assert pages.minutes([words, code("#| code-fold: true\n" + "x = 1\n" * 40)]) == 3
    assert "1 minute to read" in pages.source(pages.say_minutes([words | {"source": "short"}])[1])
