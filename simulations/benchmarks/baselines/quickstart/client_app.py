"""A site: builds the model anew for every message, as the quickstart does, or keeps one for each process."""

from functools import cache
from typing import Any

from flwr.app import ArrayRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from .task import load_data, load_model

app = ClientApp()


@app.train()
def train(message: Message, context: Context) -> Message:
    """Train on this site's examples."""
    config = context.run_config
    model = (_kept if config["keep"] else load_model)(str(config["model"]), float(config["rate"]))
    model.set_weights(message.content.array_records["arrays"].to_numpy_ndarrays())
    x, y = load_data(str(config["data"]), int(context.node_config["partition-id"]))
    history = model.fit(x, y, epochs=int(config["epochs"]), batch_size=int(config["batch"]), verbose=0).history
    metrics = MetricRecord({"loss": float(history["loss"][-1]), "num-examples": len(x)})
    content = RecordDict({"arrays": ArrayRecord(model.get_weights()), "metrics": metrics})
    return Message(content=content, reply_to=message)


@cache
def _kept(name: str, rate: float) -> Any:
    return load_model(name, rate)
