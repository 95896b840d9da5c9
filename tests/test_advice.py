"""What is to be written instead is said, and works where it is followed."""

import re

import numpy as np
import pytest
import torch
from functional_model import Model
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

import ghnqat_sdk as gq

IMAGES = torch.randn(20, 3, 8, 8, generator=torch.Generator().manual_seed(0))
MASKS = torch.randn(20, 1, 8, 8, generator=torch.Generator().manual_seed(1))
LABELS = torch.arange(20) % 2
DATASET = TensorDataset(IMAGES, LABELS)


class Stream(IterableDataset):
    def __iter__(self):
        return iter(DATASET)


def cnn() -> nn.Module:
    layers = [nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))


def of_two() -> nn.Module:
    def forward(m, image, mask):
        return m.head(torch.cat([m.image(image), m.mask(mask)], 1).relu().mean((2, 3)))

    class OfTwo(Model):
        def forward(self, image, mask):
            return forward(self, image, mask)

    layers = {"image": nn.Conv2d(3, 4, 3), "mask": nn.Conv2d(1, 4, 3), "head": nn.Linear(8, 2)}
    return OfTwo(None, **layers)


EXAMPLES = {
    "sizes": ((2, 3, 8, 8), "Write torch.empty(2, 3, 8, 8)."),
    "an array": (IMAGES.numpy(), "Write torch.from_numpy(images)."),
    "a word": ("images", "A str is no tensor."),
    "a data set": (DATASET, "Write dataset[0][0][None]."),
    "a loader": (DataLoader(DATASET), "Write next(iter(loader))[0]."),
    "bytes": (IMAGES.byte(), "Write images.float() / 255, normalized as in training."),
    "doubles": (IMAGES.double(), "Write images.float()."),
    "a list in a list": ([[IMAGES]], "Entry 0 is a list of 1."),
    "labels": ((IMAGES, LABELS), "forward takes 1 of these 2 entries. Leave out labels"),
    "labels by name": ({"input": IMAGES, "y": LABELS}, "write {'input': batch['input']}"),
    "other names": ({"image": IMAGES, "y": LABELS}, "write {'input': batch['image']}"),
    "one image": (IMAGES[0], "Write images[None]"),
    "grey images": (IMAGES[:, :1], "write images[:, [0, 0, 0]]"),
    "channels last": (IMAGES.movedim(1, -1), "Write images.movedim(-1, 1)"),
}


@pytest.mark.parametrize("kind", EXAMPLES)
def test_example_inputs_of_a_wrong_kind_say_what_to_write(small, kind):
    inputs, advice = EXAMPLES[kind]
    with pytest.raises(gq.TraceError, match=re.escape(advice)):
        gq.predict_quantized_params(cnn(), hypernetwork=small, example_inputs=inputs, head="keep")


def test_double_models_are_told_their_own_type(small):
    with pytest.raises(gq.TraceError, match=r"images.to\(torch.float64\)"):
        gq.trace(cnn().double(), IMAGES)


BATCHES = {
    "a data set": (DATASET, "DataLoader(dataset, batch_size=64)"),
    "a stream of single images": (Stream(), "DataLoader(dataset, batch_size=64)"),
    "one image": ([IMAGES[0]], "Write images[None]"),
    "arrays": ([IMAGES.numpy()], "torch.from_numpy(images)"),
    "a tensor": (IMAGES, "[images]"),
    "a dict": ({"input": IMAGES}, "[images]"),
    "bytes": ([IMAGES.byte()], "Write images.float() / 255"),
    "doubles": ([IMAGES.double()], "Write images.float()"),
    "dicts with more": ([{"input": IMAGES, "id": LABELS}], "write {'input': batch['input']}"),
    "lists in lists": ([[[IMAGES], LABELS]], "Entry 0 is a list of 1."),
}


@pytest.mark.parametrize("kind", BATCHES)
def test_batches_of_a_wrong_kind_say_what_to_write(kind):
    batches, advice = BATCHES[kind]
    with pytest.raises(gq.ArgumentError, match=re.escape(advice)):
        gq.calibrate(gq.from_float(cnn()), batches)


def test_image_sets_are_told_to_give_batches(data):
    images = gq.data.ImageSet.of(np.zeros((4, 8, 8), dtype="uint8"), [0, 1, 0, 1])
    with pytest.raises(gq.ArgumentError, match=r"calibrate\(qmodel, images.batches\(64\)\)"):
        gq.calibrate(gq.from_float(cnn()), images)


FOLLOWED = {
    "a loader": DataLoader(DATASET, batch_size=10),
    "floats": [(IMAGES.double().float(), LABELS)],
    "one image each": [image[None] for image in IMAGES],
    "grey": [IMAGES[:, :1][:, [0, 0, 0]]],
    "channels second": [IMAGES.movedim(1, -1).movedim(-1, 1)],
    "an array": [torch.from_numpy(IMAGES.numpy())],
    "without more": [{"input": IMAGES}],
    "labels by name": [{"input": IMAGES, "y": LABELS}],
}


@pytest.mark.parametrize("kind", FOLLOWED)
def test_what_is_advised_is_taken(kind):
    assert gq.calibrate(gq.from_float(cnn()), FOLLOWED[kind]).images == 20


LABELLED = {
    "a data set": (DATASET, "DataLoader(dataset, batch_size=64)"),
    "a dict": ([{"x": IMAGES, "y": LABELS}], "{'input': batch['x'], 'y': batch['y']}"),
    "a dict of images": ([{"input": IMAGES}], "[{'input': batch['input'], 'labels': labels}]"),
    "images alone": ([IMAGES], "[(images, labels)]"),
    "images alone in a tuple": ([(IMAGES,)], "[(images, labels)]"),
    "numbers": ([(IMAGES, LABELS.tolist())], "torch.tensor(labels)"),
    "floats": ([(IMAGES, LABELS.float())], "labels.long()"),
    "maps": ([(IMAGES, torch.zeros(20, 8, 8).long())], "a class for each place"),
    "one number": ([(IMAGES, torch.tensor(1))], "not one for each image"),
}


@pytest.mark.parametrize("kind", LABELLED)
def test_labels_of_a_wrong_kind_say_what_to_write(kind):
    batches, advice = LABELLED[kind]
    with pytest.raises(gq.ArgumentError, match=re.escape(advice)):
        gq.fit_head(gq.from_float(cnn()), batches)


@pytest.mark.parametrize("labels", [LABELS, LABELS[:, None], [LABELS], LABELS.byte()])
def test_labels_are_taken_as_loaders_give_them(labels):
    assert gq.fit_head(gq.from_float(cnn()), [(IMAGES, labels)]).heads[0].images == 20


@pytest.mark.parametrize("named", [False, True])
def test_labels_follow_all_inputs_of_a_model(small, named):
    inputs = {"image": IMAGES, "mask": MASKS} if named else (IMAGES, MASKS)
    batch = {**inputs, "labels": LABELS} if named else (*inputs, LABELS)
    qmodel = gq.predict_quantized_params(
        of_two(), hypernetwork=small, example_inputs=inputs, calibration=[batch], head="fit"
    )
    assert gq.prediction_report(qmodel).kept["head.weight"] == "fitted to the labels"


@pytest.mark.parametrize("value", [99, 1, (8, 8), 8.0, "8", True])
def test_wrong_bits_of_the_first_and_last_layers_say_what_to_write(value):
    message = re.escape(f"first_last_bits={value!r} is not a bit-width") + ".*first_last_bits=8"
    with pytest.raises(gq.ArgumentError, match=message):
        gq.predict_quantized_params(cnn(), first_last_bits=value)
