import dataclasses
import pickle
import re
import shutil

import pytest
import torch
from pydantic import ValidationError

from ghnqat_sdk.data import DataConfig, ImageSet, load_images
from ghnqat_sdk.errors import ArgumentError, DataError


def test_image_folder_is_one_uint8_tensor_with_labels_in_class_order(data):
    images = load_images(data, "test")
    assert images.images.shape == (300, 3, 32, 32)
    assert images.images.dtype == torch.uint8
    assert images.classes[:2] == ("airplane", "automobile")
    assert images.labels.tolist() == sorted(images.labels.tolist())


def test_validation_images_are_the_last_of_each_class_and_not_in_training(data):
    train, validation = load_images(data, "train"), load_images(data, "val")
    assert (len(train), len(validation)) == (180, 20)
    known = {image.numpy().tobytes() for image in train.images}
    assert not any(image.numpy().tobytes() in known for image in validation.images)


def test_torchvision_files_give_the_same_images(data, tmp_path, monkeypatch):
    """CIFAR-10's own pickles, made here from the JPEGs, read through torchvision."""
    from torchvision.datasets import CIFAR10

    reference = load_images(data, "test")
    folder = tmp_path / "cifar-10-batches-py"
    folder.mkdir()
    entry = {"data": reference.images.flatten(1).numpy(), "labels": reference.labels.tolist()}
    (folder / "test_batch").write_bytes(pickle.dumps(entry))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": list(reference.classes)}))
    monkeypatch.setattr(CIFAR10, "_check_integrity", lambda self: True)
    monkeypatch.setattr(CIFAR10, "test_list", [["test_batch", None]])
    monkeypatch.setattr(
        CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None}
    )
    loaded = load_images(tmp_path, "test")
    assert torch.equal(loaded.images, reference.images)
    assert torch.equal(loaded.labels, reference.labels)
    assert load_images(tmp_path, "test", size=16).images.shape == (300, 3, 16, 16)


def test_images_of_another_size_are_resized(data):
    assert load_images(data, "test", size=16).images.shape == (300, 3, 16, 16)


def test_sample_is_the_same_for_the_same_seed(data):
    images = load_images(data, "test")
    assert torch.equal(images.sample(20, seed=1).images, images.sample(20, seed=1).images)
    assert not torch.equal(images.sample(20, seed=1).images, images.sample(20, seed=2).images)


def test_stratified_batches_have_the_classes_in_their_proportions(data):
    images = load_images(data, "test")
    uneven = images.take(
        torch.cat([torch.arange(120), torch.arange(150, 180)]).flip(0)
    )  # 30 of each of 5 classes
    uneven = uneven.take(
        torch.cat([torch.arange(150), (uneven.labels == 0).nonzero().flatten()])
    )  # class 0 twice
    whole = uneven.labels.bincount() / len(uneven)
    for seed in range(20):
        batch = uneven.stratified(24, torch.Generator().manual_seed(seed))
        assert ((batch.labels.bincount(minlength=len(whole)) - 24 * whole).abs() <= 1).all()
        assert all(
            (uneven.images[uneven.labels == label] == image).flatten(1).all(1).any()
            for image, label in zip(batch.images, batch.labels, strict=True)
        )


def test_stratified_batches_draw_every_image_alike_and_repeat_with_their_generator(data):
    images = load_images(data, "val")
    generator = torch.Generator().manual_seed(0)
    # 20 images in 7 stretches: their borders lie within images
    drawn = torch.cat([images.stratified(7, generator).images for _ in range(400)])
    counts = torch.stack([(drawn == image).flatten(1).all(1).sum() for image in images.images])
    assert (counts / 140 - 1).abs().max() < 0.4
    again = [images.stratified(5, torch.Generator().manual_seed(3)).images for _ in range(2)]
    assert torch.equal(*again)


def test_stratified_indices_are_those_of_the_stratified_images(data):
    images = load_images(data, "test")
    indices = images.stratified_indices(12, torch.Generator().manual_seed(1))
    assert indices.shape == (12,) and indices.dtype == torch.int64
    batch = images.stratified(12, torch.Generator().manual_seed(1))
    assert torch.equal(batch.images, images.images[indices])


def test_normalized_images_have_about_mean_zero_and_deviation_one(data):
    images = load_images(data, "test")
    normalized = images.normalize(images.images)
    assert normalized.is_contiguous(memory_format=torch.channels_last)
    assert abs(normalized.mean().item()) < 0.15
    assert abs(normalized.std().item() - 1) < 0.15


def test_images_are_normalized_by_their_own_statistics():
    gray = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    images = ImageSet(gray, torch.tensor([0, 1, 0]), ("a", "b"), mean=(0.2,), std=(0.4,))
    torch.testing.assert_close(images.normalize(gray).flatten(), torch.tensor([-0.5, 0.0, 2.0]))
    floats = gray.float()
    assert torch.equal(images.normalize(floats), images.normalize(gray))
    assert torch.equal(floats, gray.float())
    ((batch, _),) = images.take(torch.tensor([1, 2])).batches(2)
    torch.testing.assert_close(batch.flatten(), torch.tensor([0.0, 2.0]))


