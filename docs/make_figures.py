"""Draws the README's picture of the demo's motions: python docs/make_figures.py"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import numpy as np

from skd_jax import report
from skd_jax.data.synthetic import MOTIONS, SyntheticSettings, render

settings = SyntheticSettings()
videos = {
    motion: render(motion, np.random.default_rng([3, number]), settings)
    for number, motion in enumerate(MOTIONS)
}
report.film_strip(videos, Path(__file__).with_name("demo_motions.png"))
