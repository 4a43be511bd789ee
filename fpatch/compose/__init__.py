"""Compose stages: geometry, color and camera of whole images."""

from fpatch.compose.augmentation import augmentation
from fpatch.compose.camera.blur import blur
from fpatch.compose.camera.defocus import defocus
from fpatch.compose.camera.erasing import erasing
from fpatch.compose.camera.jpeg import jpeg
from fpatch.compose.camera.motion_blur import motion_blur
from fpatch.compose.camera.read_noise import read_noise
from fpatch.compose.camera.resample import resample
from fpatch.compose.camera.shadow import shadow
from fpatch.compose.color.color_jitter import color_jitter
from fpatch.compose.color.contrast import contrast
from fpatch.compose.color.exposure import exposure
from fpatch.compose.color.gamma import gamma
from fpatch.compose.color.grayscale import grayscale
from fpatch.compose.color.hue import hue
from fpatch.compose.color.invert import invert
from fpatch.compose.color.saturation import saturation
from fpatch.compose.color.solarize import solarize
from fpatch.compose.color.white_balance import white_balance
from fpatch.compose.geometric.affine import affine
from fpatch.compose.geometric.horizontal_flip import horizontal_flip
from fpatch.compose.geometric.resized_crop import resized_crop
from fpatch.compose.geometric.tilt import tilt
from fpatch.compose.geometric.translation import translation
from fpatch.compose.geometric.vertical_flip import vertical_flip

__all__ = [
    "affine",
    "augmentation",
    "blur",
    "color_jitter",
    "contrast",
    "defocus",
    "erasing",
    "exposure",
    "gamma",
    "grayscale",
    "horizontal_flip",
    "hue",
    "invert",
    "jpeg",
    "motion_blur",
    "read_noise",
    "resample",
    "resized_crop",
    "saturation",
    "shadow",
    "solarize",
    "tilt",
    "translation",
    "vertical_flip",
    "white_balance",
]
