"""What the systems of the paper write: keys, shapes, dtypes and order, values, and files.

Written from the systems' public code and the manifests, without the package's tables: a second
opinion for them. `files` imports torch where it writes.
"""

from .mit import (
    daformer,
    edaps,
    edaps_bottom_up,
    hrda,
    pipa_daformer,
    pipa_hrda,
    pipa_training_run,
    smp_fpn,
    smp_unet,
    smp_upernet,
    training_run,
)
from .resnets import (
    R50,
    R101,
    ResNetSize,
    conmix_resnet,
    deeplab_multi,
    deeplab_single,
    fada,
    fada_discriminator,
    glc,
    mic_detection,
    resnet,
    smp_unet_resnet,
    torchvision_deeplabv3,
    torchvision_resnet,
    transformers_resnet,
)
from .vits import DEIT_B, DEIT_B_384, DEIT_S, R50_VIT_B, VitSize, conmix_deit, conmix_r50_vit

__all__ = [
    "DEIT_B",
    "DEIT_B_384",
    "DEIT_S",
    "R50",
    "R50_VIT_B",
    "R101",
    "ResNetSize",
    "VitSize",
    "conmix_deit",
    "conmix_r50_vit",
    "conmix_resnet",
    "daformer",
    "deeplab_multi",
    "deeplab_single",
    "edaps",
    "edaps_bottom_up",
    "fada",
    "fada_discriminator",
    "glc",
    "hrda",
    "mic_detection",
    "pipa_daformer",
    "pipa_hrda",
    "pipa_training_run",
    "resnet",
    "smp_fpn",
    "smp_unet",
    "smp_unet_resnet",
    "smp_upernet",
    "torchvision_deeplabv3",
    "torchvision_resnet",
    "training_run",
    "transformers_resnet",
]
