"""Class attention transfer (Guo et al., CVPR 2023)."""

from mdistiller.config import Key, weight_key
from mdistiller.distillers.base import register
from mdistiller.distillers.last_map import LastMapDistiller
from mdistiller.losses.catkd import catkd_loss, class_activation_maps


@register("CATKD", "CAT-KD", "CAT_KD")
class CATKD(LastMapDistiller):
    """Class Attention Transfer Based Knowledge Distillation (Guo et al., CVPR 2023, arXiv:2304.12777).

    CE + CAT_loss_weight * cat, where cat compares class activation maps: the last map, classified at each position.
    The authors move the classifier before the global average, as a convolution without bias. Here its weights are
    applied to the map, which gives the same maps and leaves the networks unchanged (their logits keep the bias). The
    keys, in the node CAT_KD, and the defaults are those of the authors' code, whose files set another weight,
    resolution and IF_NORMALIZE for each pair. With onlyCAT there is no cross-entropy.

    Uncertain: the paper normalises the maps, but the authors' files do so only for pairs of different architectures.
    """

    config_key = "CAT_KD"
    defaults = {
        "IF_NORMALIZE": Key(True, help="Divide each class activation map by its norm."),
        "onlyCAT": Key(False, help="Train without cross-entropy."),
        "LOSS": {
            "CE_WEIGHT": weight_key(1.0, "the cross-entropy"),
            "CAT_loss_weight": weight_key(400.0),
            "CAM_RESOLUTION": Key(2, least=1, most=256, help="Height and width to which the maps are pooled."),
        },
    }
    search = {"LOSS.CAT_loss_weight": 10}

    def build(self, cfg):
        self.check_maps()
        self.ce_weight = 0.0 if cfg.onlyCAT else cfg.LOSS.CE_WEIGHT
        self.cat_weight, self.resolution = cfg.LOSS.CAT_loss_weight, cfg.LOSS.CAM_RESOLUTION
        self.normalize = cfg.IF_NORMALIZE

    def sample_losses(self, student, teacher, **batch):
        cams = [
            class_activation_maps(output.features["map"], classifier.weight)
            for output, classifier in zip((student, teacher), self.classifiers, strict=True)
        ]
        return {"cat": self.cat_weight * catkd_loss(*cams, self.resolution, self.normalize)}
