"""Tensor maths: geometry, color, spectra, sampling, the implant kernel, detections and intervals."""
