"""What a camera does: blur, resampling, noise, compression, shadows."""
