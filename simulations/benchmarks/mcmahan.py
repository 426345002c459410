"""Rounds to a target accuracy in the setting of McMahan et al. 2017 (arXiv:1602.05629), beside the paper's.

MNIST at 100 sites of 600 images, a tenth of them a round, batches of 10, plain SGD; images at random (IID) or as two
shards of sorted images for each site. A site passes over its images once a round; the 2NN has to reach 97 %, the CNN
99 %. The test images are measured after every round by the job's ``[monitor]``.

Use::

    python -m simulations.benchmarks.mcmahan --mnist mnist.npz --work FOLDER --markdown mcmahan.md
    python -m simulations.benchmarks.mcmahan --mnist mnist.npz --work FOLDER --tune 2nn-iid    # the learning rates

What is in FOLDER is not measured again, so that a table can be made in pieces. The paper chose each learning rate by a
grid on the test images; here ``--tune`` measures a grid on 5,000 training images that are then at no site.
"""

import argparse
import shutil
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np

from fedretrain.errors import FedretrainError

from .curves import Curve, typical
from .environment import Environment
from .mcmahan_job import Setting, write_job
from .setting import Images, load_mnist, made_up
from .table import Cell, Figure, Table, common_arguments, emit
from .watched import simulate

GRID = (0.0215, 0.0464, 0.1, 0.215, 0.464)
"""Rates to choose from, a factor of the third root of ten apart, as in the paper."""
HELD_OUT = 5000
_SMOKE_IMAGES = 1200
_TUNING_SEED = 100


@dataclass(frozen=True)
class Case:
    """One line of the table.

    Attributes:
        setting: What is trained.
        paper: Rounds in the paper, for C = 0.1, B = 10 and E = 1: the 2NN's in Table 1, the CNN's in Table 2.
        enough: Rounds that show which learning rate is the best.
    """

    setting: Setting
    paper: int
    enough: int = 100

    @property
    def title(self) -> str:
        """The line's first cell."""
        split = "IID" if self.setting.split == "iid" else "two shards"
        return f"{self.setting.model.upper()}, {split}, E={self.setting.epochs}, {100 * self.setting.target:g} %"


