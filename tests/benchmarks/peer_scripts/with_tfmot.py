"""tfmot: 8 bits learned with fake quantization, and clusters of values a kernel."""

import harness
import tensorflow as tf
import tensorflow_model_optimization as tfmot


def make(work, method):
    """Returns the wrapped network; `method` is `"int8"` or `"clusters-3"`, ..."""
    model = work.network()
    if method == "int8":
        return tfmot.quantization.keras.quantize_model(model)
    count = int(method.split("-")[1])
    clustering = tfmot.clustering.keras
    return clustering.cluster_weights(
        model,
        number_of_clusters=count,
        cluster_centroids_init=clustering.CentroidInitialization.KMEANS_PLUS_PLUS,
    )


def deployed(model, method, work):
    """Returns the network without what was there for the training."""
    if method == "int8":
        return model
    return tfmot.clustering.keras.strip_clustering(model)


def write(model, path, method, work):
    """Converts as its guides do."""
    settings = {}
    if method == "int8":
        settings["optimizations"] = [tf.lite.Optimize.DEFAULT]
    harness.convert(model, path, **settings)


PEER = harness.Peer(
    ("tensorflow-model-optimization", "tensorflow", "tf-keras"),
    make,
    write,
    deployed=deployed,
)

if __name__ == "__main__":
    harness.start(PEER)
