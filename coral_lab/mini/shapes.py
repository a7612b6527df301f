"""The outlines of all 48 product shapes."""

from coral_lab.mini.shapes_accessories import ACCESSORIES
from coral_lab.mini.shapes_clothes import CLOTHES
from coral_lab.mini.shapes_home import HOME

SHAPES = ACCESSORIES | CLOTHES | HOME
"""{(class, shape): (centre of the brand badge, parts from back to front)}, in unit coordinates."""