CASES = {
    "2nn-iid": Case(Setting("2nn", "iid", epochs=1, target=0.97, rate=0.215, rounds=300), 87),
    "2nn-shards": Case(Setting("2nn", "shards", epochs=1, target=0.97, rate=0.215, rounds=1500), 664, enough=300),
    "cnn-iid": Case(Setting("cnn", "iid", epochs=1, target=0.99, rate=0.215, rounds=200), 34, enough=25),
    "cnn-shards": Case(Setting("cnn", "shards", epochs=1, target=0.99, rate=0.1, rounds=1000), 350, enough=60),
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure, draw and print; the exit code."""
    options = _parse(arguments)
    work = options.work or Path(tempfile.mkdtemp(prefix="fr-mcmahan-"))
    machine = Environment.now()
    try:
        train, test = (made_up(_SMOKE_IMAGES), made_up(400, seed=1)) if options.smoke else load_mnist(options.mnist)
        if options.tune:
            emit([replace(_tuned(options.tune, options.rates or GRID, work, train), environment=machine)], options)
            return 0
        cases = _smoke() if options.smoke else {name: CASES[name] for name in options.case}
        found = {
            name: [_curve(name, case.setting, work, train, test, seed) for seed in range(options.seeds)]
            for name, case in cases.items()
        }
        emit([replace(_table(cases, found), environment=machine)], options)
        if options.plots:
            from .plots import draw

            draw(cases, found, options.plots)
    except FedretrainError as error:
        sys.stderr.write(f"{error}\n")
        return error.exit_code
    finally:
        if options.work is None:
            shutil.rmtree(work, ignore_errors=True)
    return 0


def _parse(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m simulations.benchmarks.mcmahan", description=__doc__)
    common_arguments(parser)
    parser.add_argument("--case", action="append", choices=CASES, help="one of the lines, may be given again (all)")
    parser.add_argument("--seeds", type=int, default=1, help="runs of each case; the table has the median one (1)")
    parser.add_argument("--work", type=Path, help="folder in which what is measured stays; default: nothing stays")
    parser.add_argument("--plots", type=Path, metavar="FOLDER", help="draw the curves as PNG there")
    parser.add_argument("--tune", choices=CASES, help="measure learning rates for one case instead")
    parser.add_argument("--rates", type=float, nargs="+", help=f"for --tune ({' '.join(map(str, GRID))})")
    options = parser.parse_args(arguments)
    options.case = options.case or list(CASES)
    if options.seeds < 1:
        parser.error("--seeds: expected at least 1")
    return options


def _smoke() -> dict[str, Case]:
    case = CASES["2nn-shards"]
    return {"2nn-shards": replace(case, setting=replace(case.setting, rounds=3, sites=10, fraction=0.3))}


def _curve(name: str, setting: Setting, work: Path, train: Images, test: Images, seed: int) -> Curve:  # noqa: PLR0913, PLR0917
    """One run: from its file, or measured."""
    made = {**asdict(setting), "seed": seed, "images": len(train)}
    file = work / f"{name}-rate{setting.rate:g}-seed{seed}-{len(train)}.json"
    curve = Curve.read(file, made)
    if curve is None:
        sys.stderr.write(f"{name}, learning rate {setting.rate:g}, seed {seed}\n")
        with tempfile.TemporaryDirectory(prefix="fr-mcmahan-") as folder:
            job = write_job(Path(folder) / "job", setting, train, test, seed)
            curve = Curve.of(made, simulate(job, Path(folder) / "out"))
        curve.write(file)
    return curve


def _table(cases: Mapping[str, Case], found: Mapping[str, Sequence[Curve]]) -> Table:
    columns = ("", "learning rate", "paper: rounds", "rounds", "best accuracy, %", "s to target", "s a round", "CPU s")
    table = Table(
        "mcmahan",
        "Rounds to a target accuracy on MNIST, 100 sites, a tenth of them a round, batches of 10",
        columns,
        baseline="the paper's rounds (arXiv:1602.05629, Tables 1 and 2), which were not run here",
        note=_NOTE,
        command="python -m simulations.benchmarks.mcmahan --mnist mnist.npz",
    )
    for name, case in cases.items():
        target = case.setting.target
        curve = typical(found[name], target)
        table.add(
            case.title,
            case.setting.rate,
            str(case.paper),
            _rounds(found[name], case),
            round(100 * curve.best[-1], 2),
            curve.seconds_to(target),
            curve.seconds_per_round,
            curve.cpu,
        )
    return table


_NOTE = (
    "Rounds are where the best accuracy so far crosses the target, with straight lines between rounds, as in the "
    "paper; of several runs the median one, with the least and the greatest. Seconds are from the start of the command "
    "and include it; in each round 10,000 test images are measured on one of the cores. Learning rates: the "
    "paper's from a grid on the test images; here those of the IID lines from a grid on held-out training images "
    "(`--tune`), the 2NN's taken for two shards as well, and half of the CNN's."
)


def _rounds(curves: Sequence[Curve], case: Case) -> Cell:
    """The median number of rounds, and beside it how far the runs are apart."""
    target = case.setting.target
    crossings = [curve.crossing(target) for curve in curves]
    middle = typical(curves, target).crossing(target)
    if middle is None:
        return f"not in {case.setting.rounds}"
    if len(curves) == 1:
        return Figure(middle, case.paper)
    texts = ["never" if c is None else f"{c:.0f}" for c in sorted(crossings, key=lambda c: c or float("inf"))]
    return f"{middle:.0f} ({middle / case.paper:.2f}x), {texts[0]} to {texts[-1]}"


def _tuned(name: str, rates: Sequence[float], work: Path, train: Images) -> Table:
    """How far each learning rate comes on held-out training images."""
    case = CASES[name]
    setting = replace(case.setting, rounds=case.enough)
    order = np.random.default_rng(_TUNING_SEED).permutation(len(train))  # MNIST's last images are easier than others
    rest, held = train.take(order[HELD_OUT:]), train.take(order[:HELD_OUT])
    table = Table(
        f"mcmahan-tuning-{name}",
        f"Learning rates for {case.title}: {case.enough} rounds, {HELD_OUT:,} training images that are at no site",
        ("learning rate", "rounds to the target", "best accuracy, %"),
    )
    for rate in rates:
        curve = _curve(name, replace(setting, rate=rate), work, rest, held, _TUNING_SEED)
        table.add(f"{rate:g}", curve.crossing(setting.target) or "not reached", round(100 * curve.best[-1], 2))
    return table


if __name__ == "__main__":
    sys.exit(main())
