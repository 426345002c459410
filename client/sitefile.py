"""``site.toml``: where a site's data lie, what its policy allows, and how its trainer runs.

``load_site`` is the only way in; every mistake becomes one line that names the key. The tables of ``[data]`` differ by
``format`` and stand with their readers in ``client.data``; the policy is ``client.policy``.
"""

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, create_model

from fedretrain.contract import Contract
from fedretrain.dataset import Dataset
from fedretrain.errors import ConfigurationError
from fedretrain.job import Reference
from fedretrain.tomlfile import Section, check_toml, read_toml, shaped

from .data.section import FORMATS, DataSection
from .policy import Policy

Module = Annotated[
    str, shaped(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*", 'the name of a module, such as "our_layers" or "ours.layers"')
]

MetricName = Annotated[str, shaped(r"[A-Za-z][A-Za-z0-9_-]{0,40}", 'the name of a metric, such as "revenue"')]


class TrainerSection(Section):
    """The process that touches data."""

    backend: Reference = Field("client.trainer:Trainer", description="module:class that trains")
    threads: int = Field(1, ge=1, le=1024, description="threads of one operation; the same at every site of a job")
    memory_mb: int | None = Field(None, ge=64, description="most memory the trainer may use, in MiB")
    nice: int = Field(5, ge=0, le=19, description="19 gives way to every other process")
    allowed_uids: tuple[int, ...] = Field((), description="users whose executor may connect, beside the trainer's own")
    allow_modules: tuple[Module, ...] = Field((), description="installed modules whose layer classes may be built")


class MetricSection(Section):
    """A business metric: a number that a function of the site's own gives when a check is asked for.

    The function takes nothing, or one argument: the arrays of the recent examples by the names they have in an npz
    (``fedretrain.dataset``). It returns a finite number.
    """

    function: Reference
    unit: Annotated[str, shaped(r"[!-~]{1,16}", "a unit of at most 16 letters, such as EUR")]
    path: str | None = Field(None, description="folder it is imported from; default: what is installed")


class SiteFile(Section):
    """A loaded ``site.toml``."""

    data: DataSection
    policy: Policy = Policy()
    trainer: TrainerSection = TrainerSection()
    metrics: dict[MetricName, MetricSection] = Field({}, description="business metrics by name")


def load_site(path: Path) -> SiteFile:
    """Read and check a ``site.toml``.

    Raises:
        ConfigurationError: It is missing, is not TOML, or a key is unknown, missing or of the wrong type.
    """
    raw = read_toml(path, "site.toml; 'fedretrain client join' writes one")
    data = raw.get("data")
    if not isinstance(data, dict) or data.get("format") not in FORMATS:
        known = ", ".join(f'"{name}"' for name in FORMATS)
        raise ConfigurationError(f"{path}: data.format: expected one of {known} in the table [data]")
    fields: dict[str, Any] = {"data": (FORMATS[data["format"]], ...)}
    kind: type[SiteFile] = create_model("SiteFile", __base__=SiteFile, **fields)
    return check_toml(raw, kind, path)


def reader(site: SiteFile, folder: Path) -> Callable[[Contract], Dataset]:
    """What reads the site's data as a contract names them; it raises DataMismatch only.

    Args:
        site: A loaded ``site.toml``.
        folder: Where it lies; relative paths in it are from there.
    """

    def read(contract: Contract) -> Dataset:
        module = import_module(f"{__package__}.data.{site.data.format}")
        data: Dataset = module.read(site.data, folder, contract)
        return data

    return read


def template(name: str) -> str:
    """A ``site.toml`` to fill in, with every key explained; ``name`` is the site's."""
    return _TEMPLATE.replace("SITE", name)


_TEMPLATE = """\
# What the site SITE lets be done with its data. 'fedretrain client check' reads this file and says what it means.
# A changed [data] or [policy] counts from the next request on; [trainer] from the next 'fedretrain client up'.

[data]
# Where the data lie, relative to this file, and how they are read. One of:
format = "npz"                      # arrays x and y, or x.<input> and y.<output>; sample_weight if rows count unequally
path = "data.npz"

# format = "csv"                    # or "parquet", which needs pip install 'fedretrain[parquet]'
# path = "tables/*.csv"             # several files are read as one
# columns = ["age", "weight"]       # features in the model's order; default: the names in the contract
# label = "diagnosis"               # a column of label names, or of their positions; without it there are checks alone
# sample_weight = "weight"          # optional
# timestamp = "seen"                # optional: when each row was made, as 2026-06-01T12:30:00Z or seconds since 1970
# delimiter = ","                   # csv only
# encoding = "utf-8"                # csv only

# format = "images"                 # PNG, JPEG, GIF or BMP in one folder per class, named as the labels
# path = "pictures"
# divide_by = 255                   # pixels are divided by this; default 1
# resize = false                    # true: scale pictures that have another size than the model's input

# format = "tfrecord"
# path = "records/*.tfrecord"
# compression = "GZIP"              # optional
# input = "image"                   # the feature that is the model's input
# label = "diagnosis"
# [data.features]
# image = { dtype = "bytes", shape = [8, 8, 1] }     # float32, int64, or bytes (raw uint8; with shape [] a text)
# diagnosis = { dtype = "int64", shape = [] }

# format = "function"               # your own reader: function(contract) -> {"x": array, "y": array}
# function = "hospital_data:load"
# path = "code"                     # the folder it is imported from; default: what is installed

# For every format:
# preprocessing = "pixels/16"       # how raw data became these values, if the federation has a name for it
# validation_fraction = 0.2         # share kept for validation instead of the job's

[policy]
# Refused is what does not fit; the server learns the rule's name and limit. Patterns as in a shell: * ? [abc].
federations = ["*"]                 # by name
jobs = ["*"]                        # by run id, as in "digits-*"
strategies = ["*"]                  # such as "fedavg", "median"
modes = ["*"]                       # ways to retrain: continue, full, incremental, transfer, extend, replay, ...
objectives = ["*"]                  # beside the strategy, such as "ewc", "recency"
layers = ["*"]                      # layers that may be trained; nested ones are written outer/inner
# max_rounds = 100                  # of a job
# max_local_epochs = 5              # passes over the data in a round
# max_local_steps = 1000            # training steps in a round
# max_seconds = 600                 # of training in a round
# hours = ["22:00-06:00"]           # when data may be used, local time; default: always
min_examples = 10                   # fewest training examples about which anything is sent
min_count = 5                       # fewest examples a statistic or count may be about; 5 is the least possible
statistics = ["*"]                  # that may leave: train-loss, val-loss, val-<metric>, seconds, sum-<name>; of a
                                    # check (sum-check) each part: check-histogram, check-labels, ...
approval = false                    # true: a person must say yes to each job, with 'fedretrain client approve'
bundles = []                        # SHA-256 of app bundles accepted beside the kit's

[policy.replay]                     # examples kept here for later runs, encrypted in store/replay; none ever leaves
examples = 0                        # the most; 0 keeps none, removes what was kept, and refuses the mode "replay"
# days = 365                        # oldest that is kept
# max_mb = 64                       # MiB they may take
# sample = "reservoir"              # any example as likely as another; or "balanced": as many of each label

[policy.noise]                      # on each count of a check; what of it is safe to tell stands in docs/watching.md
# epsilon = 1.0                     # of the discrete Laplace distribution, for each count; default: no noise

[policy.quality]                    # of examples that are not trained on; a check counts them either way
leave_out = []                      # "missing" and "impossible" values, "duplicates", "label-noise" (as the last check
                                    # found it); without the first two, data that have such values are refused

# [metrics.revenue]                 # a number beside the counts of a check, for jobs that watch "revenue"
# function = "our_numbers:revenue"  # takes nothing, or the recent examples' arrays as an npz has them; gives a number
# unit = "EUR"
# path = "code"                     # the folder it is imported from; default: what is installed

[trainer]
# backend = "client.trainer:Trainer"    # module:class that trains
threads = 1                         # for one operation; must be the same at every site if results are to be repeatable
# memory_mb = 4096                  # most the trainer may use
nice = 5                            # 0 to 19: how much it gives way to other processes
# allow_modules = ["our_layers"]    # installed modules whose layer classes a model may use
# allowed_uids = [1002]             # other users whose executor may connect to the trainer
"""
