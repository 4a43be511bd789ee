"""Run folders: train, resume, evaluate, replay and compare in them."""
