"""Images as other libraries, and folders, hold them."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.errors import ArgumentError


def test_data_of_other_libraries_is_normalized_by_its_own_statistics():
    dots = torch.tensor([[[0.0, 16.0], [0.0, 16.0]], [[8.0, 8.0], [8.0, 8.0]]])  # 16 is white
    images = ImageSet.of(dots, [1, 0], white=16)
    assert images.images.shape == (2, 1, 2, 2)
    assert images.images.unique().tolist() == [0, 128, 255]
    assert images.classes == ("0", "1")
    normalized = images.normalize(images.images)
    assert abs(normalized.mean().item()) < 1e-3
    assert abs(normalized.std(correction=0).item() - 1) < 1e-3


@pytest.mark.parametrize("shape", [(4, 6, 7), (4, 6, 7, 3), (4, 3, 6, 7), (4, 5, 6, 7)])
def test_arrays_may_have_their_channels_first_or_last_and_any_number_of_them(shape):
    array = torch.randint(256, shape, dtype=torch.uint8)
    images = ImageSet.of(array.numpy(), torch.arange(4), classes="abcd")
    last = shape[-1] == 3
    expected = array.permute(0, 3, 1, 2) if last else array.view(4, -1, 6, 7)
    assert torch.equal(images.images, expected)
    assert images.classes == ("a", "b", "c", "d")
    assert len(images.mean) == len(images.std) == expected.shape[1]


def test_pairs_of_a_picture_and_a_label_are_read_as_torchvision_gives_them(data):
    from torchvision.datasets import ImageFolder

    reference = load_images(data, "test")
    images = ImageSet.of(ImageFolder(str(data / "test")))
    assert torch.equal(images.images, reference.images)
    assert torch.equal(images.labels, reference.labels)
    assert images.classes == reference.classes
    assert ImageSet.of(ImageFolder(str(data / "test")), size=24).images.shape == (300, 3, 24, 24)


def test_pairs_of_tensors_are_read(data):
    pairs = [(torch.full((3, 4, 4), value), label) for value, label in ((0.0, 1), (1.0, 0))]
    images = ImageSet.of(iter(pairs))
    assert images.images.flatten(1).tolist() == [[0] * 48, [255] * 48]
    assert images.labels.tolist() == [1, 0]


@pytest.mark.parametrize(
    ("largest", "byte"), [(1.0, 128), (1.005, 128), (200.0, 0), (40000, 0), (0.4, 128)]
)
def test_white_does_not_depend_on_the_images(largest, byte):
    values = torch.tensor([0.5, largest]).view(2, 1, 1)
    assert ImageSet.of(values, [0, 1]).images.flatten()[0] == byte


def test_pictures_of_any_mode_are_of_the_brightness_that_they_show():
    grey = Image.fromarray(np.random.default_rng(0).integers(0, 255, (8, 8), dtype=np.uint8))
    black_and_white = grey.convert("1")
    one, two = ImageSet.of([(grey, 0), (black_and_white, 1)]).images
    assert {*two.unique().tolist()} == {0, 255}
    assert abs(one.float().mean() - two.float().mean()) < 20
    colours = grey.convert("RGB")
    for mode in ("YCbCr", "CMYK", "HSV", "RGBX"):
        first, second = ImageSet.of([(colours, 0), (colours.convert(mode), 1)]).images.int()
        assert (first - second).abs().max() <= 2


def test_pictures_are_turned_as_their_camera_was_held(tmp_path):
    pixels = torch.randint(256, (6, 6, 3), dtype=torch.uint8).numpy()
    upright = Image.fromarray(pixels)
    turned = upright.transpose(Image.Transpose.ROTATE_90)
    turned.getexif()[0x0112] = 6  # a quarter turn brings it back
    for name, picture in (("train/a/1", upright), ("train/b/1", turned)):
        path = tmp_path / f"{name}.png"
        path.parent.mkdir(parents=True)
        picture.save(path, exif=picture.getexif())
    from_files = load_images(tmp_path, "train", 6).images
    pictures = [Image.open(tmp_path / f"train/{name}/1.png") for name in "ab"]
    from_memory = ImageSet.of([(picture, label) for label, picture in enumerate(pictures)]).images
    expected = torch.from_numpy(pixels).permute(2, 0, 1)
    for image in (*from_files, *from_memory):
        assert torch.equal(image, expected)


@pytest.mark.parametrize(
    ("data", "labels", "settings", "message"),
    [
        (torch.rand(3, 8, 8), [0, 1, 5], {"classes": ["a", "b"]}, "Labels are from 0 to 5"),
        (torch.rand(3, 8, 8), [0, 1, 2], {"classes": ["a", "b", "a"]}, "names one twice"),
        (torch.rand(3, 8, 8), ["a", "b", "c"], {}, "Labels cannot be read as a tensor"),
        (np.ones((3, 8, 8))[:, ::-1], [0, 1, 2], {}, r"numpy\.ascontiguousarray"),
        (torch.rand(3, 8, 8) + 1j, [0, 1, 2], {}, "complex numbers"),
        (torch.rand(3, 8, 8), [0, 1, 2], {"size": 32.5}, "Write size=32"),
        (
            [(np.ones((8, 8)), 0), (np.full((8, 8), 99, np.uint8), 1)],
            None,
            {},
            r"types torch\.float64, torch\.uint8",
        ),
    ],
)
def test_what_would_be_misread_is_refused(data, labels, settings, message):
    with pytest.raises(ArgumentError, match=message):
        ImageSet.of(data, labels, **settings)


def test_floats_and_counts_that_are_none_are_refused(data):
    images = load_images(data, "test")
    refused = {
        "ImageSet.of": lambda: ImageSet(torch.rand(2, 3, 4, 4), torch.arange(2), ("a", "b")),
        "sample": lambda: images.sample(-1, seed=0),
        "batches": lambda: next(images.batches(0)),
        "size=32": lambda: load_images(data, "test", 0),
    }
    for advice, call in refused.items():
        with pytest.raises(ArgumentError, match=advice):
            call()


@pytest.mark.parametrize("largest", [16, 100.0, 1023, 70000])
def test_values_that_leave_white_open_are_refused_and_white_can_be_given(largest):
    values = torch.tensor([0, largest]).view(2, 1, 1)
    with pytest.raises(ArgumentError, match=rf"{largest:g}, and white may be 1, 255, 65535"):
        ImageSet.of(values, [0, 1])
    assert ImageSet.of(values, [0, 1], white=largest).images.flatten().tolist() == [0, 255]
    with pytest.raises(ArgumentError, match="less than the largest value"):
        ImageSet.of(values, [0, 1], white=largest / 2)


def test_pairs_may_have_their_channels_last_or_colours_by_number(data):
    from PIL import Image

    array = torch.randint(256, (9, 8, 8, 3), dtype=torch.uint8).numpy()
    images = ImageSet.of([(each, row % 3) for row, each in enumerate(array)])
    assert torch.equal(images.images, ImageSet.of(array, [0, 1, 2] * 3).images)
    picture = Image.fromarray(array[0] // 64 * 64).convert("P", palette=Image.Palette.ADAPTIVE)
    by_number = ImageSet.of([(picture, 0), (picture, 1)])
    plain = ImageSet.of([(picture.convert("RGB"), 0), (picture.convert("RGB"), 1)])
    assert torch.equal(by_number.images, plain.images)


def test_images_of_16_bits_keep_their_brightness(tmp_path):
    import numpy as np
    from PIL import Image

    for split in ("train", "test"):
        for label, value in (("dark", 257 * 10), ("bright", 257 * 200)):
            (tmp_path / split / label).mkdir(parents=True)
            pixels = np.full((8, 8), value, dtype=np.uint16)
            Image.fromarray(pixels).save(tmp_path / split / label / "0.png")
    images = load_images(tmp_path, "test", 8, channels=1)
    assert images.classes == ("bright", "dark")
    assert [each.unique().tolist() for each in images.images] == [[200], [10]]


def test_folders_are_read_again_once_they_change_and_what_was_read_is_the_readers_own(
    data, tmp_path
):
    shutil.copytree(data / "test", tmp_path / "test")
    (tmp_path / "test" / ".thumbnails").mkdir()
    first = load_images(tmp_path, "test")
    assert ".thumbnails" not in first.classes
    expected = first.images.clone()
    first.images.zero_()
    assert torch.equal(load_images(tmp_path, "test").images, expected)
    shutil.copy(tmp_path / "test" / "cat" / "0003.jpg", tmp_path / "test" / "cat" / "more.jpg")
    assert len(load_images(tmp_path, "test")) == len(first) + 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(4, 64), [0] * 4), r"reshape\(-1, height, width\)"),
        ((torch.zeros(4, 8, 8), [0.5] * 4), "a whole number from 0"),
        ((torch.zeros(4, 8, 8), [0] * 3), "each of 4 images"),
        ((torch.zeros(4, 8, 8), [-1] * 4), "a whole number from 0"),
        ((torch.zeros(4, 8, 8) - 1, [0] * 4), "before they are normalized"),
        (([torch.zeros(8, 8)],), r"expected \(image, label\)"),
        (([(torch.zeros(3, 8, 8), 0), (torch.zeros(3, 9, 9), 0)],), "size=32"),
        (([],), "expected one"),
        ((7,), "expected a sequence"),
    ],
)
def test_data_that_is_no_labelled_images_says_what_to_write(arguments, message):
    with pytest.raises(ArgumentError, match=message):
        ImageSet.of(*arguments)
