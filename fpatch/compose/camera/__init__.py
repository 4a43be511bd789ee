"""Camera stages: blur, resampling, noise, compression, shadows and occlusion."""
