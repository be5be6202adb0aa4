"""Phantoms: CT-like scenes in HU, made from a seed, in which the cause of every label is known."""

from diffcf.data.phantom.brain import territory_scene
from diffcf.data.phantom.fibrosis import fibrosis_scene
from diffcf.data.phantom.nodule import nodule_scene
from diffcf.data.phantom.scene import Scene
from diffcf.data.phantom.shortcut import Shortcut

__all__ = ["Scene", "Shortcut", "fibrosis_scene", "nodule_scene", "territory_scene"]
