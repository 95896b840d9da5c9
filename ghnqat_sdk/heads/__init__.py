"""A classifier for any number of classes, in closed form, from images and labels."""

from ghnqat_sdk.heads.fitting import HeadReport, fit_head, fit_head_to_folder, use_images

__all__ = ["HeadReport", "fit_head", "fit_head_to_folder", "use_images"]
