"""Cells on tiny literal genotypes: what is computed, what it costs, and what is left out."""

from __future__ import annotations

import doctest

import torch
from torch import Tensor, nn

from ghnqat_sdk.training.spaces import genotypes
from ghnqat_sdk.training.spaces.blocks import Conv, Flatten, GlobalPool, Linear, Pool, Seq, Style
from ghnqat_sdk.training.spaces.cells import CellNet, CellNetSpec, CellSpec, Halve, StepSpec
from ghnqat_sdk.training.spaces.cost import IMAGE, Cost, Flow
from ghnqat_sdk.training.spaces.genotypes import (
    OPERATIONS,
    Edge,
    Genotype,
    Place,
    Slot,
    cell,
    cell_row,
)

BATCH = Style("batch", "relu", bias=False)
BARE = Style("none", "relu", bias=True)


def numbers(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def test_example_of_genotypes() -> None:
    assert doctest.testmod(genotypes).failed == 0


def test_step_sums_its_operations() -> None:
    step = StepSpec((0, 2), (Seq(), Seq((Pool("max", 3, 1),)))).build()
    states = [numbers(1, 2, 4, 4), numbers(1, 9, 1, 1), numbers(1, 2, 4, 4) - 1]
    expected = states[0] + nn.functional.max_pool2d(states[2], 3, 1, 1)
    torch.testing.assert_close(step(states), expected)


def test_cell_concatenates_its_ends() -> None:
    steps = (StepSpec((1,), (Seq(),)), StepSpec((0, 2), (Seq(), Seq())))
    before, last = numbers(1, 2, 4, 4), numbers(1, 2, 4, 4) + 1
    both = CellSpec(Seq(), Seq(), steps, (2, 3))
    one = CellSpec(Seq(), Seq(), steps, (3,))
    torch.testing.assert_close(both.build()(before, last), torch.cat([last, before + last], 1))
    torch.testing.assert_close(one.build()(before, last), before + last)
    assert both.trace(Flow(2, 4, 4), Flow(2, 4, 4), Cost()) == Flow(4, 4, 4)


def test_depth_of_a_cell_is_its_longest_path() -> None:
    conv = Seq((Conv(2, 2, (3, 3), (1, 1), 1, 1, False),))
    steps = (StepSpec((0, 1), (conv, Seq())), StepSpec((1, 2), (Seq(), conv)))
    spec = CellSpec(Seq(), Seq(), steps, (2, 3))
    assert spec.trace(Flow(2, 4, 4, 5), Flow(2, 4, 4, 1), Cost()).depth == 7


def test_halving_reads_even_and_odd_pixels() -> None:
    reduce = Halve(1, 2, bias=False).build()
    for parameter in reduce.parameters():
        nn.init.ones_(parameter)
    image = torch.arange(16.0).view(1, 1, 4, 4)
    assert reduce(image).flatten().tolist() == [0, 2, 8, 10, 5, 7, 13, 15]
    cost = Cost()
    assert Halve(3, 8, bias=True).trace(Flow(3, 4, 4), cost) == Flow(8, 2, 2, 1)
    assert (cost.macs, cost.parameters) == (3 * 8 * 4, 3 * 8 + 8)


def test_cell_net_hands_each_cell_the_two_outputs_before_it() -> None:
    older = CellSpec(Seq(), Seq(), (StepSpec((0,), (Seq(),)),), (2,))
    both = CellSpec(Seq(), Seq(), (StepSpec((0, 1), (Seq(), Seq())),), (2,))
    head = Seq((GlobalPool(), Flatten()))
    net = CellNetSpec(Seq(), Seq((Pool("avg", 1, 1),)), (both, both, older), head).build()
    assert isinstance(net, CellNet)
    assert net.block_ends() == list(net.cells)
    # states 1, 1, then 2, 3, and the last cell hands on the older of these
    assert net(torch.ones(1, 1, 2, 2)).item() == 2


def test_cost_of_a_net_counts_every_part() -> None:
    stem = Seq((Conv(3, 4, (3, 3), (2, 2), 1, 1, False),))
    one = CellSpec(Seq(), Seq(), (StepSpec((1,), (stem._replace(layers=()),)),), (2,))
    spec = CellNetSpec(stem, Seq(), (one,), Seq((GlobalPool(), Flatten(), Linear(4, 10))))
    cost = Cost()
    assert spec.trace(IMAGE, cost) == Flow(10, 1, 1, 2)
    assert cost.macs == 3 * 4 * 9 * 16 * 16 + 40
    assert cost.parameters == 3 * 4 * 9 + 50


def test_every_operation_keeps_channels_and_strides() -> None:
    for name, operation in OPERATIONS.items():
        for stride in (1, 2):
            for style in (BATCH, BARE):
                layers = Seq(operation(4, stride, style))
                shape = layers.build()(numbers(2, 4, 8, 8)).shape
                assert shape == (2, 4, 8 // stride, 8 // stride), name
                assert layers.trace(Flow(4, 8, 8), Cost())[:3] == shape[1:], name


def test_parameters_of_operations() -> None:
    def count(name: str) -> int:
        cost = Cost()
        Seq(OPERATIONS[name](4, 1, BATCH)).trace(Flow(4, 8, 8), cost)
        return cost.parameters

    assert count("skip") == count("max-pool-3") == 0
    assert count("conv-5") == 4 * 4 * 25 + 8
    assert count("conv-7x1-1x7") == 2 * 4 * 4 * 7 + 8
    assert count("dil-conv-3") == 4 * 9 + 16 + 8
    assert count("sep-conv-3") == 2 * count("dil-conv-3")


def test_pruning_leaves_out_steps_that_reach_no_end() -> None:
    dead = (Edge(0, "conv-3"),)
    genotype = Genotype((dead, (Edge(1, "skip"),), (Edge(3, "conv-1"), Edge(0, "skip"))), (4,))
    pruned = Genotype(((Edge(1, "skip"),), (Edge(2, "conv-1"), Edge(0, "skip"))), (3,))
    assert genotype.pruned() == pruned
    assert pruned.pruned() == pruned


def test_cell_strides_on_its_inputs_alone() -> None:
    genotype = Genotype(((Edge(0, "conv-3"), Edge(1, "skip")), (Edge(2, "avg-pool-3"),)), (3,))
    spec = cell(Slot(genotype, 4, 2), Place(6, 8, halves=True), BATCH)
    assert spec.build()(numbers(2, 6, 16, 16), numbers(2, 8, 8, 8)).shape == (2, 4, 4, 4)


def test_cell_has_no_layers_for_an_input_that_it_does_not_read() -> None:
    spec = cell(Slot(Genotype(((Edge(1, "conv-3"),),), (2,)), 4, 1), Place(6, 8, True), BATCH)
    assert not list(spec.build().before.parameters())


def test_cells_without_preprocessing_have_only_their_operations() -> None:
    genotype = Genotype(((Edge(0, "max-pool-3"), Edge(1, "conv-3")),), (2,))
    slots = [Slot(genotype, 4, stride) for stride in (2, 1)]
    cells, channels = cell_row(slots, Place(4, 4, False), BARE, preprocessed=False)
    x = numbers(2, 4, 8, 8)
    first, second = (spec.build() for spec in cells)
    assert second(x, first(x, x)).shape == (2, channels, 4, 4)
    assert len(list(first.parameters())) == len(list(second.parameters())) == 2


def test_row_counts_the_channels_of_all_ends() -> None:
    genotype = Genotype(((Edge(0, "skip"), Edge(1, "skip")), (Edge(1, "conv-1"),)), (2, 3))
    cells, channels = cell_row([Slot(genotype, 4, 1)] * 3, Place(12, 12, False), BATCH)
    assert channels == 8
    assert [spec.build().last[1].in_channels for spec in cells] == [12, 8, 8]
    assert [spec.build().before[1].in_channels for spec in cells] == [12, 12, 8]
