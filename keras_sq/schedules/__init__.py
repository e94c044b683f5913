"""Ratio schedules: how much of the network is quantized at a step.

A schedule is a pure function from the optimizer's step (from 0) to the ratio,
the fraction of the filters that is quantized, or one for each layer. It knows
nothing of masks or the optimizer; the learning-rate companions live in
`learning_rates.py`. What a schedule is: `base.py`.

| made by | ratio |
|---|---|
| `short` | stages 0.5, 0.75, 0.875 in the first 15 % of the run, then 1 (the default) |
| `exponential` | stages 0.5, 0.75, 0.875, 1 (the paper's choice) |
| `average` | stages 0.2, 0.4, 0.6, 0.8, 1 |
| `finetune` | as `exponential`, for a start from a trained float network |
| `constant` | one ratio for all of the run |
| `Stages` | your own stages |
| `linear`, `cosine`, `cubic` | continuous, by the curve of that name |
| `Layerwise` | one layer after the other, each along one of the above |

Lengths are in steps, epochs or fractions of the run. `bind` turns the last two
into steps; the callback calls it when training starts.

References:
    - [Dong et al., 2017, sections 3.3 and 4.3](https://arxiv.org/abs/1708.01001)
"""

from keras_sq.schedules.base import RatioSchedule as RatioSchedule
from keras_sq.schedules.base import check_fits as check_fits
from keras_sq.schedules.base import deserialize as deserialize
from keras_sq.schedules.base import get as get
from keras_sq.schedules.base import serialize as serialize
from keras_sq.schedules.continuous import Continuous as Continuous
from keras_sq.schedules.continuous import cosine as cosine
from keras_sq.schedules.continuous import cubic as cubic
from keras_sq.schedules.continuous import linear as linear
from keras_sq.schedules.layerwise import Layerwise as Layerwise
from keras_sq.schedules.stages import SHORT_RAMP as SHORT_RAMP
from keras_sq.schedules.stages import Stages as Stages
from keras_sq.schedules.stages import average as average
from keras_sq.schedules.stages import constant as constant
from keras_sq.schedules.stages import exponential as exponential
from keras_sq.schedules.stages import finetune as finetune
from keras_sq.schedules.stages import short as short
