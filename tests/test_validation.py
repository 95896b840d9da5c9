"""benchmarks/validation.py: how it groups the networks."""

import pytest

from ghnqat_sdk.training.spaces import ArchitectureSpace


@pytest.fixture
def validation(benchmark_module):
    return benchmark_module("validation")


def test_table_has_the_means_of_all_networks_and_of_each_norm_and_family(validation):
    space, figures = ArchitectureSpace("val"), [[10.0, 5.0], [20.0, 6.0], [60.0, 7.0]]
    lines = validation.table(figures, ["W4/A4", "W2/A2"]).splitlines()
    assert lines[0] == "| | networks | W4/A4 | W2/A2 |"
    assert lines[2] == "| all | 3 | 30.0 ± 15.3 | 6.0 ± 0.6 |"
    rows = {row.split(" | ")[0].removeprefix("| "): row.split(" | ")[1:] for row in lines[3:]}
    for kind in ("norm", "family"):
        names = [getattr(space[i], kind) for i in range(3)]
        assert {name for name in rows if name.startswith(kind)} == {f"{kind} {name}" for name in names}
        for name in names:
            mine = [row[0] for row, other in zip(figures, names, strict=True) if other == name]
            count, first, _ = rows[f"{kind} {name}"]
            assert (count, first.split(" ± ")[0]) == (str(len(mine)), f"{sum(mine) / len(mine):.1f}")


def test_measures_each_network_at_each_setting(validation, data):
    figures = validation.measure(2, [(4, 4), (32, 32)], validation.pretrained._EMBEDDED, str(data), 32)
    assert len(figures) == 2
    assert all(0 <= top1 <= 100 for top1 in figures)
