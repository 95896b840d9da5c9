"""A classifier for any number of classes, in closed form, from images and labels.

fitting.py      `fit_head`, in one pass over the images
classifiers.py  where classifiers are, and what is gathered for them
probe.py        whether a model answers as its head's scores say
labels.py       batches with labels
kept.py         which of them a prediction leaves alone
ridge.py        ridge regression from sums
unlike.py       how images differ from those that are known
"""

from ghnqat_sdk.heads.fitting import HeadReport, calibrate_and_fit, fit_head, fit_head_to_folder
from ghnqat_sdk.heads.kept import advice_on, heads_to_keep

__all__ = [
    "HeadReport",
    "advice_on",
    "calibrate_and_fit",
    "fit_head",
    "fit_head_to_folder",
    "heads_to_keep",
]
