"""The outlines of all 48 product shapes."""

from coral_lab.shapes_accessories import ACCESSORIES
from coral_lab.shapes_clothes import CLOTHES
from coral_lab.shapes_home import HOME

SHAPES = ACCESSORIES | CLOTHES | HOME
"""{(class, shape): (centre of the brand badge, parts from back to front)}, in unit coordinates."""
