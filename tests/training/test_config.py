import json
import math

import pytest
from pydantic import ValidationError

from ghnqat_sdk.cli.train_config import assign
from ghnqat_sdk.errors import ArgumentError
from ghnqat_sdk.training.config import (
    BitsConfig,
    BitsShare,
    RunConfig,
    load_config,
    load_recipe,
)
from ghnqat_sdk.training.folder import recipe_names
from ghnqat_sdk.training.sampler import SamplingConfig
from ghnqat_sdk.training.shares import CustomShare, FamiliesShare


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_loads_and_survives_json(name):
    recipe = load_recipe(name)
    assert recipe.recipe == name
    assert recipe.description
    assert RunConfig.model_validate_json(recipe.model_dump_json()) == recipe


def test_the_recipe_that_ships_has_both_spaces_all_bits_hints_and_banks():
    recipe = load_recipe("all-bits")
    assert {share.space for share in recipe.networks} == {"deepnets", "families"}
    settings = {setting.bits for setting in recipe.bits.settings}
    assert {(2, 2), (4, 4), (8, 8), (32, 32)} <= settings
    assert recipe.hints is not None
    assert recipe.hypernetwork.decoder.banks > 0


def test_an_unknown_recipe_lists_the_known_ones():
    with pytest.raises(ArgumentError, match=r"'w1a1' is unknown.*all-bits"):
        load_recipe("w1a1")


def test_a_saved_config_is_complete(tiny):
    """A change of the package's defaults does not change a run that has begun."""
    saved = json.loads(tiny.model_dump_json())
    assert saved.keys() == set(RunConfig.model_fields)
    assert saved["sampling"].keys() == set(type(tiny.sampling).model_fields)
    assert saved["networks"][0]["min_macs"] == 0


def test_a_custom_space_is_saved_by_where_it_is_imported_from(tiny):
    assert RunConfig.model_validate_json(tiny.model_dump_json()) == tiny
    saved = json.loads(tiny.model_dump_json())
    assert saved["networks"][0]["factory"].endswith("Toys")


OLDER = {"recipe": "all-bits", "seed": 0, "steps": 10_000, "meta_batch": 4, "pool": 250_000}


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (json.dumps(OLDER).encode(), "steps: there is no field of this name"),
        (b'{"format": 1}', "format: Input should be 2"),
        (b"{", "Invalid JSON: EOF"),
        (b"\xff\xfe", "Invalid JSON"),
        (b'{"networks": [{"space": "nets"}]}', "networks.0: .*'nets'"),
        (b'{"networks": [{"space": "custom", "factory": "no.such"}]}', "networks.0.custom.factory"),
        (b'{"bits": {"settings": [{"bits": [4, 1]}]}}', "bits.settings.0.bits"),
        (b'{"sampling": {"window": 0}}', "sampling.window"),
    ],
)
def test_a_file_that_is_no_config_of_this_layout_is_refused(tmp_path, content, reason):
    path = tmp_path / "run.json"
    path.write_bytes(content)
    with pytest.raises(ArgumentError, match=f"no config of layout 2: .*{reason}"):
        load_config(path)


def test_a_missing_config_names_the_recipes(tmp_path):
    with pytest.raises(ArgumentError, match=r"cannot be read.*all-bits"):
        load_config(tmp_path / "run.json")


def test_the_remedy_of_a_broken_config_is_a_command_that_exists(tmp_path, capsys):
    from ghnqat_sdk.cli.train import main

    (tmp_path / "run.json").write_text("{}}")
    with pytest.raises(ArgumentError) as refused:
        load_config(tmp_path / "run.json")
    command = str(refused.value).split(": ")[-1].split()
    assert command[0] == "ghnqat-train"
    assert main(command[1:]) == 0
    assert json.loads(capsys.readouterr().out)["format"] == 2


@pytest.mark.parametrize(
    "wrong",
    [
        {"networks": ()},
        {"networks": (FamiliesShare(share=0),)},
        {"bits": {"settings": ()}},
        {"bits": {"settings": ({"bits": (4, 4), "share": 0},)}},
        {"average": 1.0},
        {"clip_norm": 0},
        {"relative_norm": "x"},
        {"teacher": "t"},
        {"seed": 10**20},
        {"seed": True},
        {"optimizer": {"type": "adamw", "betas": (2, 3)}},
        {"optimizer": {"type": "adamw", "betas": (0.9, 1)}},
        {"optimizer": {"type": "adamw", "betas": (True, 0.9)}},
        {"optimizer": {"type": "soap", "learning_rate": math.inf}},
        {"optimizer": {"type": "custom", "factory": "toys.Toys", "weight_decay": math.inf}},
        {"optimizer": {"type": "custom", "factory": "toys.Toys", "settings": {"eps": math.inf}}},
        {"network_clip_norm": math.inf},
        {"data": {"mean": (math.inf, 0, 0)}},
        {"sampling": {"image_batch": 8, "least_images": 100}},
    ],
)
def test_what_cannot_be_meant_is_refused(wrong):
    with pytest.raises(ValidationError):
        RunConfig(**wrong)


LIMITS = [
    "clip_norm",
    "networks.0.max_macs",
    "networks.0.max_parameters",
    "sampling.batch_macs",
    "sampling.uses",
    "validation.max_macs",
]


@pytest.mark.parametrize("field", LIMITS)
def test_a_limit_may_be_infinite_and_is_read_back_so(tiny, field):
    fields = tiny.model_dump(mode="json")
    assign(fields, f"{field}=Infinity")
    config = RunConfig.model_validate(fields)
    text = config.model_dump_json()
    assert json.loads(text, parse_constant=pytest.fail)
    assert '"Infinity"' in text
    assert RunConfig.model_validate_json(text) == config
    assert RunConfig.model_validate_json(json.dumps(config.model_dump(mode="json"))) == config
    for wrong in ("NaN", "-Infinity"):
        assign(fields, f"{field}={wrong}")
        with pytest.raises(ValidationError):
            RunConfig.model_validate(fields)


def test_costs_that_no_network_can_have_are_refused_where_they_are_written():
    with pytest.raises(ValidationError, match=r"min_macs, 5e\+07, is above max_macs, 4e\+07;"):
        FamiliesShare(min_macs=5e7)


def test_all_images_of_a_batch_smaller_than_usual_are_used():
    sampling = SamplingConfig(image_batch=8)
    assert SamplingConfig.model_validate_json(sampling.model_dump_json()) == sampling


def test_some_shares_may_be_zero():
    settings = (BitsShare(bits=(4, 4), share=0), BitsShare(bits=(8, 8)))
    networks = (FamiliesShare(share=0), CustomShare(factory="toys.Toys"))
    assert RunConfig(networks=networks, bits=BitsConfig(settings=settings)).networks == networks


def test_configs_are_frozen_through_and_through(tiny):
    for part, field in ((tiny, "seed"), (tiny.sampling, "window"), (tiny.networks[0], "share")):
        with pytest.raises(ValidationError, match="frozen"):
            setattr(part, field, 1)
