"""The papers' experiments, and what trains, compares and sweeps them."""

from keras_sq.experiments.catalogue import Experiment as Experiment
from keras_sq.experiments.catalogue import get as get
from keras_sq.experiments.catalogue import names as names
