"""Image folders as people have them: nothing is left out, misread or made a class in silence."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision import datasets, transforms

from ghnqat_sdk.data import ImageSet, load_images
from ghnqat_sdk.errors import ArgumentError, DataError, UnfamiliarDataWarning


@pytest.fixture
def folder(tmp_path) -> Path:
    """Two classes of grey images, each of another brightness, in "train" and "test"."""
    for split in ("train", "test"):
        for name, value in {"dark": 40, "light": 200}.items():
            (tmp_path / split / name).mkdir(parents=True)
            for index in range(4):
                image = Image.new("L", (8, 8), value + index)
                image.save(tmp_path / split / name / f"{index}.png")
    return tmp_path


def rewritten(folder: Path, change: Callable[[np.ndarray], np.ndarray]) -> None:
    for path in folder.rglob("*.png"):
        Image.fromarray(change(np.asarray(Image.open(path)))).save(path)


def test_images_of_12_bits_ask_for_their_white(folder):
    expected = load_images(folder, "train", size=8, channels=1).images
    rewritten(folder, lambda levels: (levels.astype(np.uint32) * 4095 // 255).astype(np.uint16))
    with pytest.raises(ArgumentError, match=r"largest value.+Write load_images\(…, white=4095\)"):
        load_images(folder, "train", size=8)
    for channels in (1, 3):
        images = load_images(folder, "train", size=8, channels=channels, white=4095).images
        assert (images.int() - expected.int()).abs().max() <= 1
    opaque = load_images(folder, "train", size=8, channels=4, white=4095).images
    assert opaque[:, 3].eq(255).all()


def test_bytes_in_files_of_16_bits_are_bytes(folder):
    expected = load_images(folder, "train", size=8).images
    rewritten(folder, lambda levels: levels.astype(np.uint16))
    assert load_images(folder, "train", size=8).images.equal(expected)


def test_every_name_of_an_image_that_pillow_reads_counts(folder):
    image = Image.new("L", (8, 8), 90)
    image.save(folder / "train" / "dark" / "more.ppm")
    image.save(folder / "train" / "dark" / "more.jfif", format="JPEG")
    image.save(folder / "train" / "dark" / "more.JPE", format="JPEG")
    assert len(load_images(folder, "train", size=8)) == 9  # but for one that is held out of each


def test_files_that_are_no_images_are_named(folder):
    (folder / "train" / "dark" / "labels.txt").write_text("dark")
    with pytest.warns(UnfamiliarDataWarning, match=r"1 files.+'labels.txt' the first"):
        load_images(folder, "train", size=8)


def test_a_class_of_images_that_pillow_does_not_read_is_refused(folder):
    for path in (folder / "train" / "dark").iterdir():
        path.rename(path.with_suffix(".camera"))
    with pytest.raises(DataError, match=r"None of the 4 files in .+dark' .+'0.camera' is one"):
        load_images(folder, "train", size=8)


def test_a_folder_without_images_is_no_class(folder):
    for split in ("train", "test"):
        (folder / split / "none").mkdir()
    with pytest.raises(DataError, match=r"none' holds no image, and would be a class"):
        load_images(folder, "train", size=8)
    images = load_images(folder, "test", size=8)  # of which some classes may have none
    assert images.classes == ("dark", "light", "none")


def test_what_other_programs_leave_is_left_out(folder):
    for place in (folder / "train" / "__MACOSX", folder / "train" / "dark" / "__MACOSX"):
        place.mkdir()
        (place / "0.png").write_bytes(b"resource")
    (folder / "train" / "dark" / "Thumbs.db").write_bytes(b"thumbs")
    images = load_images(folder, "train", size=8)
    assert images.classes == ("dark", "light")
    assert len(images) == 6


def test_linked_folders_belong_to_the_class_and_a_link_to_nothing_is_named(folder, tmp_path):
    more = tmp_path / "more"
    more.mkdir()
    Image.new("L", (8, 8), 90).save(more / "0.png")
    (more / "again").symlink_to(more)
    (folder / "train" / "dark" / "deep").symlink_to(more)
    assert len(load_images(folder, "train", size=8)) == 7
    (folder / "train" / "dark" / "lost.png").symlink_to(tmp_path / "nothing.png")
    with pytest.raises(DataError, match=r"lost.png'\. Remove the link"):
        load_images(folder, "train", size=8)


def test_tensors_of_different_sizes_are_resized(folder):
    Image.new("L", (20, 30), 120).save(folder / "train" / "dark" / "0.png")
    data = datasets.ImageFolder(str(folder / "train"), transform=transforms.ToTensor())
    images = ImageSet.of(data, size=16)
    assert images.images.shape == (8, 3, 16, 16)
    assert images.images[0].eq(120).all()
    with pytest.raises(ArgumentError, match="size=32"):
        ImageSet.of(data)


@pytest.mark.parametrize(("height", "width", "bands"), [(16, 16, 13), (12, 16, 3)])
def test_bands_may_come_last_where_images_are_square(height, width, bands):
    images = ImageSet.of(torch.rand(6, height, width, bands), torch.arange(6) % 3)
    assert images.images.shape == (6, bands, height, width)


def test_ids_are_no_labels():
    with pytest.raises(ArgumentError, match=r"up to 3,000,000.+return_inverse=True"):
        ImageSet.of(torch.rand(2, 8, 8), [0, 3_000_000])


@pytest.mark.parametrize("white", ["255", None, float("nan")])
def test_only_numbers_are_white(white):
    images = torch.full((2, 8, 8), 300.0)
    with pytest.raises(ArgumentError, match="white="):
        ImageSet.of(images, [0, 1], white=white)


def test_a_root_that_is_no_name_is_refused():
    with pytest.raises(ArgumentError, match="root=None is no folder"):
        load_images(None, "train")


def test_numbers_of_more_than_16_bits_have_no_white(folder):
    for path in folder.rglob("*.png"):
        Image.new("I", (8, 8), 70_000).save(path.with_suffix(".tif"))
        path.unlink()
    with pytest.raises(DataError, match="more than 16 bits"):
        load_images(folder, "train", size=8, white=70_000)
