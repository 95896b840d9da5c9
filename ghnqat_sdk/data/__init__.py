"""Labelled images: where they come from, their statistics, draws of them, and moves.

images.py      sets of images in memory
folders.py     which files of a folder are images of which class
reading.py     images from files of torchvision, arrays and data sets
pictures.py    Pillow's pictures
brightness.py  which value is white; mean and deviation
checks.py      what images and labels must be
moves.py       flips and shifts
"""

from ghnqat_sdk.data.images import DataConfig, ImageSet, Known, load_images, load_images_like
from ghnqat_sdk.data.moves import Moves, draw_moves, move_images, take_cells
from ghnqat_sdk.data.reading import download_cifar10

__all__ = [
    "DataConfig",
    "ImageSet",
    "Known",
    "Moves",
    "download_cifar10",
    "draw_moves",
    "load_images",
    "load_images_like",
    "move_images",
    "take_cells",
]
