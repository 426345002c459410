"""The site: builds the model anew for every message, as the quickstart does, and trains one epoch of one batch."""

import time

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from .task import EXAMPLES, load_data, load_model

app = ClientApp()
Numbers = dict[str, int | float | list[int] | list[float]]


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this site's examples; ``seconds`` is what ``fit`` took."""
    model = load_model(float(context.run_config["megabytes"]))
    model.set_weights(message.content.array_records["arrays"].to_numpy_ndarrays())
    x, y = load_data(int(context.node_config["partition-id"]))
    start = time.monotonic()
    loss = model.fit(x, y, epochs=1, batch_size=EXAMPLES, verbose=0).history["loss"][-1]
    metrics: Numbers = {"loss": float(loss), "num-examples": len(x), "seconds": time.monotonic() - start}
    arrays = ArrayRecord(model.get_weights())
    return Message(content=RecordDict({"arrays": arrays, "metrics": MetricRecord(metrics)}), reply_to=message)


@app.evaluate()
def evaluate(message: Message, context: Context) -> Message:
    """Evaluate on other examples of this site."""
    model = load_model(float(context.run_config["megabytes"]))
    model.set_weights(message.content.array_records["arrays"].to_numpy_ndarrays())
    x, y = load_data(1000 + int(context.node_config["partition-id"]))
    start = time.monotonic()
    loss, accuracy = model.evaluate(x, y, verbose=0)
    metrics: Numbers = {"loss": loss, "accuracy": accuracy, "num-examples": len(x), "seconds": time.monotonic() - start}
    return Message(content=RecordDict({"metrics": MetricRecord(metrics)}), reply_to=message)
