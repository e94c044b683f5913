"""Layers and models of a user's own, for the tests.

A module by itself, because a fresh process must be able to import it.
"""

import keras
from keras import layers, ops


def register(cls):
    return keras.saving.register_keras_serializable("custom_layers")(cls)


class WithUnits(keras.layers.Layer):
    def __init__(self, units, **kwargs):
        super().__init__(**kwargs)
        self.units = units

    def get_config(self):
        return super().get_config() | {"units": self.units}


@register
class MadeInInit(WithUnits):
    """Makes its layers in the constructor and builds them in `build`."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.inner = layers.Dense(units, activation="tanh")
        self.norm = layers.BatchNormalization()

    def build(self, input_shape):
        self.inner.build(input_shape)
        self.norm.build((*input_shape[:-1], self.units))

    def call(self, x, training=None):
        return self.norm(self.inner(x), training=training)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)


@register
class WithoutBuild(WithUnits):
    """Leaves building to its call; holds layers in a list and a dict."""

    def __init__(self, units, **kwargs):
        super().__init__(units, **kwargs)
        self.steps = [layers.Dense(units), layers.Dense(units, activation="relu")]
        self.heads = {"left": layers.Dense(2), "right": MadeInInit(2)}

    def call(self, x):
        for step in self.steps:
            x = step(x)
        return ops.concatenate([self.heads["left"](x), self.heads["right"](x)], -1)


@register
class MadeInBuild(WithUnits):
    """Makes its layers only when it knows its input."""

    def build(self, input_shape):
        self.inner = layers.Dense(input_shape[-1], name="inner")
        self.inner.build(input_shape)
        self.scale = self.add_weight(shape=(input_shape[-1],), name="scale")
        self.outer = layers.Dense(self.units)
        self.outer.build(input_shape)

    def call(self, x):
        return self.outer(self.inner(x) * self.scale)

    def compute_output_shape(self, input_shape):
        return (*input_shape[:-1], self.units)


@register
class TransformerBlock(layers.Layer):
    """Attention and a two-layer network, each with a residual connection."""

    def __init__(self, heads, width, **kwargs):
        super().__init__(**kwargs)
        self.heads, self.width = heads, width
        self.attention = layers.MultiHeadAttention(heads, width // heads, dropout=0.1)
        self.mlp = keras.Sequential(
            [layers.Dense(2 * width, activation="gelu"), layers.Dense(width)]
        )
        self.norms = [layers.LayerNormalization(), layers.LayerNormalization()]

    def call(self, x, training=None):
        y = self.norms[0](x)
        x = x + self.attention(y, y, training=training)
        return x + self.mlp(self.norms[1](x))

    def get_config(self):
        return super().get_config() | {"heads": self.heads, "width": self.width}


@register
class Subclassed(keras.Model):
    """A model in a class of its own, with layers in lists and dicts."""

    def __init__(self, units=4, **kwargs):
        super().__init__(**kwargs)
        self.units = units
        self.stem = layers.Dense(units, activation="relu", name="stem")
        self.blocks = [[layers.Dense(units)], [MadeInInit(units)]]
        self.heads = {"out": {"logits": layers.Dense(3, name="logits")}}
        self.dropout = layers.Dropout(0.5)

    def call(self, x, training=None):
        x = self.stem(x)
        for (block,) in self.blocks:
            x = block(x)
        return self.heads["out"]["logits"](self.dropout(x, training=training))

    def get_config(self):
        return super().get_config() | {"units": self.units}


@register
class FunctionalSubclass(keras.Model):
    """A class whose constructor draws a graph."""

    def __init__(self, units=4, **kwargs):
        inputs = keras.Input((5,))
        x = layers.Dense(units, activation="relu", name="first")(inputs)
        super().__init__(inputs, layers.Dense(3, name="second")(x), **kwargs)
        self.units = units

    def get_config(self):
        return {"units": self.units, "name": self.name}


@register
class NoTrainingArgument(keras.Model):
    """A model that Keras does not tell whether it trains."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.inner = layers.Dense(4)

    def call(self, x):
        return self.inner(x)


@register
class Distiller(keras.Model):
    """Trains a network inside; has no call of its own."""

    def __init__(self, student, **kwargs):
        super().__init__(**kwargs)
        self.student = student

    def call(self, x, training=None):
        return self.student(x, training=training)

    def train_step(self, *args):
        jax = keras.backend.backend() == "jax"
        return self._step_of_jax(*args) if jax else self._step_of_tensorflow(*args)

    def _step_of_jax(self, state, data):
        import jax

        def loss_of(trainable, others):
            y_pred, others = self.stateless_call(trainable, others, x, training=True)
            return self.compute_loss(x, y, y_pred), others

        (x, y), (trainable, others, optimizer, metrics) = data, state
        differentiate = jax.value_and_grad(loss_of, has_aux=True)
        (loss, others), gradients = differentiate(trainable, others)
        trainable, optimizer = self.optimizer.stateless_apply(
            optimizer, gradients, trainable
        )
        return {"loss": loss}, (trainable, others, optimizer, metrics)

    def _step_of_tensorflow(self, data):
        import tensorflow as tf

        x, y = data
        with tf.GradientTape() as tape:
            loss = self.compute_loss(x, y, self.student(x, training=True))
        weights = self.student.trainable_variables
        self.optimizer.apply_gradients(
            zip(tape.gradient(loss, weights), weights, strict=True)
        )
        return {"loss": loss}