def test_batches_hold_all_images_in_order(data):
    images = load_images(data, "val")
    batches = list(images.batches(8))
    assert [len(labels) for _, labels in batches] == [8, 8, 4]
    assert torch.equal(torch.cat([labels for _, labels in batches]), images.labels)
    assert torch.equal(batches[2][0], images.normalize(images.images[16:]))


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": torch.zeros(3, dtype=torch.int64)},
        {"images": torch.zeros(2, 1, 4, 4, dtype=torch.uint8)},
        {"mean": (0.5,)},
        {"std": (0.5, 0.5)},
    ],
)
def test_images_that_do_not_fit_their_labels_or_statistics_are_refused(changes):
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    fields = {"images": images, "labels": torch.zeros(2, dtype=torch.int64), "classes": ("a", "b")}
    with pytest.raises(ArgumentError, match=r"do not fit.*Write ImageSet\("):
        ImageSet(**{**fields, **changes})


def test_digest_tells_images_labels_classes_and_statistics_apart(data):
    images = load_images(data, "val")
    changed = images.images.clone()
    changed[7, 1, 2, 3] ^= 1
    labels = images.labels.clone()
    labels[3] += 1
    others = [
        dataclasses.replace(images, images=changed),
        dataclasses.replace(images, images=images.images.view(20, 3, 16, 64)),
        dataclasses.replace(images, labels=labels),
        dataclasses.replace(images, classes=(*images.classes[:9], "lorry")),
        dataclasses.replace(images, mean=(0.5, 0.5, 0.5)),
        images.take(torch.arange(19)),
    ]
    digests = {images.digest(), *(other.digest() for other in others)}
    assert len(digests) == 7
    assert all(re.fullmatch("[0-9a-f]{16}", digest) for digest in digests)
    assert load_images(data, "val").digest() == images.digest()


def test_data_config_reads_images_with_its_size_and_statistics(data):
    config = DataConfig.model_validate_json('{"size": 16, "mean": [0.5, 0.5, 0.5]}')
    images = config.load(data, "val")
    assert images.images.shape == (20, 3, 16, 16)
    assert images.mean == (0.5, 0.5, 0.5)


@pytest.mark.parametrize("wrong", [{"std": (0.0, 1.0, 1.0)}, {"padding": -1}, {"sice": 32}])
def test_data_config_refuses_what_cannot_be_meant(wrong):
    with pytest.raises(ValidationError):
        DataConfig(**wrong)


def test_missing_data_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"ghnqat-train download"):
        load_images(tmp_path, "test")


def test_one_class_is_refused(data, tmp_path):
    shutil.copytree(data / "test" / "cat", tmp_path / "test" / "cat")
    with pytest.raises(DataError, match="fewer than two classes"):
        load_images(tmp_path, "test")


def test_images_in_folders_of_a_class_are_read_and_hidden_ones_are_not(data, tmp_path):
    for folder in (data / "test").iterdir():
        shutil.copytree(folder, tmp_path / "test" / folder.name / "images")
        shutil.copytree(folder, tmp_path / "test" / folder.name / ".thumbnails")
    flat, nested = load_images(data, "test"), load_images(tmp_path, "test")
    assert torch.equal(nested.images, flat.images)
    assert torch.equal(nested.labels, flat.labels)


def test_one_image_of_each_class_leaves_none_to_hold_out(data, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / "train" / name).mkdir(parents=True)
        shutil.copy(next((data / "train" / name).iterdir()), tmp_path / "train" / name)
    assert len(load_images(tmp_path, "train")) == 2
    with pytest.raises(DataError, match="none to hold out"):
        load_images(tmp_path, "val")


def test_a_broken_image_is_named(data, tmp_path):
    shutil.copytree(data / "test", tmp_path / "test")
    (tmp_path / "test" / "cat" / "0003.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"0003\.jpg"):
        load_images(tmp_path, "test")


def test_unknown_split_is_refused(data):
    with pytest.raises(ArgumentError, match="'train', 'val', 'test'"):
        load_images(data, "tset")


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_folders_are_read_with_any_channels_and_the_statistics_of_the_training_images(
    data, channels
):
    train, val, test = (
        load_images(data, split, 24, channels=channels, own_statistics=True)
        for split in ("train", "val", "test")
    )
    assert train.images.shape == (180, channels, 24, 24)
    assert train.mean == val.mean == test.mean
    assert train.std == val.std == test.std
    shown = train.normalize(train.images)[:, : min(3, channels)]
    torch.testing.assert_close(shown.mean(), torch.tensor(0.0), atol=1e-4, rtol=0)
    torch.testing.assert_close(shown.std(), torch.tensor(1.0), atol=1e-3, rtol=0)


def test_statistics_of_other_images_can_be_taken_over(data):
    train, test = load_images(data, "train"), load_images(data, "test")
    assert test.with_statistics_of(train).mean == train.with_statistics_of(train).mean
    assert torch.equal(test.with_statistics_of(train).images, test.images)


def test_other_numbers_of_channels_are_refused(data):
    with pytest.raises(ArgumentError, match=r"ImageSet\.of"):
        load_images(data, "train", channels=2)
