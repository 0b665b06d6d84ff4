"""Lottery tickets for PyTorch Lightning: prune, rewind and retrain between fits."""

from lt_lightning.controls import Control, Ingredients, random_mask, reinit
from lt_lightning.criteria import Criterion, Evidence, magnitude, magnitude_increase, movement, random
from lt_lightning.layers import layer_weights
from lt_lightning.lottery import lottery
from lt_lightning.masks import Masks, Scores, Weights, density
from lt_lightning.prunable import Prunable
from lt_lightning.rewinds import Rewind, State, fine_tune, keep_weights, redraw, to_point
from lt_lightning.schedules import Schedule, explicit, geometric, one_shot, rounds_to
from lt_lightning.scopes import Scope, globally, layerwise
from lt_lightning.ticket import Ticket
from lt_lightning.ticketfile import TicketFile, load_ticket

__version__ = "0.1.0"

__all__ = [
    "Control",
    "Criterion",
    "Evidence",
    "Ingredients",
    "Masks",
    "Prunable",
    "Rewind",
    "Schedule",
    "Scope",
    "Scores",
    "State",
    "Ticket",
    "TicketFile",
    "Weights",
    "density",
    "explicit",
    "fine_tune",
    "geometric",
    "globally",
    "keep_weights",
    "layer_weights",
    "layerwise",
    "load_ticket",
    "lottery",
    "magnitude",
    "magnitude_increase",
    "movement",
    "one_shot",
    "random",
    "random_mask",
    "redraw",
    "reinit",
    "rounds_to",
    "to_point",
]
