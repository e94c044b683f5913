"""How much of the networks of keras-hub is quantized, and whether it stays what it is.

Where keras-hub is installed (it is no dependency, not even of the tests):

    pip install keras-hub
    python tests/checks/keras_hub_coverage.py            # All networks below.
    python tests/checks/keras_hub_coverage.py BERT ViT

For each network, small and untrained: the part of its weights that is quantized, its
multiply-accumulates and what of them is unknown, the layers with matrices that stay
float; and the greatest difference of outputs at ratio 0 from the float network, after
saving and loading, and of the stripped network. It fails if one of these is not tiny,
or less than `LEAST` is quantized.
"""

import pathlib
import sys
import tempfile

import keras
import keras_hub
import numpy as np

import keras_sq
from keras_sq.analysis import operation_counts

LEAST = 0.95
TOLERANCE = 1e-4
LENGTH = 16
"""Tokens of a sequence."""

SIZES = {"num_layers": 2, "hidden_dim": 64, "intermediate_dim": 128}
TEXT = {**SIZES, "vocabulary_size": 1000, "max_sequence_length": 32}
HEADS = {**TEXT, "num_heads": 4, "dropout": 0.0}
GROUPED = {
    **SIZES,
    "vocabulary_size": 1000,
    "num_query_heads": 4,
    "num_key_value_heads": 2,
}
hub = keras_hub.models
NETWORKS = {
    "BERT": lambda: hub.BertBackbone(**HEADS),
    "GPT-2": lambda: hub.GPT2Backbone(**HEADS),
    "DistilBERT": lambda: hub.DistilBertBackbone(**HEADS),
    "RoBERTa": lambda: hub.RobertaBackbone(**HEADS),
    "OPT": lambda: hub.OPTBackbone(**HEADS),
    "BART": lambda: hub.BartBackbone(**HEADS),
    "F-Net": lambda: hub.FNetBackbone(**TEXT, dropout=0.0),
    "Gemma": lambda: hub.GemmaBackbone(**GROUPED, head_dim=16),
    "Mixtral": lambda: hub.MixtralBackbone(**GROUPED, num_experts=4),
    "Qwen-MoE": lambda: hub.QwenMoeBackbone(
        **GROUPED,
        moe_intermediate_dim=64,
        shared_expert_intermediate_dim=64,
        num_experts=4,
    ),
    "Qwen3-MoE": lambda: hub.Qwen3MoeBackbone(
        **GROUPED, moe_intermediate_dim=64, num_experts=4, head_dim=16
    ),
    "ViT": lambda: hub.ViTBackbone(
        image_shape=(32, 32, 3),
        patch_size=8,
        num_layers=2,
        num_heads=4,
        hidden_dim=64,
        mlp_dim=128,
    ),
}


def counts_of(model):
    """Returns the operation counts of a network for sequences of one length."""

    def fixed(tensor):
        shape = [LENGTH if size is None else size for size in tensor.shape[1:]]
        return keras.Input(shape, dtype=tensor.dtype, name=tensor.name)

    x = keras.tree.map_structure(fixed, model.input)
    return operation_counts.count_operations(keras.Model(x, model(x)))


def inputs(model, seed=0):
    """Returns a batch of random tokens, all of them valid, or of images."""
    rng = np.random.default_rng(seed)

    def batch(tensor):
        shape = [2, *(LENGTH if size is None else size for size in tensor.shape[1:])]
        if "mask" in tensor.name:
            return np.ones(shape, "int32")
        if "int" in tensor.dtype:
            most = 2 if "segment" in tensor.name else 1000
            return rng.integers(0, most, shape).astype("int32")
        return rng.normal(size=shape).astype("float32")

    return keras.tree.map_structure(batch, model.input)


def difference(left, right):
    pairs = zip(keras.tree.flatten(left), keras.tree.flatten(right), strict=True)
    return max(float(np.abs(np.asarray(a) - np.asarray(b)).max()) for a, b in pairs)


def check(name, folder):
    """Prints what became of a network; returns whether all is well."""
    backbone = NETWORKS[name]()
    model = backbone
    if isinstance(backbone.input, dict):
        # One without the argument checks of a class of its own.
        model = keras.Model(backbone.input, backbone.output)
    quantized = keras_sq.quantize_model(model, "ternary", overrides={}, seed=0)
    table = keras_sq.summary(quantized, print_fn=lambda text: None)
    weights = sum(row.weights for row in table.rows)
    part = sum(row.weights for row in table.rows if row.error is not None) / weights
    print(f"{name}: {part:.1%} of {weights:,} weights quantized")
    macs = [count.macs for count in counts_of(model).values()]
    print(f"  multiply-accumulates: {sum(x or 0 for x in macs):,} for {LENGTH} tokens")
    unknown = sum(count is None for count in macs)
    if unknown:
        print(f"  and those of {unknown} weights that are unknown")
    for outcome in quantized.quantization_report:
        if outcome.quantizer is None:
            print(f"  float: {outcome.path}: {outcome.reason}")
    x = inputs(model)
    keras_sq.set_ratio(quantized, 0.0)
    at_zero = difference(quantized(x, training=True), model(x, training=True))
    keras_sq.set_ratio(quantized, 1.0)
    expected = quantized(x, training=False)
    quantized.save(folder / "hub.keras")
    loaded = keras.saving.load_model(folder / "hub.keras")
    after_loading = difference(loaded(x, training=False), expected)
    plain = keras_sq.strip_quantization(loaded)
    stripped = difference(plain(x, training=False), expected)
    print(
        f"  differences: {at_zero:.1e} at ratio 0, {after_loading:.1e} loaded, "
        f"{stripped:.1e} stripped"
    )
    return part >= LEAST and max(at_zero, after_loading, stripped) < TOLERANCE


def main():
    names = sys.argv[1:] or list(NETWORKS)
    with tempfile.TemporaryDirectory() as folder:
        well = [check(name, pathlib.Path(folder)) for name in names]
    print(f"{sum(well)} of {len(well)} networks as they should be")
    return 0 if all(well) else 1


if __name__ == "__main__":
    sys.exit(main())
