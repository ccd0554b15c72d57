"Clusters: single clouds of any shape are one, clusters of known number are counted, and the parts against closed forms."
import numpy as np
import pytest
import torch
from scipy.stats import binom

from netinv.clusters import LEAST_VALLEY, cluster_table, count_clusters, excess_mass, left_out
from netinv.samples import Samples

SHAPES = {
    "normal": lambda rng, n, d: rng.normal(size=(n, d)),
    "exponential": lambda rng, n, d: rng.exponential(size=(n, d)),
    "log-normal": lambda rng, n, d: np.exp(rng.normal(size=(n, d))),
    "t": lambda rng, n, d: rng.standard_t(3, size=(n, d)),
    "uniform": lambda rng, n, d: rng.random((n, d)),
    "mixed": lambda rng, n, d: rng.exponential(size=(n, d)) @ rng.normal(size=(d, d)),
    "correlated": lambda rng, n, d: np.exp(rng.normal(size=(n, d)) @ (np.eye(d) + 0.4)),
}  # fmt: skip


def counts(clouds) -> list[int]:
    return [count_clusters(torch.from_numpy(x)) for x in clouds]


@pytest.mark.parametrize("shape", SHAPES)
def test_single_clouds_of_any_shape_are_called_several_in_at_most_one_of_twenty(shape: str):
    "Sixty clouds; were the true rate 5 %, more than `allowed` would come once in a thousand times."
    rng, allowed = np.random.default_rng(7), int(binom.ppf(0.999, 60, 0.05))
    found = counts(SHAPES[shape](rng, n, d) for n, d in ((150, 2), (150, 5), (150, 10), (60, 4)) for _ in range(15))
    assert sum(k > 1 for k in found) <= allowed


def test_of_all_single_clouds_together_far_fewer_are_called_several():
    "Most shapes are safer than the uniform one, so that the rate over all shapes is well below 5 %."
    rng = np.random.default_rng(8)
    found = counts(shape(rng, 150, d) for shape in SHAPES.values() for d in (3, 8) for _ in range(10))
    assert np.mean([k > 1 for k in found]) <= 0.05


@pytest.mark.parametrize("shape", ["normal", "exponential"])
@pytest.mark.parametrize("k, d, apart", [(2, 4, 5), (2, 40, 6), (3, 4, 6), (4, 8, 8)])
def test_clusters_of_known_number_are_counted(shape: str, k: int, d: int, apart: float):
    "Centres `apart` standard deviations from each other, in features far from the origin."
    rng, members = np.random.default_rng(d), np.arange(200) % k
    def cloud() -> np.ndarray: return SHAPES[shape](rng, 200, d) + apart / 2**0.5 * np.eye(d)[members] + 25
    assert sum(found == k for found in counts(cloud() for _ in range(10))) >= 9


def test_a_class_that_has_collapsed_is_one_cluster():
    assert count_clusters(torch.ones(30, 4)) == count_clusters(torch.zeros(30, 1)) == 1
    assert count_clusters(torch.arange(40.0)[:, None] * torch.ones(5)) == 1  # all on one line
    assert count_clusters((torch.arange(40) % 2)[:, None] * torch.ones(5)) == 2  # at two points


def test_the_count_does_not_depend_on_scale_place_and_order():
    rng = np.random.default_rng(1)
    x = torch.from_numpy(rng.normal(size=(90, 5)) + 5 * np.eye(5)[np.arange(90) % 3])
    assert count_clusters(x) == count_clusters(1e-6 * x + 3) == count_clusters(x.flip(0).float()) == count_clusters(x.numpy()) == 3


def test_two_points_of_mass_are_as_far_from_one_hump_as_can_be():
    for share in (0.5, 0.3, 0.2):
        x = (np.arange(100) < 100 * share) * 1.0
        assert excess_mass(x[None])[0] == pytest.approx(share, abs=0.02)  # two intervals hold the smaller point more
    assert excess_mass(np.zeros((1, 50)))[0] == pytest.approx(0, abs=1e-9)


def test_fewer_than_one_in_twenty_uniform_samples_has_a_valley():
    rng = np.random.default_rng(3)
    for n in (25, 100, 300):
        beyond = (excess_mass(rng.random((500, n))) * n**0.5 > LEAST_VALLEY).sum()
        assert beyond <= binom.ppf(0.999, 500, 0.05)


def test_a_point_lies_where_a_fit_without_it_says():
    rng = np.random.default_rng(2)
    z, on = rng.normal(size=(25, 3)), (np.arange(25) < 10) * 1.0
    for i in (0, 11, 24):
        basis = np.c_[np.ones(24), np.delete(z, i, 0)]
        w = np.linalg.lstsq(basis, np.delete(on, i), rcond=None)[0]
        assert left_out(z, on)[i] == pytest.approx(np.r_[1, z[i]] @ w)


def test_classes_with_few_images_are_left_out_of_the_count():
    x, labels = torch.randn(70, 6), torch.arange(70) % 2
    labels[:5] = 2
    table = cluster_table({"some": Samples(torch.rand(70, 1, 2, 3), labels, torch.rand(70, 3), x)})
    assert list(table.index) == [0, 1] and list(table.columns) == ["some"] and (table == 1).all().all()


@pytest.mark.parametrize("call, says", [
    (lambda: count_clusters(torch.randn(19, 3)), "19 samples are too few: give at least 20"),
    (lambda: count_clusters(torch.full((30, 2), torch.nan)), "30 of 30 rows of features hold NaN"),
    (lambda: cluster_table({"real": torch.ones(30, 2)}), r"sets\['real'\] is a Tensor: give Samples"),
    (lambda: cluster_table({}), "sets is empty: give samples by name"),
])  # fmt: skip
def test_what_cannot_be_counted(call, says: str):
    with pytest.raises(ValueError, match=says): call()


def test_images_that_come_generator_by_generator_are_all_counted():
    far = torch.cat([torch.randn(150, 4), 12 + torch.randn(150, 4)])
    table = cluster_table({"two": Samples(torch.zeros(300, 1, 8, 8), torch.zeros(300, dtype=torch.int64),
                                          torch.ones(300, 1), far)})
    assert table.two[0] == 2
