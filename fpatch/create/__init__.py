"""Create stages: parameterizations write a patch, transforms and print models change it."""

from fpatch.create.parameterizations.fourier import fourier
from fpatch.create.parameterizations.generator import generator
from fpatch.create.parameterizations.palette import palette
from fpatch.create.parameterizations.pixels import pixels
from fpatch.create.parameterizations.tanh import tanh
from fpatch.create.print._icc import icc_profile
from fpatch.create.print.proof_table import proof_table
from fpatch.create.print.snap import snap
from fpatch.create.print.soft_proof import soft_proof
from fpatch.create.transforms.high_pass import high_pass
from fpatch.create.transforms.low_pass import low_pass
from fpatch.create.transforms.mask import mask, mask_image
from fpatch.create.transforms.reflect import reflect
from fpatch.create.transforms.resize import resize
from fpatch.create.transforms.save import save
from fpatch.create.transforms.scroll import scroll
from fpatch.create.transforms.spectrum import spectrum
from fpatch.create.transforms.stack import stack
from fpatch.create.transforms.symmetric import symmetric
from fpatch.create.transforms.tile import tile

__all__ = [
    "fourier",
    "generator",
    "high_pass",
    "icc_profile",
    "low_pass",
    "mask",
    "mask_image",
    "palette",
    "pixels",
    "proof_table",
    "reflect",
    "resize",
    "save",
    "scroll",
    "snap",
    "soft_proof",
    "spectrum",
    "stack",
    "symmetric",
    "tanh",
    "tile",
]
