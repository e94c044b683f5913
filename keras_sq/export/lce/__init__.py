"""Files for Larq Compute Engine, whose kernels compute on single bits.

A convolution whose weights and inputs are all ±1 needs no multiplication: XOR 32
of the one with 32 of the other, and count. The `larq-compute-engine` package has a
converter that makes custom operators of such convolutions (`LceQuantize`,
`LceBconv2d`...), and an interpreter that runs them. What lives here: making such a
file (`making.py`), running it (`runtime.py`), which weights it holds as bits
(`kernels.py`), its check (`checks.py`). The package is an optional extra and is
imported nowhere else.

References:
    - [Bannink et al., 2021](https://arxiv.org/abs/2011.09398)
"""
