"""Small networks in the style of the Keras examples, as strangers bring them.

A network is one function that returns a `Network`; `test_zoo.py` takes each of them
the whole way: quantize, fit, save, load, strip, and every target's file in the
interpreter.
"""

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import keras
import numpy as np
from keras import layers as L
from keras import ops

import keras_sq

TARGETS = ("float", "fast", "int4", "int2", "small", "int8", "mcu")

registered = keras.saving.register_keras_serializable("keras_sq_zoo")


def normal(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype("float32")


def integers(high, *shape, seed=0):
    return np.random.default_rng(seed).integers(0, high, shape).astype("int32")


def fit_by_compile(network, sq_model):
    """Trains as most do."""
    sq_model.compile(keras.optimizers.Adam(1e-3), network.loss)
    sq_model.fit(
        network.x,
        network.y,
        batch_size=4,
        epochs=4,
        verbose=0,
        callbacks=[keras_sq.callbacks.StochasticQuantization()],
    )


def whole(model):
    return model


@dataclasses.dataclass(frozen=True)
class Network:
    """A float network and what is done with it.

    Attributes:
        model: The model.
        x: Inputs, 16 examples.
        y: What it learns.
        loss: The loss.
        fit: `fit(network, sq_model)` trains the quantized model.
        refuses: Target -> what the error says that refuses it.
        settings: Of `quantize_model`.
        deployed: Takes the trained model to what is exported; by default all of it.
    """

    model: Any
    x: Any
    y: Any
    loss: Any = "mse"
    fit: Callable[[Any, Any], None] = fit_by_compile
    refuses: Mapping[str, str] = dataclasses.field(default_factory=dict)
    settings: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    deployed: Callable[[Any], Any] = whole


def unet():
    """keras.io, "Image segmentation with a U-Net-like architecture"."""
    inputs = keras.Input((16, 16, 3))
    x = L.Conv2D(8, 3, strides=2, padding="same")(inputs)
    x = before = L.Activation("relu")(L.BatchNormalization()(x))
    for filters in (12,):
        x = L.SeparableConv2D(filters, 3, padding="same")(L.Activation("relu")(x))
        x = L.BatchNormalization()(x)
        x = L.MaxPooling2D(3, strides=2, padding="same")(x)
        shortcut = L.Conv2D(filters, 1, strides=2, padding="same")(before)
        x = before = L.add([x, shortcut])
    for filters in (12, 8):
        x = L.Conv2DTranspose(filters, 3, padding="same")(L.Activation("relu")(x))
        x = L.UpSampling2D(2)(L.BatchNormalization()(x))
        shortcut = L.Conv2D(filters, 1, padding="same")(L.UpSampling2D(2)(before))
        x = before = L.add([x, shortcut])
    outputs = L.Conv2D(3, 3, activation="softmax", padding="same")(x)
    return Network(
        keras.Model(inputs, outputs),
        normal(16, 16, 16, 3),
        integers(3, 16, 16, 16),
        "sparse_categorical_crossentropy",
    )


def tabular():
    """keras.io, "Structured data classification": statistics and categories."""
    numbers = np.float32([40, 3, -7]) + np.float32([9, 0.2, 4]) * normal(16, 3)
    codes = integers(4, 16, 1, seed=1) * 10
    normalization, lookup = L.Normalization(), L.IntegerLookup(output_mode="one_hot")
    normalization.adapt(numbers)
    lookup.adapt(codes)
    first = keras.Input((3,), name="numbers")
    second = keras.Input((1,), name="code", dtype="int64")
    x = L.Concatenate()([normalization(first), lookup(second)])
    x = L.Dropout(0.1)(L.Dense(24, activation="relu")(x))
    model = keras.Model(
        {"numbers": first, "code": second}, L.Dense(1, activation="sigmoid")(x)
    )
    tables = "integer_lookup"
    return Network(
        model,
        {"numbers": numbers, "code": codes},
        integers(2, 16, 1).astype("float32"),
        "binary_crossentropy",
        refuses=dict.fromkeys(TARGETS, tables),
    )


def siamese():
    """Two images through one tower; batch norm before the dense layers."""
    tower = keras.Sequential(
        [
            keras.Input((12, 12, 1)),
            L.Conv2D(8, 3, activation="tanh"),
            L.AveragePooling2D(2),
            L.Flatten(),
            L.BatchNormalization(),
            L.Dense(16, activation="tanh"),
        ],
        name="tower",
    )
    left, right = keras.Input((12, 12, 1)), keras.Input((12, 12, 1))
    distance = ops.sqrt(
        ops.sum(ops.square(tower(left) - tower(right)), axis=1, keepdims=True) + 1e-3
    )
    outputs = L.Dense(1, activation="sigmoid")(L.BatchNormalization()(distance))
    return Network(
        keras.Model([left, right], outputs),
        [normal(16, 12, 12, 1), normal(16, 12, 12, 1, seed=1)],
        integers(2, 16, 1).astype("float32"),
        "binary_crossentropy",
        refuses={"mcu": "."},
    )


def detector():
    """Boxes in pixels beside class scores, as outputs of their own."""
    inputs = keras.Input((16, 16, 3))
    x = L.Conv2D(8, 3, strides=2, activation="relu")(inputs)
    x = L.Flatten()(L.DepthwiseConv2D(3, activation="relu")(x))
    x = L.Dense(16, activation="relu")(x)
    outputs = {
        "boxes": L.Rescaling(300.0)(L.Dense(4, activation="sigmoid")(x)),
        "scores": L.Dense(3, activation="softmax")(x),
    }
    y = {"boxes": 300 * np.abs(normal(16, 4)), "scores": np.eye(3)[integers(3, 16)]}
    return Network(
        keras.Model(inputs, outputs),
        normal(16, 16, 16, 3),
        y,
        {"boxes": "mae", "scores": "categorical_crossentropy"},
    )


def wavenet():
    """Gated, dilated, causal convolutions with skips."""
    inputs = keras.Input((32, 1))
    x, skips = L.Conv1D(8, 1)(inputs), []
    for rate in (1, 2, 4):
        filtered = L.Conv1D(8, 2, dilation_rate=rate, padding="causal")(x)
        gate = L.Conv1D(8, 2, dilation_rate=rate, padding="causal")(x)
        z = L.Activation("tanh")(filtered) * L.Activation("sigmoid")(gate)
        skips.append(L.Conv1D(8, 1)(z))
        x = x + skips[-1]
    outputs = L.Conv1D(4, 1)(L.Activation("relu")(L.add(skips)))
    return Network(
        keras.Model(inputs, outputs), normal(16, 32, 1), normal(16, 32, 4, seed=1)
    )


def next_frame():
    """keras.io, "Next-frame video prediction with ConvLSTM"."""
    inputs = keras.Input((4, 8, 8, 1))
    x = L.ConvLSTM2D(4, 3, padding="same", return_sequences=True)(inputs)
    x = L.BatchNormalization()(x)
    x = L.ConvLSTM2D(4, 1, padding="same", return_sequences=True)(x)
    outputs = L.Conv3D(1, 3, activation="sigmoid", padding="same")(x)
    loops = "loops over time"
    return Network(
        keras.Model(inputs, outputs),
        normal(16, 4, 8, 8, 1),
        np.abs(np.tanh(normal(16, 4, 8, 8, 1, seed=1))),
        "binary_crossentropy",
        refuses={"int8": loops, "mcu": loops},
    )


@registered
class Positions(L.Layer):
    """Token and position embeddings, as in the examples."""

    def __init__(self, length, words, size, **kwargs):
        super().__init__(**kwargs)
        self.length, self.words, self.size = length, words, size
        self.tokens = L.Embedding(words, size)
        self.positions = L.Embedding(length, size)

    def call(self, x):
        return self.tokens(x) + self.positions(ops.arange(self.length))

    def get_config(self):
        own = {"length": self.length, "words": self.words, "size": self.size}
        return {**super().get_config(), **own}


def transformer():
    """Tokens, positions, grouped-query attention, a feed-forward part."""
    inputs = keras.Input((8,), dtype="int32")
    x = Positions(8, 20, 16)(inputs)
    attended = L.GroupQueryAttention(4, num_query_heads=4, num_key_value_heads=2)(x, x)
    x = L.LayerNormalization()(x + attended)
    x = L.LayerNormalization()(x + L.Dense(16)(L.Dense(32, activation="gelu")(x)))
    outputs = L.Dense(2)(L.GlobalAveragePooling1D()(x))
    return Network(
        keras.Model(inputs, outputs),
        integers(20, 16, 8),
        integers(2, 16),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
        refuses={"mcu": "."},
    )


@registered
class Sampling(L.Layer):
    """Draws z from the mean and the logarithm of the variance."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.seed_generator = keras.random.SeedGenerator(1)

    def call(self, inputs):
        mean, log_variance = inputs
        noise = keras.random.normal(ops.shape(mean), seed=self.seed_generator)
        return mean + ops.exp(0.5 * log_variance) * noise


@registered
class VAE(keras.Model):
    """keras.io's variational autoencoder, with the models in its configuration."""

    def __init__(self, encoder, decoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder, self.decoder = encoder, decoder

    def call(self, x, training=None):
        mean, log_variance, z = self.encoder(x, training=training)
        divergence = -0.5 * (
            1 + log_variance - ops.square(mean) - ops.exp(log_variance)
        )
        self.add_loss(ops.mean(ops.sum(divergence, axis=1)))
        return self.decoder(z, training=training)

    def get_config(self):
        serialize = keras.saving.serialize_keras_object
        models = {
            "encoder": serialize(self.encoder),
            "decoder": serialize(self.decoder),
        }
        return {**super().get_config(), **models}

    @classmethod
    def from_config(cls, config):
        deserialize = keras.saving.deserialize_keras_object
        models = {key: deserialize(config[key]) for key in ("encoder", "decoder")}
        return cls(**{**config, **models})


def vae():
    inputs = keras.Input((12, 12, 1))
    x = L.Conv2D(8, 3, activation="relu", strides=2, padding="same")(inputs)
    x = L.Dense(16, activation="relu")(L.Flatten()(x))
    mean, log_variance = L.Dense(2)(x), L.Dense(2)(x)
    z = Sampling()([mean, log_variance])
    encoder = keras.Model(inputs, [mean, log_variance, z], name="encoder")
    latent = keras.Input((2,))
    x = L.Reshape((6, 6, 4))(L.Dense(144, activation="relu")(latent))
    x = L.Conv2DTranspose(8, 3, activation="relu", strides=2, padding="same")(x)
    x = L.Conv2DTranspose(1, 3, activation="sigmoid", padding="same")(x)
    model = VAE(encoder, keras.Model(latent, x, name="decoder"))
    images = np.abs(np.tanh(normal(16, 12, 12, 1)))
    model(images)
    return Network(model, images, images, deployed=lambda model: model.decoder)


@registered
class GAN(keras.Model):
    """keras.io's DCGAN: two networks, two optimizers, a training step of its own."""

    def __init__(self, generator, discriminator, **kwargs):
        super().__init__(**kwargs)
        self.generator, self.discriminator = generator, discriminator
        self.seed_generator = keras.random.SeedGenerator(2)

    def compile(self, g_optimizer, d_optimizer):
        super().compile()
        self.g_optimizer, self.d_optimizer = g_optimizer, d_optimizer

    def call(self, noise):
        return self.generator(noise)

    def train_step(self, images):
        import tensorflow as tf

        loss = keras.losses.BinaryCrossentropy(from_logits=True)
        noise = keras.random.normal((ops.shape(images)[0], 8), seed=self.seed_generator)
        with tf.GradientTape() as tape:
            both = ops.concatenate([self.generator(noise, training=True), images])
            logits = self.discriminator(both, training=True)
            count = ops.shape(images)[0]
            labels = ops.concatenate([ops.ones((count, 1)), ops.zeros((count, 1))])
            d_loss = loss(labels, logits)
        weights = self.discriminator.trainable_weights
        gradients = tape.gradient(d_loss, weights)
        self.d_optimizer.apply_gradients(zip(gradients, weights, strict=True))
        with tf.GradientTape() as tape:
            logits = self.discriminator(self.generator(noise, training=True))
            g_loss = loss(ops.zeros_like(logits), logits)
        weights = self.generator.trainable_weights
        gradients = tape.gradient(g_loss, weights)
        self.g_optimizer.apply_gradients(zip(gradients, weights, strict=True))
        return {"d_loss": d_loss, "g_loss": g_loss}


def fit_gan(network, sq_model):
    discriminator = keras.Sequential(
        [
            keras.Input((8, 8, 1)),
            L.Conv2D(8, 3, strides=2),
            L.LeakyReLU(0.2),
            L.Flatten(),
            L.Dense(1),
        ]
    )
    gan = GAN(sq_model, discriminator)
    gan.compile(keras.optimizers.Adam(1e-3), keras.optimizers.Adam(1e-3))
    gan.fit(
        network.y,
        batch_size=4,
        epochs=4,
        verbose=0,
        callbacks=[keras_sq.callbacks.StochasticQuantization()],
    )


def generator():
    """The generator of a GAN, trained by optimizers that `compile` does not know."""
    noise = keras.Input((8,))
    x = L.Reshape((4, 4, 4))(L.LeakyReLU(0.2)(L.Dense(64)(noise)))
    x = L.Conv2DTranspose(8, 4, strides=2, padding="same")(x)
    outputs = L.Conv2D(1, 3, padding="same", activation="sigmoid")(L.LeakyReLU(0.2)(x))
    images = np.abs(np.tanh(normal(16, 8, 8, 1)))
    return Network(keras.Model(noise, outputs), normal(16, 8), images, fit=fit_gan)


@registered
class Transposed(L.Layer):
    """The decoder of an autoencoder with tied weights."""

    def __init__(self, encoder, **kwargs):
        super().__init__(**kwargs)
        self.encoder = encoder

    def build(self, shape):
        size = self.encoder.kernel.shape[0]
        self.bias = self.add_weight(shape=(size,), initializer="zeros", name="bias")

    def call(self, x):
        return ops.matmul(x, ops.transpose(self.encoder.kernel)) + self.bias

    def get_config(self):
        encoder = keras.saving.serialize_keras_object(self.encoder)
        return {**super().get_config(), "encoder": encoder}

    @classmethod
    def from_config(cls, config):
        encoder = keras.saving.deserialize_keras_object(config["encoder"])
        return cls(**{**config, "encoder": encoder})


def autoencoder():
    """Decodes by the transposed kernels of the encoder."""
    inputs = keras.Input((48,))
    first, second = L.Dense(24, activation="tanh"), L.Dense(12, activation="tanh")
    x = second(first(inputs))
    outputs = Transposed(first)(L.Activation("tanh")(Transposed(second)(x)))
    images = normal(16, 48)
    return Network(keras.Model(inputs, outputs), images, images)


def streaming():
    """One step of a recurrent network: its state is an input and an output."""
    frame, state = keras.Input((1, 12), name="frame"), keras.Input((16,), name="state")
    x, after = L.GRU(16, return_state=True, unroll=True)(frame, initial_state=state)
    outputs = {"logits": L.Dense(4)(x), "after": after}
    return Network(
        keras.Model({"frame": frame, "state": state}, outputs),
        {"frame": normal(16, 1, 12), "state": np.tanh(normal(16, 16, seed=1))},
        {"logits": normal(16, 4), "after": np.tanh(normal(16, 16, seed=2))},
        {"logits": "mse", "after": "mse"},
    )


def squeeze_and_excite():
    """A mobile network's block: depthwise, squeeze-and-excite, hard swish."""
    inputs = keras.Input((16, 16, 3))
    x = L.Conv2D(16, 3, strides=2, padding="same", use_bias=False)(inputs)
    x = L.Activation("hard_silu")(L.BatchNormalization()(x))
    y = L.DepthwiseConv2D(3, padding="same", use_bias=False)(x)
    y = L.Activation("relu6")(L.BatchNormalization()(y))
    gate = L.GlobalAveragePooling2D(keepdims=True)(y)
    gate = L.Conv2D(16, 1, activation="hard_sigmoid")(
        L.Conv2D(4, 1, activation="relu")(gate)
    )
    x = x + L.BatchNormalization()(L.Conv2D(16, 1, use_bias=False)(y * gate))
    outputs = L.Dense(5, activation="softmax")(L.GlobalAveragePooling2D()(x))
    return Network(
        keras.Model(inputs, outputs),
        normal(16, 16, 16, 3),
        integers(5, 16),
        "sparse_categorical_crossentropy",
    )


NETWORKS = {
    make.__name__: make
    for make in (
        unet,
        tabular,
        siamese,
        detector,
        wavenet,
        next_frame,
        transformer,
        vae,
        generator,
        autoencoder,
        streaming,
        squeeze_and_excite,
    )
}
