"""FedPer and FedBN: FedAvg in which some layers never leave the site, so that each site has its own.

With the shared variables W_S and each site's own W_i, site i trains both together on its loss, and in round t::

    (W_S,i, W_i,t+1) = local training from (W_S,t, W_i,t)
    W_S,t+1 = W_S,t + Σ_i n_i (W_S,i - W_S,t) / Σ_i n_i

W_i start with the base model's values and stay at the site (rule ``personal`` of the contract); nothing of them is
sent. In a release they have the base model's values, so its holdouts judge what a site that joins afresh would have.

FedPer: the layers in ``layers``, which are patterns as in ``model.freeze``; the paper takes the last ones.
M. G. Arivazhagan, V. Aggarwal, A. K. Singh, S. Choudhary: Federated Learning with Personalization Layers. 2019,
https://arxiv.org/abs/1912.00818

FedBN: every BatchNormalization layer that is not frozen, its scale, offset and moving statistics; for sites whose
inputs differ in look (feature shift) rather than in labels.
X. Li, M. Jiang, X. Zhang, M. Kamp, Q. Dou: FedBN: Federated Learning on Non-IID Features via Local Batch Normalization.
ICLR 2021, https://arxiv.org/abs/2102.07623

Deviation in both: sites weigh by their example counts, as in FedAvg; FedBN's paper averages evenly.
"""

from typing import Annotated, ClassVar

from pydantic import Field

from .base import Settings, Strategy
from .objective import Plain
from .server_optimizer import Sum
from .weighted_mean import WeightedMean


class FedPer(Settings):
    """Settings of FedPer; which variables they make personal, ``fedretrain.personal`` finds out."""

    name: ClassVar[str] = "fedper"
    layers: Annotated[tuple[str, ...], Field(strict=False)] = Field(
        (), description="patterns over layers that stay at the sites; nested as outer/inner"
    )

    def build(self) -> Strategy:
        """Plain local training, weighted mean, sum."""
        return Strategy(self.name, Plain(), WeightedMean(), Sum())


class FedBN(Settings):
    """Settings of FedBN; it has none."""

    name: ClassVar[str] = "fedbn"

    def build(self) -> Strategy:
        """Plain local training, weighted mean, sum."""
        return Strategy(self.name, Plain(), WeightedMean(), Sum())
