"""The embedded demo: rendered scenes and a small detector to attack."""

from fpatch.core.resource import define_loader
from fpatch.demo.victim import load_victim

tiny_detector = define_loader("tiny_detector", load_victim)
"""`tiny_detector("victim.safetensors")` names a trained `TinyDetector` in a config."""
