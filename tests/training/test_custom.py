"""Classes of a user's own in configs: they work, are saved by name, and load again."""

import sys
from pathlib import Path

import of_users
import pytest
import torch
from pydantic import ValidationError

from ghnqat_sdk import load_pretrained, save_pretrained
from ghnqat_sdk.errors import ArgumentError, CheckpointError
from ghnqat_sdk.hypernetwork.decoder import CustomDecoder
from ghnqat_sdk.hypernetwork.encoders import CustomEncoder
from ghnqat_sdk.hypernetwork.ghn import GraphHypernetwork, HypernetworkConfig
from ghnqat_sdk.plugins import Custom, find, imported
from ghnqat_sdk.quantization.ranges import CustomRanges
from ghnqat_sdk.quantization.roundings import CustomRounding, NoiseRounding
from ghnqat_sdk.training.config import BitsConfig, RunConfig, load_config
from ghnqat_sdk.training.optimizers import AdamWConfig, CustomOptimizer
from ghnqat_sdk.training.schedules import CustomSchedule
from ghnqat_sdk.training.shares import CustomShare

BAG = CustomEncoder(factory=of_users.Bag, settings={"width": 12})
CONSTANT = CustomDecoder(factory="of_users.Constant", settings={"size": 0.5}, tile=8)
OWN = {
    "encoder": HypernetworkConfig(encoder=BAG),
    "decoder": HypernetworkConfig(decoder=CONSTANT),
    "both": HypernetworkConfig(encoder=BAG, decoder=CONSTANT),
}
SLOWED = CustomOptimizer(factory="of_users.SlowedSGD", learning_rate=0.1, settings={"slower": 2.0})
WIDENED = CustomRanges(factory=of_users.Widened, settings={"factor": 1.1})
SHIFTED = CustomRounding(factory="of_users.Shifted")
STAIRS = CustomSchedule(factory="of_users.stairs", settings={"length": 2})
FEW = CustomShare(factory="of_users.FewToys", settings={"count": 3})


# ---- hypernetworks


@pytest.mark.parametrize("config", OWN.values(), ids=OWN)
def test_an_encoder_or_decoder_of_ones_own_predicts_and_loads_again(
    config, diamond, tmp_path, same
):
    made = GraphHypernetwork(config).eval()
    (predicted,) = made([diamond])
    assert predicted["a.weight"].shape == (12, 3, 3, 3)
    save_pretrained(made, tmp_path)
    loaded = load_pretrained(tmp_path)
    assert loaded.config == config
    assert same(loaded([diamond])[0], predicted)


def test_a_class_is_saved_by_where_it_is_imported_from():
    saved = OWN["both"].model_dump(mode="json")
    assert saved["encoder"] == {
        "type": "custom", "factory": "of_users.Bag", "settings": {"width": 12}
    }  # fmt: skip
    assert saved["decoder"]["factory"] == "of_users.Constant"


@pytest.mark.parametrize("config", OWN.values(), ids=OWN)
def test_weights_never_import_what_their_config_names(config, tmp_path, monkeypatch):
    save_pretrained(GraphHypernetwork(config), tmp_path)
    monkeypatch.delitem(sys.modules, "of_users")
    with pytest.raises(ArgumentError, match="write `import of_users` first"):
        load_pretrained(tmp_path)
    assert "of_users" not in sys.modules


@pytest.mark.parametrize("factory", ["os.system", "torch.nn.Linear", "of_users.Constant"])
def test_weights_call_no_class_that_is_no_encoder(factory):
    config = HypernetworkConfig(encoder=CustomEncoder(factory=factory))
    with pytest.raises(ArgumentError, match=r"no class .* that is an Encoder"):
        GraphHypernetwork(config)


def test_settings_that_a_class_does_not_take_are_refused():
    wrong = CustomEncoder(factory="of_users.Bag", settings={"depth": 3})
    with pytest.raises(ArgumentError, match=r"of_users.Bag cannot be made of .*'depth': 3"):
        GraphHypernetwork(HypernetworkConfig(encoder=wrong))


# ---- training


def test_a_schedule_is_made_once(monkeypatch):
    made = []
    monkeypatch.setattr(of_users, "stairs", lambda length: made.append(length) or (lambda step: 1))
    schedule = CustomSchedule(factory="of_users.stairs", settings={"length": 2})
    assert [schedule.factor(step) for step in range(3)] == [1, 1, 1]
    assert made == [2]


@pytest.fixture
def own_run(tiny) -> RunConfig:
    hypernetwork = tiny.hypernetwork.model_copy(update={"encoder": BAG, "ranges": WIDENED})
    bits = tiny.bits.model_copy(update={"rounding": SHIFTED})
    parts = {"hypernetwork": hypernetwork, "bits": bits, "optimizer": SLOWED, "schedule": STAIRS}
    return tiny.model_copy(update=parts | {"networks": (FEW,)})


def test_a_run_of_ones_own_parts_trains_resumes_and_loads_again(make_run, own_run, same):
    whole = make_run("whole", own_run)
    rates = [report.learning_rate for report in whole.run(5)]
    assert rates == [0.1, 0.1, 0.05, 0.05, 0.025]
    assert isinstance(whole.trainer.optimizer, of_users.SlowedSGD)
    assert load_config(whole.folder / "run.json") == own_run
    list(make_run("stopped", own_run).run(2))
    resumed = make_run("stopped", own_run)
    assert resumed.resume()
    list(resumed.run(5))
    states = [run.trainer.model.state_dict() for run in (whole, resumed)]
    assert same(*states)


