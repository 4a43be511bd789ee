"""The embedded demo: rendered scenes and a small detector to attack."""

from fpatch.core.resource import define_loader
from fpatch.demo.tiny import load_brightness
from fpatch.demo.victim import load_trainable, load_victim

brightness = define_loader("brightness", load_brightness)
"""`brightness()` names the classifier of the tiny study in a config."""
tiny_detector = define_loader("tiny_detector", load_victim)
"""`tiny_detector("victim.safetensors")` names a trained `TinyDetector` in a config."""
trainable_detector = define_loader("trainable_detector", load_trainable)
"""`trainable_detector("victim.safetensors")` names one that a study trains; without weights, a fresh one."""
