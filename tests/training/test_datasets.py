import pickle
import shutil

import pytest
import torch

from ghnqat_sdk.errors import ArgumentError, DataError
from ghnqat_sdk.training.datasets import augment, load_images, normalise_images


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
    monkeypatch.setattr(CIFAR10, "meta", {"filename": "batches.meta", "key": "label_names", "md5": None})
    loaded = load_images(tmp_path, "test")
    assert torch.equal(loaded.images, reference.images)
    assert torch.equal(loaded.labels, reference.labels)


def test_images_of_another_size_are_resized(data):
    assert load_images(data, "test", size=16).images.shape == (300, 3, 16, 16)


def test_sample_is_the_same_for_the_same_seed(data):
    images = load_images(data, "test")
    assert torch.equal(images.sample(20, seed=1).images, images.sample(20, seed=1).images)
    assert not torch.equal(images.sample(20, seed=1).images, images.sample(20, seed=2).images)


def test_stratified_batches_have_the_classes_in_their_proportions(data):
    images = load_images(data, "test")
    uneven = images.take(torch.cat([torch.arange(120), torch.arange(150, 180)]).flip(0))  # 30 of each of 5 classes
    uneven = uneven.take(torch.cat([torch.arange(150), (uneven.labels == 0).nonzero().flatten()]))  # class 0 twice
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


def test_normalised_images_have_about_mean_zero_and_deviation_one(data):
    images = normalise_images(load_images(data, "test").images)
    assert images.is_contiguous(memory_format=torch.channels_last)
    assert abs(images.mean().item()) < 0.15
    assert abs(images.std().item() - 1) < 0.15


def test_augmentation_shifts_and_flips_each_image_on_its_own():
    image = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    augmented = augment(image.repeat(64, 1, 1, 1), torch.Generator().manual_seed(0), padding=1)
    padded = torch.nn.functional.pad(image, (1, 1, 1, 1))[0, 0]
    crops = [padded[y : y + 4, x : x + 4] for y in range(3) for x in range(3)]
    crops += [crop.flip(1) for crop in crops]
    seen = {next(i for i, crop in enumerate(crops) if torch.equal(crop, one[0])) for one in augmented}
    assert len(seen) > 12


def test_augmentation_crops_to_the_size_asked_for():
    image = torch.arange(1.0, 17.0).view(1, 1, 4, 4)
    crops = augment(image.repeat(64, 1, 1, 1), torch.Generator().manual_seed(0), padding=0, size=2)
    expected = [image[0, 0, y : y + 2, x : x + 2] for y in range(3) for x in range(3)]
    expected += [crop.flip(1) for crop in expected]
    assert crops.shape == (64, 1, 2, 2)
    assert all(any(torch.equal(crop[0], one) for one in expected) for crop in crops)


def test_augmentation_repeats_with_its_generator_and_leaves_the_global_one_alone():
    images, before = torch.rand(4, 3, 8, 8), torch.get_rng_state()
    first, second = (augment(images, torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first, second)
    assert torch.equal(torch.get_rng_state(), before)


def test_missing_data_says_what_is_expected(tmp_path):
    with pytest.raises(DataError, match=r"ghnqat-train download"):
        load_images(tmp_path, "test")


def test_one_class_is_refused(data, tmp_path):
    shutil.copytree(data / "test" / "cat", tmp_path / "test" / "cat")
    with pytest.raises(DataError, match="fewer than two classes"):
        load_images(tmp_path, "test")


def test_a_broken_image_is_named(data, tmp_path):
    shutil.copytree(data / "test", tmp_path / "test")
    (tmp_path / "test" / "cat" / "0003.jpg").write_bytes(b"not an image")
    with pytest.raises(DataError, match=r"0003\.jpg"):
        load_images(tmp_path, "test")


def test_unknown_split_is_refused(data):
    with pytest.raises(ArgumentError, match="'train', 'val', 'test'"):
        load_images(data, "tset")