def test_what_an_optimizer_counts_in_its_groups_goes_on(make_run, own_run, same):
    warming = own_run.model_copy(update={"optimizer": CustomOptimizer(factory="of_users.Warming")})
    whole = make_run("whole", warming)
    list(whole.run(3))
    list(make_run("stopped", warming).run(2))
    decaying = CustomOptimizer(factory="of_users.Warming", weight_decay=0.5)
    resumed = make_run("stopped", warming, optimizer=decaying)
    assert resumed.resume()
    assert [x["weight_decay"] for x in resumed.trainer.optimizer.param_groups] == [0.5, 0.0]
    resumed = make_run("stopped", warming)
    assert resumed.resume()
    list(resumed.run(3))
    assert same(*(run.trainer.model.state_dict() for run in (whole, resumed)))


def test_one_space_with_other_settings_has_other_networks(make_run, own_run):
    shares = [
        CustomShare(factory="of_users.Activated", settings={"activation": name})
        for name in ("ReLU", "SiLU")
    ]
    run = make_run("run", own_run, networks=tuple(shares))
    ops = [
        {node.op for node in run.trainer.networks.prepared(share.build("val")[0]).graph.nodes}
        for share in shares
    ]
    assert ops[0] != ops[1]
    validated = {architecture._own.activation for architecture in run.validation.architectures}
    assert validated == {"ReLU", "SiLU"}


def test_a_network_of_a_space_is_the_same_whatever_object_tells_of_it():
    space = CustomShare(factory="faulty.Unlike").build("train")
    assert space[3]._own != space[3]._own
    assert space[3] == space[3]
    assert hash(space[3]) == hash(space[3])
    assert space[3] != space[4]
    assert space[3] != CustomShare(factory="toys.Toys").build("train")[3]


def test_any_optimizer_of_torch_is_one():
    layer = torch.nn.Linear(3, 2)
    config = CustomOptimizer(factory="torch.optim.RMSprop", settings={"alpha": 0.5})
    optimizer = config.build([layer])
    assert isinstance(optimizer, torch.optim.RMSprop)
    assert optimizer.defaults["alpha"] == 0.5
    decays = [group["weight_decay"] for group in optimizer.param_groups]
    assert decays == [config.weight_decay, 0.0]


def test_a_state_belongs_to_its_optimizer(make_run, own_run):
    list(make_run("run", own_run).run(1))
    other = CustomOptimizer(factory="torch.optim.SGD")
    with pytest.raises(CheckpointError, match=r"of the optimizer 'of_users.SlowedSGD', not 'torch"):
        make_run("run", own_run, optimizer=other).resume()
    with pytest.raises(CheckpointError, match="not 'adamw'"):
        make_run("run", own_run, optimizer=AdamWConfig()).resume()


def test_what_is_no_optimizer_is_refused_when_it_is_built():
    config = CustomOptimizer(factory="of_users.stairs")
    with pytest.raises(ArgumentError, match="no class 'stairs' that is an Optimizer"):
        config.build([torch.nn.Linear(1, 1)])


@pytest.mark.parametrize("kind", [CustomOptimizer, CustomSchedule, CustomShare])
@pytest.mark.parametrize(
    ("factory", "reason"),
    [
        ("no_such_module.Class", "cannot be imported.*PYTHONPATH"),
        ("of_users.Missing", "has no class or function 'Missing'"),
        ("of_users", "expected where a class is imported from"),
        ("of users.Class", "expected where a class is imported from"),
    ],
)
def test_what_cannot_be_imported_is_refused_with_the_config(kind, factory, reason):
    with pytest.raises(ValidationError, match=reason):
        kind(factory=factory)


def test_a_run_imports_the_encoder_that_its_config_names(own_run, monkeypatch):
    text = own_run.model_dump_json()
    monkeypatch.delitem(sys.modules, "of_users")
    assert RunConfig.model_validate_json(text).hypernetwork.encoder == BAG
    assert Path(sys.modules["of_users"].__file__).parent == Path(__file__).parent
    with pytest.raises(ValidationError, match="no_such_module"):
        RunConfig.model_validate_json(text.replace("of_users.Bag", "no_such_module.Bag"))
    with pytest.raises(ValidationError, match="no_such_module"):
        RunConfig.model_validate_json(text.replace("of_users.Shifted", "no_such_module.Shifted"))


def test_a_run_with_the_switch_of_old_is_read():
    assert BitsConfig.model_validate({"noise": True}).rounding == NoiseRounding()
    assert BitsConfig.model_validate({"noise": False}) == BitsConfig()


# ---- the mechanism


def test_only_what_is_imported_is_found(monkeypatch, tmp_path):
    (tmp_path / "later.py").write_text("class Later(dict):\n    pass\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(ArgumentError, match="'later' is not imported"):
        find("later.Later", dict)
    assert imported("later.Later") == "later.Later"
    assert find("later.Later", dict).__name__ == "Later"
    monkeypatch.delitem(sys.modules, "later")


def test_a_custom_variant_is_made_of_arguments_and_settings():
    custom = Custom(factory="collections.Counter", settings={"a": 2})
    assert custom.make(dict, "bb") == {"a": 2, "b": 2}
